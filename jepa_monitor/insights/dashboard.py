"""Lay out TensorBoard's custom-scalars page: in go the panels of insights, out comes its layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jepa_monitor.insights.base import Insight

__all__ = ["dashboard"]


def dashboard(insights: Iterable[Insight], prefix: str = "") -> dict[str, dict[str, list[Any]]]:
    """Gather the panels of insights, page by page in the order of the insights.

    Args:
        insights: Whose panels.
        prefix: Of all tags and pages.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    for insight in insights:
        for panel in insight.panels:
            kind = "Margin" if panel.band else "Multiline"
            tags = [prefix + tag for tag in panel.tags]
            layout.setdefault(f"{prefix}{panel.page}", {})[panel.title] = [kind, tags]
    return layout
