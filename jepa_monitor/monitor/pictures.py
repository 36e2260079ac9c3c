"""Pictures: in go reports and scores, out come matplotlib figures sized for TensorBoard."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.calibration import coverage_curve, hdr_pit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jepa_monitor.monitor.report import Report

__all__ = [
    "is_drawable",
    "plot_extremes",
    "plot_histogram",
    "plot_reliability",
    "plot_score_and_distance",
    "plot_spectra",
]

# Okabe and Ito's colours, which are apart for all eyes.
LOW, HIGH, MUTED = "#D55E00", "#0072B2", "#777777"
OOD_COLORS = [LOW, "#009E73", "#CC79A7", "#E69F00"]


def is_drawable(images: Tensor) -> bool:
    """Tell whether inputs can be shown as pictures.

    Args:
        images: (B, ...).

    Returns:
        Whether they are (B, C, H, W) with 1 or 3 channels.
    """
    return images.ndim == 4 and images.shape[1] in (1, 3)


def _for_display(images: Tensor) -> Tensor:
    """Undo an unknown normalisation: stretch the set's range of each channel to [0, 1]."""
    low = images.amin((0, 2, 3), keepdim=True)
    high = images.amax((0, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp_min(1e-12)).permute(0, 2, 3, 1)


def plot_extremes(report: Report, count: int = 8) -> Figure:
    """Draw the least likely images above the most likely ones, each with its score.

    Args:
        report: An evaluation.
        count: How many images a row.

    Returns:
        The figure.

    Raises:
        ValueError: If the inputs are no images or no score is finite.
    """
    from matplotlib.figure import Figure

    if not is_drawable(report.probe.images):
        raise ValueError(
            "`report` must hold images (B, C, H, W) with 1 or 3 channels to be drawn, got "
            f"{tuple(report.probe.images.shape)}."
        )
    rows = report.extremes(count)
    columns = len(rows[0])
    if not columns:
        raise ValueError("`report` must hold a finite score to be drawn, got none.")
    pictures = _for_display(report.probe.images)
    # Not pyplot: it would keep the figure, and switch the user's backend.
    figure = Figure(figsize=(0.4 + 1.1 * columns, 2.9), layout="constrained")
    for row, (axes, name, color) in enumerate(
        zip(figure.subplots(2, columns, squeeze=False), ("least", "most"), (LOW, HIGH), strict=True)
    ):
        for axis, index in zip(axes, rows[row].tolist(), strict=True):
            axis.imshow(pictures[index].numpy(), cmap="gray", interpolation="nearest")
            axis.set_title(f"{report.probe.scores[index]:.1f}", fontsize=9, color=color, pad=3)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(f"{name} likely", fontsize=10, color=color)
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


def plot_reliability(report: Report) -> Figure:
    """Draw how often the law of the embeddings covers held-out images, against how often it says.

    Args:
        report: An evaluation with a reference.

    Returns:
        The figure; the band is the 95 % interval of each point.

    Raises:
        ValueError: If there is no reference or no finite embedding.
    """
    from matplotlib.figure import Figure

    embeddings = report.probe.finite_embeddings
    if report.law is None or not len(embeddings):
        raise ValueError("`report` must have a reference and a finite embedding for this plot.")
    curve = coverage_curve(hdr_pit(embeddings, report.law))
    level, coverage, lower, upper = (values.numpy() for values in curve)
    figure = Figure(figsize=(4.2, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    axes.fill_between(level, lower, upper, color=HIGH, alpha=0.2, linewidth=0)
    axes.plot(level, coverage, color=HIGH, marker="o", markersize=3.5)
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
    for x, y, words, side in ((0.03, 0.97, "more", "left"), (0.97, 0.11, "less", "right")):
        text = f"covers {words}\nthan it says"
        axes.text(x, y, text, color=MUTED, fontsize=8, ha=side, va="top", bbox=box)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="nominal coverage of the law",
        ylabel=f"held-out images covered (N = {len(embeddings)})",
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_score_and_distance(report: Report) -> Figure:
    """Draw the two terms of the log-density against each other, one colour a set.

    Args:
        report: An evaluation with a reference.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no reference.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if report.law is None or report.reference is None:
        raise ValueError("`report` must have a reference for this plot.")
    sets = {"reference": report.reference, **report.ood, "probe": report.probe}
    colors = {"reference": MUTED, "probe": HIGH} | dict(
        zip(report.ood, OOD_COLORS * 9, strict=False)
    )
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    for (name, data), marker in zip(sets.items(), "o^vsDPX*" * 3, strict=False):
        embeddings = data.embeddings[: len(data.scores)].double()
        finite = torch.isfinite(data.scores) & torch.isfinite(embeddings).all(1)
        distance = report.law.mahalanobis_squared(embeddings[finite]) / report.law.width
        axes.scatter(
            distance.numpy(),
            data.scores[finite].numpy(),
            s=16,
            marker=marker,
            color=colors[name],
            alpha=0.75,
            linewidths=0,
            label=name,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="squared Mahalanobis distance / K", ylabel="JEPA-SCORE (nats)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_spectra(spectra: dict[int, Tensor], eps: float) -> Figure:
    """Draw how the spectrum of the Jacobian moves over training, one curve an evaluation.

    Args:
        spectra: Mean log singular values of an evaluation, (r,), descending, by step.
        eps: The clipping value, drawn as a line where it is in sight.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no spectra.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if not spectra:
        raise ValueError("`spectra` must hold at least one spectrum, got none.")
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"]
    last = max(spectra)
    for step, logs in sorted(spectra.items()):
        color = shades(0.9 * (1 - step / max(last, 1)))
        ends = step in (min(spectra), last)
        label = f"step {step}" if ends else None
        axes.plot(
            range(1, len(logs) + 1), logs.numpy(), color=color, label=label, linewidth=1 + ends
        )
    floor = math.log(eps)
    if min(float(logs.min()) for logs in spectra.values()) < floor + 2:
        axes.axhline(floor, color=LOW, linewidth=1, linestyle=":", label="clipping value")
    axes.set(xlabel="k", ylabel="mean of log σₖ over the probe")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
