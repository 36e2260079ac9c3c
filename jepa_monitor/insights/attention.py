"""Attention: whether layers weigh all tokens alike, or a few of them for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_monitor.encoders.attention import watch_attention
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part

__all__ = ["AttentionWeights", "Weights"]

_NAMES = ("entropy", "column_mass_max", "row_sum")
_BATCH = 16


@dataclass(frozen=True)
class Weights(Part[Tensor]):
    """Entropy, column mass and row sum of n probe images at L layers, (n, L, 3).

    Args:
        samples: How many images at most.
    """

    samples: int = 32

    source = "an encoder with attention"
    of_images = True

    def gather(self, at: Gatherer) -> Tensor:
        """Pass the images through the encoder.

        Args:
            at: The encoder and the probe.

        Returns:
            (n, L, 3), float64.

        Raises:
            AttentionError: If the encoder has no attention of which weights can be told.
        """

        def work(part: Tensor) -> tuple[Tensor, ...]:
            def measured() -> list[Tensor]:
                return [
                    torch.stack([torch.stack(layer, 1) for layer in found], 1).cpu()
                    for batch in torch.split(part.to(at.embedder.dtype), _BATCH)
                    for found in at.embedder.inside(batch, watch_attention)
                ]

            return (torch.cat(at.embedder.run(measured, part.device)),)

        (found,) = at.map(work, at.sources.images[: self.samples])
        return found


class AttentionWeights(Insight):
    """``attention/*``, each tag with the number of the layer at its end, from ``00``, the first one.

    Args:
        samples: How many probe images at most.
    """

    name = "attention"
    rows = (
        Row(
            ("attention/entropy/<layer>",),
            'with `insights=["attention"]`: entropy of the weights that a token gives to all tokens, over log N; '
            "mean over tokens, heads and 32 images",
            "0 … 1",
            "none is known",
            "1: all tokens alike, as before training; 0: each looks at one token",
            "one pass with 32 images",
            "[docs/attention.md](attention.md)",
        ),
        Row(
            ("attention/column_mass_max/<layer>",),
            "weight that the token to which all others look most gets from all of them, in tokens; mean over heads "
            "and images",
            "1 … N",
            "low; 1 for doubly stochastic weights",
            "N: a sink, one token to which all look",
            "the same pass",
            "[docs/attention.md](attention.md)",
        ),
        Row(
            ("attention/row_sum/<layer>",),
            "sum of the weights that a token gives",
            "1 for softmax; any",
            "1",
            "weights without normalisation, which make the branch large or small",
            "the same pass",
            "[docs/attention.md](attention.md)",
        ),
    )
    panels = (
        Panel("tokens", "attention: entropy by layer", ("attention/entropy/.*",)),
        Panel("tokens", "attention: mass of the largest column", ("attention/column_mass_max/.*",)),
    )

    def __init__(self, samples: int = 32) -> None:
        self.part = Weights(samples)
        self.needs = (self.part,)

    def scalars(self, look: Look) -> dict[str, float]:
        """Average over images.

        Args:
            look: What was gathered.

        Returns:
            ``attention/*``; nothing of images whose weights are not finite.
        """
        found = look[self.part]
        known = found[torch.isfinite(found).flatten(1).all(1)]
        if not len(known):
            return {}
        return {
            f"attention/{name}/{layer:02}": value.item()
            for layer, values in enumerate(known.mean(0))
            for name, value in zip(_NAMES, values, strict=True)
        }

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say where most of the weight lies on few tokens.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        start = "attention/column_mass_max/"
        masses = {int(t.removeprefix(start)): v for t, v in scalars.items() if t.startswith(start)}
        if not masses:
            return ""
        layer = max(masses, key=masses.__getitem__)
        return (
            f"Of {len(masses)} layers of attention, number {layer} has the largest sink: one token gets the "
            f"weight of {masses[layer]:.1f}."
        )
