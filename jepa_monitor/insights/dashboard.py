"""Lay out TensorBoard's custom-scalars page: in go the panels of insights, out comes its layout.

That page draws all lines of a run in one colour and names none of them, so that a chart has one line wherever its
tags are known beforehand, beside the ends of what is healthy, and the chart's title names it. Bands are told apart by their shade.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jepa_monitor.insights.base import Insight

__all__ = ["FIRST_PAGES", "dashboard"]

FIRST_PAGES = ("advice", "quality", "collapse", "outliers")  # the others follow as they come
_CHOICE = re.compile(r"([^()|]*)\(([\w|]+)\)([^()|]*)")


def dashboard(
    insights: Iterable[Insight], prefix: str = "", known: Iterable[str] = ()
) -> dict[str, dict[str, list[Any]]]:
    """Gather the panels of insights, page by page, those that matter most first.

    Args:
        insights: Whose panels.
        prefix: Of all tags and pages.
        known: Tags of the first look, without prefix. Pages of which none is there may fill later, and
            come last.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """
    panels = [panel for insight in insights for panel in insight.panels]
    tags = list(known)
    filled = {p.page for p in panels if any(re.match(tag, t) for tag in p.tags for t in tags)}
    pages = list(dict.fromkeys((*FIRST_PAGES, *(panel.page for panel in panels))))
    pages.sort(key=lambda page: bool(filled) and page not in filled)
    layout: dict[str, dict[str, list[Any]]] = {}
    for panel in sorted(panels, key=lambda panel: pages.index(panel.page)):
        charts = layout.setdefault(f"{prefix}{panel.page}", {})
        if panel.band:
            charts[panel.title] = ["Margin", [prefix + tag for tag in panel.tags]]
            continue
        # Where what is healthy ends is a line of its own in each chart, flat or nearly so.
        ends = [f"{end}$" for end in panel.healthy if isinstance(end, str)]
        lines = [line for tag in panel.tags for line in _lines(tag) if line not in ends]
        for line in lines:
            title = panel.title if len(lines) == 1 else f"{_name(line)}: {panel.title}"
            charts[title] = ["Multiline", [prefix + each for each in (line, *ends)]]
    return layout


def _lines(pattern: str) -> list[str]:
    """Write a choice between tags as one pattern each."""
    found = _CHOICE.fullmatch(pattern)
    if found is None:
        return [pattern]
    begin, words, end = found.groups()
    return [f"{begin}{word}{end or '$'}" for word in words.split("|")]


def _name(line: str) -> str:
    """Name a line by the last word of its tag; a pattern of many tags is *others*."""
    word = line.rpartition("/")[2].removesuffix("$").removesuffix("_relative")
    return word.replace("_", " ") if re.fullmatch(r"\w+", word) else "others"
