"""World: does a latent world model predict what follows, listen to actions, and tell what cannot be?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.collapse import rankme
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.functional.token_paths import path_curvature
from jepa_monitor.functional.world_model import action_share, prediction_error, surprise
from jepa_monitor.insights._drawing import HIGH, LOW, MUTED, for_display, is_drawable
from jepa_monitor.insights._statistics import with_ends
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.world_parts import WORLD, ClipSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WorldModel"]

_HORIZONS = (1, 2, 4, 8, 16)
_SHOWN = 3  # clips at either end
_FRAMES = 8


class WorldModel(Insight):
    """``world/*``, with ``world``."""

    name = "world"
    wants = (WORLD,)
    rows = (
        Row(
            (*with_ends("world", "error"), "world/error_still"),
            "with `world`: squared error of the predicted next embedding, as a share of the variance of embeddings "
            "between held-out clips at the same step, the ends of its 95 % interval over clips, and the same "
            "of predicting that nothing changes",
            "≥ 0",
            "below `world/error_still`",
            "what the predictor knows; not the scale of the embeddings",
            "forward, T predictions",
            "`prediction_error`",
        ),
        Row(
            with_ends("world", "action_share"),
            "share of the error with another clip's actions that the own ones save",
            "≤ 1",
            "lower end above 0",
            "a predictor that listens to actions",
            "T predictions",
            "`action_share`",
        ),
        Row(
            tuple(f"world/drift_{k}{end}" for k in _HORIZONS for end in ("", "_still")),
            "`world/error` of predictions k steps ahead, made of the model's own, and of standing still",
            "≥ 0",
            "below `_still`, rising slowly",
            "errors that add up",
            "T predictions",
            "`prediction_error`",
        ),
        Row(
            with_ends("world", "surprise"),
            "how well the error tells a cut to another clip, half way, from what follows: AUROC",
            "0 … 1",
            "near 1; ½ is chance",
            "embeddings that say where things are",
            "free",
            "[arXiv 2603.19312](https://arxiv.org/abs/2603.19312)",
        ),
        Row(
            ("world/rankme", "world/rankme_together"),
            "smallest RankMe of the embeddings of one time step, over steps; and that of all steps together",
            "1 … min(N, K)",
            "",
            "collapse at a step, which all steps together may hide",
            "free",
            "[arXiv 2210.02885](https://arxiv.org/abs/2210.02885)",
        ),
        Row(
            ("world/gaussianity",),
            "largest sliced Epps-Pulley statistic of one time step, over steps; N(0, I) reads 1.05",
            "≥ 0",
            "about 1 with SIGReg",
            "what step-wise SIGReg trains",
            "free",
            "[arXiv 2511.08544](https://arxiv.org/abs/2511.08544)",
        ),
        Row(
            ("world/straightness", "world/straightness_pixels"),
            "mean cosine of a step of the embedding with the next one; and that of the frames themselves",
            "−1 … 1",
            "above that of the frames",
            "paths that are straight; −½ for independent embeddings",
            "free",
            "`path_curvature`",
        ),
    )
    panels = (
        Panel(
            "world",
            "error of the next embedding, share of its variance",
            ("world/error$", "world/error_still$", "world/drift_4$", "world/drift_4_still$"),
            healthy=(None, 1.0),
        ),
        Panel(
            "world",
            "what cannot follow is told, AUROC",
            with_ends("world", "surprise"),
            band=True,
            healthy=(0.5, None),
        ),
        Panel(
            "world",
            "error saved by actions",
            with_ends("world", "action_share"),
            band=True,
            healthy=(0.0, None),
        ),
        Panel(
            "world", "straightness of paths", ("world/straightness$", "world/straightness_pixels$")
        ),
        Panel("world", "RankMe, the worst step", ("world/rankme$", "world/rankme_together$")),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare what was predicted with what came.

        Args:
            look: What was gathered.

        Returns:
            ``world/*``; what is not determined is absent.
        """
        if WORLD not in look.parts:
            return {}
        clips = look[WORLD]
        z, half = clips.embeddings, clips.predicted.shape[1] // 2
        following, before = z[:, 1:], z[:, :-1]
        error = prediction_error(clips.predicted, following, before)
        actions = action_share(clips.predicted, clips.with_others, following)
        told = surprise(clips.predicted[:, half], following[:, half])
        found = dict(zip(with_ends("world", "error"), error[:3], strict=True))
        found["world/error_still"] = error.still
        found |= zip(with_ends("world", "action_share"), actions, strict=True)
        found |= zip(with_ends("world", "surprise"), told, strict=True)
        start = z.shape[1] - clips.rollout.shape[1]
        for k in _HORIZONS:
            if k <= clips.rollout.shape[1]:
                ahead = slice(k - 1, k)
                drift = prediction_error(
                    clips.rollout[:, ahead], z[:, start:][:, ahead], z[:, start - 1 : start]
                )
                found[f"world/drift_{k}"], found[f"world/drift_{k}_still"] = (
                    drift.value,
                    drift.still,
                )
        found |= _of_the_steps(z)
        real = torch.ones(z.shape[:2], dtype=torch.bool)
        for tag, path in (("", z), ("_pixels", clips.frames.flatten(2))):
            turns = path_curvature(path, real)
            found[f"world/straightness{tag}"] = 1 - turns[torch.isfinite(turns)].mean()
        return {tag: float(value) for tag, value in found.items() if math.isfinite(value)}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether the model predicts, listens and is surprised.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence or more; nothing where there are no clips.
        """
        if "world/error" not in scalars:
            return ""
        error, high, still = (
            scalars[f"world/{key}"] for key in ("error", "error_high", "error_still")
        )
        if error > 1:
            words = "The next embedding is predicted worse than by the mean of all clips"
        elif high < still:
            words = (
                f"The next embedding is predicted but for {error:.0%} of its variance, where standing still "
                f"misses {still:.0%}"
            )
        else:
            words = (
                f"The next embedding is predicted but for {error:.0%} of its variance, no better than by "
                f"standing still ({still:.0%})"
            )
        if scalars.get("world/action_share_low", 1) <= 0:
            words += "; actions make no difference to it"
        if scalars.get("world/surprise_low", 1) <= 0.5:
            words += "; a cut to another clip is no surprise"
        return f"{words}."

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the clips that surprise most and least.

        Args:
            look: What was gathered.

        Returns:
            ``world/clips``; nothing where frames cannot be drawn.
        """
        if WORLD not in look.parts or not is_drawable(look[WORLD].frames[:, 0]):
            return {}
        return {"world/clips": plot_clips(look[WORLD])}


def _of_the_steps(z: Tensor) -> dict[str, Tensor]:
    """Ranks and Gaussianity of each time step, the worst."""
    steps = z.double().unbind(1)
    ranks = [rankme(step) for step in steps if bool(step.any())]
    found = {
        "world/gaussianity": torch.stack(
            [sliced_epps_pulley(step).statistic for step in steps]
        ).max()
    }
    if ranks:
        found |= {
            "world/rankme": torch.stack(ranks).min(),
            "world/rankme_together": rankme(torch.cat(steps)),
        }
    return found


def plot_clips(clips: ClipSet) -> Figure:
    """Draw the clips of the largest and of the smallest errors, and the error of each step beneath.

    Args:
        clips: What was embedded and predicted.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    errors = (clips.predicted - clips.embeddings[:, 1:]).square().sum(2)
    order = errors.sum(1).argsort(descending=True).tolist()
    shown = order[:_SHOWN] + order[_SHOWN:][-_SHOWN:]
    frames = clips.frames[:, :_FRAMES]
    steps = frames.shape[1]
    pictures = for_display(frames.flatten(0, 1))
    pictures = pictures.reshape(*frames.shape[:2], *pictures.shape[1:])
    figure = Figure(figsize=(1.3 + 0.95 * steps, 1.35 * len(shown)), layout="constrained")
    grid = figure.subplots(2 * len(shown), 1, squeeze=False, height_ratios=[2.2, 1] * len(shown))[
        :, 0
    ]
    top = float(errors.max()) or 1.0
    for row, clip in enumerate(shown):
        strip, curve = grid[2 * row], grid[2 * row + 1]
        strip.imshow(
            torch.cat(list(pictures[clip]), 1).numpy(), cmap="gray", interpolation="nearest"
        )
        strip.set(xticks=[], yticks=[])
        word, color = ("most", LOW) if row < _SHOWN else ("least", HIGH)
        strip.set_ylabel(word, color=color, fontsize=8)
        places = [step + 1.5 for step in range(min(steps - 1, errors.shape[1]))]
        curve.bar(places, errors[clip, : len(places)].tolist(), width=0.5, color=color)
        curve.set(xlim=(0, steps), ylim=(0, top), xticks=[], yticks=[0, top])
        curve.set_yticklabels(["0", f"{top:.2g}"], fontsize=6, color=MUTED)
    figure.suptitle(
        "clips of most and least surprise: squared error of each frame's embedding", fontsize=9
    )
    return figure
