"""One picture that says it all: in go the looks of a run, out come words, small curves and images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.insights import Insight, Look, Panel
from jepa_monitor.insights._drawing import HIGH, LOW, for_display, is_drawable
from jepa_monitor.insights.score import extremes
from jepa_monitor.monitor.cause import REPEATED_PAIRS
from jepa_monitor.monitor.panels import shown_panels
from jepa_monitor.monitor.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["plot_overview"]

_COLUMNS = 4
_MOST = 19  # panels of curves
_HEAD, _WORDS, _WIDE = 1.3, 5, 155  # inches of the verdict; lines and letters of its sentences
_SHOWN = 4  # images of each end
_LINES = (HIGH, LOW, "#009E73", "#CC79A7")  # Okabe and Ito's
_MARKERS = "os^D"
_BAND, _SICK = "#DDEBF5", "#F9DDCC"

Looks = Sequence[Mapping[str, float]]


def plot_overview(
    look: Look,
    insights: Iterable[Insight],
    verdict: Verdict,
    looks: Looks,
    spectra: Mapping[int, Tensor] | None = None,
) -> Figure:
    """Draw the verdict, the panels of all insights over the steps, the spectra and the images.

    Args:
        look: The last one.
        insights: Whose panels.
        verdict: What the last look says.
        looks: The scalars of all looks, by tag without prefix, each with its ``step``.
        spectra: Mean log singular values, (r,), by step; default: that of the last look.

    Returns:
        The figure, 8 inches wide.
    """
    from matplotlib.figure import Figure

    known = dict.fromkeys(tag for look in looks for tag in look)
    offered = (panel for insight in insights for panel in insight.panels)
    panels = [each for each in shown_panels(offered, known) if _matters(each[1], looks)][:_MOST]
    pictures = is_drawable(look.probe.images) and len(extremes(look.probe.scores, 1)[0]) > 0
    cells = len(panels) + 1
    rows = -(-(cells + pictures) // _COLUMNS)
    figure = Figure(figsize=(8, _HEAD + 1.45 * rows), facecolor="white", dpi=100)
    height = figure.get_figheight()
    color = LOW if verdict.alarming else HIGH
    sign = "▲" if verdict.alarming else "●"
    figure.text(0.012, 1 - 0.08 / height, f"{sign} {verdict.headline}", size=15, weight="bold",
                color=color, va="top")  # fmt: skip
    words = "\n".join(_fitting(verdict.sentences))
    figure.text(0.013, 1 - 0.4 / height, words, size=7.3, va="top", linespacing=1.25)
    grid = figure.add_gridspec(
        rows, _COLUMNS, left=0.045, right=0.985, bottom=0.28 / height, top=1 - (_HEAD + 0.05) / height,
        hspace=0.62, wspace=0.26,
    )  # fmt: skip
    places = [figure.add_subplot(grid[n // _COLUMNS, n % _COLUMNS]) for n in range(cells)]
    sick = _sick(looks)
    for axes, (panel, tags) in zip(places, panels, strict=False):
        _curves(axes, panel, tags, looks)
        for start, end in sick:
            axes.axvspan(start, end, color=_SICK, zorder=0.5, linewidth=0)
    _spectra(places[-1], look, spectra)
    if pictures:  # what is left of the last row
        first = cells % _COLUMNS
        _images(figure.add_subplot(grid[-1, first:]), look, beside=first < _COLUMNS - 1)
    return figure


def _matters(tags: Sequence[str], looks: Looks) -> bool:
    """Whether a panel is worth its place: that of training images that repeat only if they do."""
    return tags != ["data/duplicates"] or any(
        look.get("data/duplicates", 0.0) >= REPEATED_PAIRS for look in looks
    )


def _fitting(sentences: Sequence[str]) -> list[str]:
    """Break into lines as many whole sentences as there is room for, the first first."""
    said = list(sentences)
    while said and len(lines := textwrap.wrap(" ".join(said), _WIDE)) > _WORDS:
        said.pop()
    if not said:
        return textwrap.wrap(" ".join(sentences), _WIDE)[:_WORDS]
    return lines


def _sick(looks: Looks) -> list[tuple[float, float]]:
    """Between which steps the embeddings were not healthy: from look to look."""
    known = [(look["step"], look["collapse/state"]) for look in looks if "collapse/state" in look]
    return [
        (start, end)
        for (start, state), (end, following) in pairwise(known)
        if min(state, following) > 0
    ]


def _values(looks: Looks, tag: str) -> tuple[list[float], list[float]]:
    points = [(look["step"], look[tag]) for look in looks if tag in look]
    return [step for step, _ in points], [value for _, value in points]


def _curves(axes: Axes, panel: Panel, tags: list[str], looks: Looks) -> None:
    if panel.band:
        steps, middle = _values(looks, tags[0])
        lower, upper = (_values(looks, tag)[1] for tag in tags[1:])
        axes.fill_between(steps, lower, upper, color=HIGH, alpha=0.25, linewidth=0)
        axes.plot(steps, middle, color=HIGH, linewidth=1.2, marker="." if len(steps) < 3 else "")
    else:
        for tag, color, marker in zip(tags, _LINES, _MARKERS, strict=False):
            steps, values = _values(looks, tag)
            name = tag.rpartition("/")[2].removesuffix("_relative") if len(tags) > 1 else None
            axes.plot(steps, values, color=color, linewidth=1.2, marker=marker, markersize=2.5,
                      markevery=[-1], label=name)  # fmt: skip
    low, high = axes.get_ylim()
    ends = [_end(looks, end, sight) for end, sight in zip(panel.healthy, (low, high), strict=True)]
    if panel.healthy != (None, None) and ends[0] < ends[1]:
        low, high = min(low, ends[0]), max(high, ends[1])
        axes.axhspan(ends[0], ends[1], color=_BAND, zorder=0, linewidth=0)
    named = len(tags) > 1 and not panel.band
    axes.set_ylim(low, high + 0.4 * named * (high - low))  # room for the names of the lines
    _frame(axes, panel.title)
    if named:
        axes.legend(
            fontsize=5,
            frameon=False,
            loc="upper left",
            ncols=2,
            handlelength=1,
            labelspacing=0.2,
            borderpad=0.1,
            handletextpad=0.4,
            columnspacing=0.8,
        )


def _end(looks: Looks, end: float | str | None, sight: float) -> float:
    """Find where a healthy band ends: where it is said, at the last look, or out of sight."""
    if isinstance(end, str):
        values = _values(looks, end)[1]
        return values[-1] if values else sight
    return sight if end is None else end


def _frame(axes: Axes, title: str) -> None:
    _title(axes, "\n".join(textwrap.wrap(title, 34)))
    axes.tick_params(labelsize=5.5, length=2, pad=1.5, width=0.5)
    axes.locator_params(nbins=4)
    axes.ticklabel_format(axis="both", useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.5)


def _title(axes: Axes, words: str) -> None:
    # Told where it is: matplotlib otherwise draws all the ticks to find out whether they are above.
    axes.set_title(words, fontsize=6.5, pad=2, loc="left", y=1.0)


def _spectra(axes: Axes, look: Look, spectra: Mapping[int, Tensor] | None) -> None:
    from matplotlib import colormaps

    if spectra is None:
        values = look.probe.singular_values
        values = values[torch.isfinite(values).all(1)]
        eps = look.options.eps
        spectra = {0: values.clamp_min(eps).log().mean(0)} if values.numel() else {}
    last = max(spectra, default=0)
    for step, logs in sorted(spectra.items()):
        shade = colormaps["viridis"](0.9 * (1 - step / max(last, 1)))
        axes.plot(range(1, len(logs) + 1), logs.numpy(), color=shade, linewidth=1.2)
    _frame(axes, "mean log σₖ over k, dark: last")


def _images(axes: Axes, look: Look, beside: bool) -> None:
    """The least likely images, and the most likely ones beside or below them."""
    shown = for_display(look.probe.images)
    low, high = (torch.cat(list(shown[index]), 1) for index in extremes(look.probe.scores, _SHOWN))
    gap = max(1, shown.shape[1] // 8)
    space = torch.ones(*((low.shape[0], gap) if beside else (gap, low.shape[1])), low.shape[2])
    sheet = torch.cat([low, space, high], 1 if beside else 0)
    # As many pixels as there is room for: more are only bytes.
    scale = max(1, math.ceil(sheet.shape[1] / (160 * (1 + beside))))
    axes.imshow(sheet[::scale, ::scale].numpy(), cmap="gray", interpolation="nearest")
    _title(axes, "least likely, most likely")
    axes.set_anchor("NW")
    axes.set_axis_off()
