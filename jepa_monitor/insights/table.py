"""The table of tags in ``docs/metrics.md``: in go the rows of insights, out comes Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.registry import INSIGHTS, default_insights

__all__ = ["all_insights", "render_table", "tag_pattern"]

_HEADS = ("Tag", "What it is", "Range", "Healthy", "What moves it", "Cost", "Source")


def all_insights() -> list[Insight]:
    """Give every insight of the package.

    Returns:
        The ones that are always there, and those that are asked for by name.
    """
    return [*default_insights(1), *INSIGHTS.values()]


def tag_pattern(tag: str) -> re.Pattern[str]:
    """Make the pattern of the tags that a row's tag stands for.

    Args:
        tag: With ``<...>`` for any name.

    Returns:
        What the whole tag must match.
    """
    parts = re.split(r"<\w+>", tag)
    return re.compile("[^/]+?".join(re.escape(part) for part in parts))


def render_table(rows: Iterable[Row]) -> str:
    """Write rows as a table.

    Args:
        rows: What tags mean.

    Returns:
        Markdown, each line with its end.
    """
    lines = [_HEADS, ("---",) * len(_HEADS), *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n".replace("  |", " |") for cells in lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        _short(row.tags),
        row.what,
        row.range,
        row.healthy,
        row.moved_by,
        row.cost,
        row.source,
    )


def _short(tags: tuple[str, ...]) -> str:
    """Leave out of a tag what it shares with the first: the group, or all but its last word."""
    first, *others = tags
    group = first.rpartition("/")[0]
    words = all(tag.startswith(f"{first}_") for tag in others)
    shown = [first, *(tag.removeprefix(first if words else group) for tag in others)]
    return ", ".join(f"`{tag}`" for tag in shown)
