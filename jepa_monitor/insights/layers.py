"""Layers: what becomes of the probe from block to block, and where its score is the right way up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from jepa_monitor.functional.polarity import paired_polarity
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.layer_parts import MEASURES, Layers, LayerSet, ScoredLayers
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerWise", "plot_layers"]

_TITLES = (
    "effective rank / isotropic",
    "spread",
    "not Gaussian (effect)",
    "neighbours kept",
)


class LayerWise(Insight):
    """``layers/*``, each tag with the number of the layer at its end, from ``00``, the first block.

    Args:
        samples: How many probe images to embed at each layer, of one pass.
        scored: How many of them to score at some layers, in three worse versions as well; 0 for none.
        most: At how many layers to score them at most.
    """

    name = "layers"
    rows = (
        Row(
            ("layers/effective_rank_relative/<layer>",),
            'with `insights=["layers"]`: effective rank of the unit embeddings at the end of a block, over that '
            "of isotropic ones of as many images and numbers; patch tokens and maps are averaged over their places",
            "0 … about 1",
            "no layer far below its neighbours",
            "a bottleneck; a collapse that begins in late blocks",
            "one pass with 512 images",
            "[docs/layers.md](layers.md)",
        ),
        Row(
            ("layers/normalized_std/<layer>",),
            "spread of these embeddings on the sphere",
            "0 … about 1",
            "towards 1",
            "a mean that all images share, as residual streams have",
            "the same pass",
            "`normalized_std`",
        ),
        Row(
            ("layers/gaussianity_effect/<layer>",),
            "sliced Epps-Pulley statistic of the whitened embeddings: effect size; absent for fewer than 2 images "
            "a number",
            "about 0 … 0.4",
            "near 0",
            "",
            "the same pass",
            "`sliced_epps_pulley`",
        ),
        Row(
            ("layers/neighbors/<layer>",),
            "share of an image's 10 nearest others that are nearest at the block before as well, corrected for "
            "chance; from the second layer on",
            "about 0 … 1",
            "",
            "low: the block changes what is alike",
            "the same pass",
            "`mutual_knn`",
        ),
        Row(
            (
                "layers/polarity/<layer>",
                "layers/polarity_low/<layer>",
                "layers/polarity_high/<layer>",
            ),
            "`density/polarity` of JEPA-SCORE taken up to the end of a block, and the ends of its 95 % interval; "
            "at six layers",
            "0 … 1",
            "above 0.5",
            "`_high` below 0.5: at this depth likely images score low",
            "32 images of 16 rows at each of these layers",
            "`paired_polarity`",
        ),
    )

    def __init__(self, samples: int = 512, scored: int = 8, most: int = 6) -> None:
        self.part = Layers(samples)
        self.scores = ScoredLayers(self.part, scored, most)
        self.needs = (self.part,)
        self.wants: tuple[Any, ...] = (self.scores,) if scored else ()

    def scalars(self, look: Look) -> dict[str, float]:
        """Measure each layer.

        Args:
            look: What was gathered.

        Returns:
            ``layers/*``.
        """
        found: LayerSet = look[self.part]
        scalars = {
            f"layers/{name}/{n:02}": value
            for n, measured in enumerate(found.measures)
            for name, value in measured.items()
        }
        for n, ends in self._polarities(look).items():
            for end, value in zip(("", "_low", "_high"), ends, strict=True):
                scalars[f"layers/polarity{end}/{n:02}"] = value
        return scalars

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say where directions are fewest, and where the score is the right way up.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            Sentences, or nothing.
        """
        ranks = _of(scalars, "effective_rank_relative")
        if len(ranks) < 2:
            return ""
        low, high = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        said = (
            f"Of {len(ranks)} layers, number {low} has the fewest directions ({ranks[low]:.1%} of isotropic), "
            f"number {high} the most ({ranks[high]:.1%})."
        )
        lows, highs = _of(scalars, "polarity_low"), _of(scalars, "polarity_high")
        for word, layers in (
            ("the right way up", [n for n, value in lows.items() if value > 0.5]),
            ("inverted", [n for n, value in highs.items() if value < 0.5]),
        ):
            if layers:
                said += f" JEPA-SCORE is {word} at layers {', '.join(map(str, layers))}."
        if lows and not any(value > 0.5 for value in lows.values()):
            said += " At no layer that was scored is it known to be the right way up."
        return said

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the layers over the looks.

        Args:
            look: What was gathered.

        Returns:
            ``layers/looks``.
        """
        return {"layers/looks": plot_layers(look[self.part], self._polarities(look))}

    def _polarities(self, look: Look) -> dict[int, tuple[float, float, float]]:
        if self.scores not in look.parts:
            return {}
        names = look[self.part].names
        found = {}
        for name, scored in look[self.scores].items():
            finite = torch.isfinite(scored.scores) & torch.isfinite(scored.worse).all(0)
            if finite.any():
                ends = paired_polarity(scored.scores[finite], scored.worse[:, finite])
                found[names.index(name)] = (
                    ends.polarity.item(),
                    ends.lower.item(),
                    ends.upper.item(),
                )
        return found


def _of(scalars: Mapping[str, float], measure: str) -> dict[int, float]:
    start = f"layers/{measure}/"
    return {
        int(tag.removeprefix(start)): value
        for tag, value in scalars.items()
        if tag.startswith(start)
    }


def plot_layers(
    found: LayerSet, polarities: Mapping[int, tuple[float, float, float]] | None = None
) -> Figure:
    """Draw what layers were at each look: depth upwards, looks to the right.

    Args:
        found: Layers, with their history.
        polarities: Share and ends of its interval, by the number of the layer; drawn beside.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    looks, layers, _ = found.history.shape
    figure = Figure(figsize=(9.5, 1.4 + 0.16 * layers), layout="constrained")
    shown = [n for n in range(len(MEASURES)) if bool(torch.isfinite(found.history[..., n]).any())]
    columns = len(shown) + bool(polarities)
    panels = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for n, axes in zip(shown, panels, strict=False):
        title, values = _TITLES[n], found.history[..., n].T
        image = axes.imshow(
            values, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest"
        )
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("look", fontsize=8)
        axes.set_xticks([0, looks - 1] if looks > 1 else [0])
        axes.set_xticklabels(["first", "this"] if looks > 1 else ["this"], fontsize=7)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=12)
        bar.ax.tick_params(labelsize=7)
    if polarities:
        axes = panels[-1]
        for layer, (share, low, high) in polarities.items():
            axes.plot([low, high], [layer, layer], color="#0072B2", linewidth=1.5)
            axes.plot([share], [layer], "o", color="#0072B2", markersize=4)
        axes.axvline(0.5, color="#777777", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_title("polarity (right: upright)", fontsize=8)
        axes.tick_params(labelsize=7)
    every = max(1, -(-layers // 12))
    places = range(0, layers, every)
    panels[0].set_yticks(list(places))
    panels[0].set_yticklabels([f"{n} {found.names[n][-16:]}" for n in places], fontsize=7)
    return figure
