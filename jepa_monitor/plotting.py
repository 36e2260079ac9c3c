"""Pictures: in go reports and scores, out come matplotlib figures sized for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jepa_monitor.report import Report

__all__ = ["is_drawable", "plot_extremes", "plot_histogram"]

LOW, HIGH = "#D55E00", "#0072B2"  # Okabe and Ito's vermilion and blue: apart for all eyes


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

    if not is_drawable(report.images):
        raise ValueError(
            "`report` must hold images (B, C, H, W) with 1 or 3 channels to be drawn, got "
            f"{tuple(report.images.shape)}."
        )
    rows = report.extremes(count)
    columns = len(rows[0])
    if not columns:
        raise ValueError("`report` must hold a finite score to be drawn, got none.")
    pictures = _for_display(report.images)
    # Not pyplot: it would keep the figure, and switch the user's backend.
    figure = Figure(figsize=(0.4 + 1.1 * columns, 2.9), layout="constrained")
    for row, (axes, name, color) in enumerate(
        zip(figure.subplots(2, columns, squeeze=False), ("least", "most"), (LOW, HIGH), strict=True)
    ):
        for axis, index in zip(axes, rows[row].tolist(), strict=True):
            axis.imshow(pictures[index].numpy(), cmap="gray", interpolation="nearest")
            axis.set_title(f"{report.scores[index]:.1f}", fontsize=9, color=color, pad=3)
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
