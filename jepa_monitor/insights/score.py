"""JEPA-SCORE of the probe: how high, how wide, how many singular values are clipped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors import ScoredSet
from jepa_monitor.insights._drawing import HIGH, LOW, for_display, is_drawable
from jepa_monitor.insights._statistics import finite_only, quantile_scalars
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.jacobian.spectrum import clipped_count
from jepa_monitor.jacobian.trust import SketchAgreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Score", "extremes", "plot_extremes", "plot_histogram"]

_INCH, _LEFT, _RIGHT = 1.0, 0.3, 0.06  # width of a shown image, room for words, margin; inches


class Score(Insight):
    """``jepa_score/*``, ``sketch/*``, the histograms of the scores, and the sheet of extreme images."""

    name = "score"
    rows = (
        Row(
            tuple(f"jepa_score/{name}" for name in ("mean", "std", "p05", "p50", "p95")),
            "mean, standard deviation and quantiles over the probe of Σ log max(σ_k, eps), σ the "
            "singular values of the encoder's input Jacobian (of the sketch's rows, if it is one)",
            "any",
            "no level; a trend that settles, a spread that stays",
            "the scale of the embeddings, the density that the encoder gives to the probe, lost "
            "directions",
            "R passes",
            "[JEPA-SCORE](https://arxiv.org/abs/2510.05949), app. B",
        ),
        Row(
            ("jepa_score/terms",),
            "singular values that a score sums: of the K rows (at most the numbers of an image), or of the "
            "R of a sketch; of an estimate, those of the score that it is of",
            "1 … K",
            "the same in all looks, and in runs that are compared",
            "a sketch that became wider, or all rows: scores of fewer terms are on another scale",
            "free",
            "see [sketches](sketching.md#can-this-sketch-be-trusted)",
        ),
        Row(
            ("jepa_score/clipped",),
            "singular values below eps, an image",
            "0 … R",
            "constant over images and time",
            "lost directions: each is worth −13.8 nats",
            "free",
            "the same",
        ),
        Row(
            ("jepa_score/below_noise_floor",),
            "singular values below 2 machine epsilons × σ₁, an image",
            "0 … R",
            "0",
            'ill-conditioned Jacobians: use `precision="float64"`',
            "free",
            "`noise_floor`",
        ),
        Row(
            (
                "sketch/correlation",
                "sketch/correlation_low",
                "sketch/correlation_high",
            ),
            "correlation of sketched or estimated with exact scores of 8 or 16 probe images, and the ends "
            "of its 95 % interval",
            "−1 … 1",
            "above 0.9",
            "a spread of the small singular values from image to image, which sketches do not see; "
            "`auto` then takes more rows, or all",
            "8 or 16 images with all rows",
            "`sketch_agreement`",
        ),
        Row(
            ("sketch/error", "sketch/spread", "sketch/rows"),
            "standard deviation of exact minus K/R times sketched scores of the same images, or minus "
            "estimates, and of the exact ones, in nats; and R",
            "≥ 0; ≥ 0; 1 … K",
            "error far below spread",
            "the same",
            "free",
            "`sketch_agreement`",
        ),
    )
    panels = (
        Panel(
            "density",
            "JEPA-SCORE: median, 5 % and 95 %",
            ("jepa_score/p50", "jepa_score/p05", "jepa_score/p95"),
            band=True,
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Summarise the scores.

        Args:
            look: What was gathered.

        Returns:
            ``jepa_score/*`` and, of a sketch, ``sketch/*``.
        """
        scalars = quantile_scalars("jepa_score", look.probe.scores)
        finite = torch.isfinite(look.probe.singular_values).all(1)
        values = look.probe.singular_values[finite]
        if finite.any():
            whole = min(look.probe.embeddings.shape[1], look.probe.images[0].numel())
            scalars["jepa_score/terms"] = float(values.shape[1] or whole)
        if values.numel():  # estimates have none
            below = (values < look.probe.noise_floors[finite, None]).sum(1)
            clipped = clipped_count(values, look.options.eps)
            scalars["jepa_score/clipped"] = clipped.double().mean().item()
            scalars["jepa_score/below_noise_floor"] = below.double().mean().item()
        return scalars | _agreement(look.agreement)

    def histograms(self, look: Look) -> dict[str, Tensor]:
        """Give the scores of every set.

        Args:
            look: What was gathered.

        Returns:
            Finite scores, (n,), by tag.
        """
        tags = {"probe": "jepa_score/scores", "reference": "jepa_score/scores_reference"}
        return {
            tags.get(name, f"{name}/scores"): finite_only(data.scores)
            for name, data in look.sets.items()
        }

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the sheet of images.

        Args:
            look: What was gathered.

        Returns:
            ``jepa_score/least_and_most_likely``, where the inputs are images.
        """
        if not (is_drawable(look.probe.images) and len(extremes(look.probe.scores, 1)[0])):
            return {}
        return {"jepa_score/least_and_most_likely": plot_extremes(look.probe)}


def _agreement(found: SketchAgreement | None) -> dict[str, float]:
    if found is None:
        return {}
    scalars = {
        "sketch/correlation": found.correlation,
        "sketch/correlation_low": found.lower,
        "sketch/correlation_high": found.upper,
        "sketch/error": found.error,
        "sketch/spread": found.spread,
        "sketch/rows": float(found.rows),
    }
    return {tag: value for tag, value in scalars.items() if math.isfinite(value)}


def extremes(scores: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """Find the lowest and the highest scores.

    Args:
        scores: (B,); what is not finite is left out.
        count: How many of each; fewer where there are fewer.

    Returns:
        Indices of the lowest, lowest first, and of the highest, highest first.
    """
    order = scores.argsort(stable=True)
    order = order[torch.isfinite(scores[order])]
    return order[:count], order.flip(0)[:count]


def plot_extremes(data: ScoredSet, count: int = 8) -> Figure:
    """Draw the least likely images above the most likely ones, each with its score.

    Args:
        data: Scored images.
        count: How many images a row.

    Returns:
        The figure.

    Raises:
        ValueError: If the inputs are no images or no score is finite.
    """
    from matplotlib.figure import Figure

    if not is_drawable(data.images):
        raise ValueError(
            "`data` must hold images (B, C, H, W) with 1 or 3 channels to be drawn, got "
            f"{tuple(data.images.shape)}."
        )
    rows = extremes(data.scores, count)
    columns = len(rows[0])
    if not columns:
        raise ValueError("`data` must hold a finite score to be drawn, got none.")
    pictures = for_display(data.images)
    height, width, channels = pictures.shape[1:]
    gap, head = max(1, width // 12), max(1, width // 5)
    # One axes for all: sixteen take four times as long to draw as everything in them.
    sheet = torch.ones(2 * (head + height), columns * (width + gap) - gap, channels)
    across, down = (_INCH * n / width for n in (sheet.shape[1], sheet.shape[0]))
    # Not pyplot: it would keep the figure, and switch the user's backend.
    figure = Figure(figsize=(_LEFT + across + _RIGHT, down + _RIGHT))
    total = figure.get_size_inches()
    place = (_LEFT / total[0], _RIGHT / total[1], across / total[0], down / total[1])
    axes = figure.add_axes(place, frameon=False, xticks=[], yticks=[])
    for row, (name, color) in enumerate((("least", LOW), ("most", HIGH))):
        top = row * (head + height) + head
        for column, index in enumerate(rows[row].tolist()):
            left = column * (width + gap)
            sheet[top : top + height, left : left + width] = pictures[index]
            axes.text(left + width / 2, top - 0.2 * head, f"{data.scores[index]:.1f}", size=9,
                      color=color, ha="center")  # fmt: skip
        axes.text(-gap, top + height / 2, f"{name} likely", size=10, color=color, rotation=90,
                  ha="right", va="center")  # fmt: skip
    span = (0, sheet.shape[1], sheet.shape[0], 0)
    axes.imshow(sheet.numpy(), cmap="gray", interpolation="nearest", extent=span, vmin=0, vmax=1)
    return figure


def plot_histogram(scores: Tensor, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the distribution of scores.

    Args:
        scores: Finite scores, (N,).
        ax: Axes to draw into; default: a new figure.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=(5, 3), layout="constrained").subplots()
    ax.hist(scores.cpu().numpy(), bins="auto", color=HIGH)
    ax.set(xlabel="JEPA-SCORE (nats)", ylabel="images")
    ax.spines[["top", "right"]].set_visible(False)
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    return figure, ax
