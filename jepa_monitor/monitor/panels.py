"""Which charts a run has: in go the panels of insights and the tags that there are, out come panels with tags."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jepa_monitor.insights import Panel
from jepa_monitor.insights.dashboard import FIRST_PAGES

__all__ = ["MOST_LINES", "shown_panels"]

MOST_LINES = 4  # in a chart: more cannot be told apart


def shown_panels(panels: Iterable[Panel], tags: Iterable[str]) -> list[tuple[Panel, list[str]]]:
    """Find the tags of each panel, what matters most first.

    Args:
        panels: In the order of their insights.
        tags: Those that there are, without prefix.

    Returns:
        The panels of which there are tags, each with these, page by page.
    """
    known = list(dict.fromkeys(tags))
    found = []
    for panel in panels:
        if panel.band:
            shown = [tag for tag in panel.tags if tag in known]
            shown = shown if len(shown) == len(panel.tags) else []
        else:
            shown = list(dict.fromkeys(t for p in panel.tags for t in known if re.match(p, t)))
        if shown:
            found.append((panel, shown[: 3 if panel.band else MOST_LINES]))
    pages = list(dict.fromkeys((*FIRST_PAGES, *(panel.page for panel, _ in found))))
    return sorted(found, key=lambda each: pages.index(each[0].page))
