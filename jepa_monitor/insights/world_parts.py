"""What a world model makes of held-out clips: in go frames, actions and a predictor, out come embeddings and predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.encoders.modules import modules_of
from jepa_monitor.insights.parts import Part

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["WORLD", "ClipSet", "Clips", "WorldClips"]


@dataclass(frozen=True, eq=False)
class Clips:
    """Held-out clips, and how the next embedding is predicted.

    Args:
        frames: (N, T, C, H, W), as the encoder takes each frame; N ≥ 2, T ≥ 3.
        actions: (N, T, A) or (N, T − 1, A): action t leads from frame t to frame t + 1.
        predict: Takes embeddings (N, t, K) of the last t ≤ ``history`` frames and their actions (N, t, A), and
            returns (N, t, K), of which the last is the prediction of what follows: ``model.predict``.
        history: How many frames the predictor may see.

    Raises:
        TypeError: If frames or actions are no floating-point tensors, or ``predict`` is not callable.
        ValueError: If shapes do not fit, or a number is not finite.
    """

    frames: Tensor = field(repr=False)
    actions: Tensor = field(repr=False)
    predict: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    history: int = 3

    def __post_init__(self) -> None:
        for name in ("frames", "actions"):
            given: Any = getattr(self, name)
            if not isinstance(given, Tensor) or not given.is_floating_point():
                kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"`{name}` must be a floating-point tensor, got {kind}.")
            if not bool(torch.isfinite(given).all()):
                raise ValueError(f"`{name}` must be finite.")
        if not callable(self.predict):
            raise TypeError(f"`predict` must be callable, got {type(self.predict).__name__}.")
        check_positive_int(self.history, "history")
        if self.frames.ndim < 3 or len(self.frames) < 2 or self.frames.shape[1] < 3:
            raise ValueError(
                "`frames` must hold 2 clips of 3 frames or more, (N, T, C, H, W), got shape "
                f"{tuple(self.frames.shape)}."
            )
        count, steps = self.frames.shape[:2]
        if self.actions.ndim != 3 or tuple(self.actions.shape[:2]) not in (
            (count, steps),
            (count, steps - 1),
        ):
            raise ValueError(
                f"`actions` must have shape ({count}, {steps} or {steps - 1}, A), as `frames` are "
                f"{tuple(self.frames.shape)}, got {tuple(self.actions.shape)}."
            )


@dataclass(frozen=True)
class ClipSet:
    """What was embedded and predicted; finite, on the CPU, float32.

    Args:
        frames: (N, T, C, H, W).
        embeddings: (N, T, K).
        predicted: Of frames 1 … T − 1 by those before, (N, T − 1, K).
        with_others: The same by the actions of the next clip, (N, T − 1, K).
        rollout: Of the frames behind the history, by the model's own predictions, (N, T − H, K), H of
            ``history`` and T − 1 the smaller one.
    """

    frames: Tensor
    embeddings: Tensor
    predicted: Tensor
    with_others: Tensor
    rollout: Tensor


@dataclass(frozen=True)
class WorldClips(Part[ClipSet]):
    """Embeddings and predictions of the monitor's ``world``."""

    source = "`world`"
    of_images = True

    def gather(self, at: Gatherer) -> ClipSet | None:
        """Embed the frames, and ask the predictor.

        Args:
            at: The encoder and the clips.

        Returns:
            Them; ``None`` where there are none.

        Raises:
            ValueError: If the predictor returns another shape, or anything is not finite.
        """
        given: Clips | None = at.sources.world
        if given is None:
            return None
        count, steps = given.frames.shape[:2]
        flat = at.embeddings(given.frames.flatten(0, 1))
        modules = modules_of(given.predict)
        weights = (p for module in modules for p in module.parameters() if p.is_floating_point())
        dtype = next((p.dtype for p in weights), flat.dtype)
        embeddings = flat.reshape(count, steps, -1).to(at.device, dtype)
        actions = given.actions[:, : steps - 1].to(at.device, dtype)
        start = min(given.history, steps - 1)
        with undisturbed(modules, at.device), torch.no_grad():
            predicted, others = (
                torch.stack(
                    [
                        _next(given, embeddings[:, : t + 1], moves[:, : t + 1])
                        for t in range(steps - 1)
                    ],
                    1,
                )
                for moves in (actions, actions.roll(1, 0))
            )
            seen = embeddings[:, :start]
            for t in range(start - 1, steps - 1):
                seen = torch.cat([seen, _next(given, seen, actions[:, : t + 1])[:, None]], 1)
        found = [embeddings, predicted, others, seen[:, start:]]
        if not all(bool(torch.isfinite(z).all()) for z in found):
            raise ValueError("an embedding or a prediction of `world` is not finite")
        return ClipSet(given.frames, *(z.float().cpu() for z in found))


def _next(given: Clips, embeddings: Tensor, actions: Tensor) -> Tensor:
    """Predict what follows, (N, K)."""
    seen = embeddings[:, -given.history :]
    found = given.predict(seen, actions[:, -given.history :])
    if not isinstance(found, Tensor) or found.shape != seen.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"`predict` must return {tuple(seen.shape)}, as it was given, got {shape}")
    return found[:, -1]


WORLD = WorldClips()
