"""Leverage: on which pixels do the scores of the least and the most likely images rest?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa_monitor.insights._drawing import HIGH, LOW, for_display, is_drawable
from jepa_monitor.insights.base import Insight
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.insights.score import extremes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jepa_monitor.detectors import ScoredSet
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["ExtremeMaps", "Leverage", "plot_leverages"]

_BRIGHT = 0.995  # quantile of all pixels that is as bright as can be


class _Maps(NamedTuple):
    least: Tensor  # indices in the probe, the lowest score first
    most: Tensor
    maps: dict[int, Tensor]  # (H, W) by index


@dataclass(frozen=True)
class ExtremeMaps(Part[_Maps]):
    """Leverage maps of the least and the most likely images of the probe.

    Args:
        count: How many of each; fewer where there are fewer.
    """

    count: int

    source = "images (B, C, H, W) of 1 or 3 channels, with finite scores"
    of_images = True

    def gather(self, at: Gatherer) -> _Maps | None:
        """Take the Jacobians of these images once more.

        Args:
            at: What the monitor has.

        Returns:
            The maps, or ``None`` if the inputs are no images.
        """
        least, most = extremes(at.probe.scores, self.count)
        if not is_drawable(at.probe.images) or not len(least):
            return None
        chosen = sorted({*least.tolist(), *most.tolist()})
        maps = at.leverages(at.probe.images[chosen])
        return _Maps(least, most, dict(zip(chosen, maps, strict=True)))


class Leverage(Insight):
    """The figure ``leverage/least_and_most_likely``: the images, and on which pixels they are scored.

    Args:
        count: How many images at either end; each costs as many backward passes as its score.
    """

    name = "leverage"

    def __init__(self, count: int = 4) -> None:
        self.part = ExtremeMaps(count)
        self.needs = (self.part,)

    def scalars(self, look: Look) -> dict[str, float]:
        """Give no numbers: a map is a picture.

        Args:
            look: What was gathered.

        Returns:
            Nothing.
        """
        del look
        return {}

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the maps beside the images.

        Args:
            look: What was gathered.

        Returns:
            ``leverage/least_and_most_likely``.
        """
        return {"leverage/least_and_most_likely": plot_leverages(look.probe, look[self.part])}


def plot_leverages(data: ScoredSet, found: _Maps) -> Figure:
    """Draw the least likely images above the most likely ones, each beside its leverage map.

    One scale for all: how much more than its share of an even map a pixel has.

    Args:
        data: Scored images.
        found: Maps of some of them.

    Returns:
        The figure.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pictures = for_display(data.images)
    shares = {index: map_ / map_.mean().clamp_min(1e-300) for index, map_ in found.maps.items()}
    every = torch.cat([share.flatten() for share in shares.values()]).sort().values
    scale = Normalize(0.0, max(2.0, every[round(_BRIGHT * (len(every) - 1))].item()))
    columns = len(found.least)
    figure = Figure(figsize=(1.2 + 2.5 * columns, 3.3), layout="constrained")
    grid = figure.subplots(2, 2 * columns, squeeze=False)
    for row, (indices, name, color) in enumerate(
        ((found.least, "least", LOW), (found.most, "most", HIGH))
    ):
        for column, index in enumerate(indices.tolist()):
            left, right = grid[row, 2 * column : 2 * column + 2]
            left.imshow(pictures[index].numpy(), cmap="gray", interpolation="nearest")
            right.imshow(shares[index].numpy(), cmap="viridis", norm=scale, interpolation="nearest")
            left.set_title(f"{data.scores[index]:.1f}", fontsize=9, color=color, pad=3)
        for axis in grid[row]:
            axis.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(f"{name} likely", fontsize=10, color=color)
    bar = figure.colorbar(
        ScalarMappable(scale, "viridis"),
        ax=grid.ravel().tolist(),
        extend="max",
        shrink=0.9,
        pad=0.01,
    )
    bar.set_label("leverage, as a multiple\nof an even map's", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure
