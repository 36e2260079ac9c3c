"""All insights by name, and how to choose some: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from jepa_monitor.insights.alignment import Alignment
from jepa_monitor.insights.attention import AttentionWeights
from jepa_monitor.insights.base import Insight
from jepa_monitor.insights.clusters import Clusters
from jepa_monitor.insights.collapse import Collapse
from jepa_monitor.insights.contrast import Contrast
from jepa_monitor.insights.dimension import Dimension
from jepa_monitor.insights.ema import Ema
from jepa_monitor.insights.generalisation import Generalisation
from jepa_monitor.insights.generalist import AgainstGeneralist
from jepa_monitor.insights.groups import GroupKnowledge
from jepa_monitor.insights.identifiability import Identifiability
from jepa_monitor.insights.law import Law
from jepa_monitor.insights.layers import LayerWise
from jepa_monitor.insights.leverage import Leverage
from jepa_monitor.insights.lidar import Lidar
from jepa_monitor.insights.log_density import LogDensity
from jepa_monitor.insights.mae import Influence
from jepa_monitor.insights.metric import MetricInsight
from jepa_monitor.insights.neighbors import Neighbors
from jepa_monitor.insights.ood import OutOfDistribution
from jepa_monitor.insights.outliers import Outliers
from jepa_monitor.insights.parts import LABELS
from jepa_monitor.insights.perception import Perception
from jepa_monitor.insights.polarity import Polarity, SeverityOrder
from jepa_monitor.insights.quality import Quality
from jepa_monitor.insights.score import Score
from jepa_monitor.insights.separation import Separation
from jepa_monitor.insights.spectrum import Spectrum
from jepa_monitor.insights.tasks import Tasks
from jepa_monitor.insights.text_pairs import TextPairs
from jepa_monitor.insights.tokens import TokenHealth
from jepa_monitor.insights.views import Consistency
from jepa_monitor.insights.world import WorldModel

__all__ = ["INSIGHTS", "choose_insights", "default_insights"]

INSIGHTS: Mapping[str, Insight] = MappingProxyType(
    {
        found.name: found
        for found in (
            Alignment(),
            Tasks(),
            Separation(),
            Neighbors(),
            Identifiability(),
            AgainstGeneralist(),
            Leverage(),
            Dimension(),
            Lidar(),
            TokenHealth(),
            LayerWise(),
            SeverityOrder(),
            Influence(),
            AttentionWeights(),
            Perception(),
        )
    }
)


def default_insights(polarity_samples: int) -> tuple[Insight, ...]:
    """Give the insights that every monitor has.

    Args:
        polarity_samples: How many images to score again in worse versions; 0 for none.

    Returns:
        The insights.
    """
    polarity = (Polarity(polarity_samples),) if polarity_samples else ()
    return (
        Score(),
        Contrast(),
        LogDensity(),
        Spectrum(),
        Law(),
        Generalisation(),
        *polarity,
        Collapse(),
        Quality(),
        GroupKnowledge(),
        Consistency(),
        Clusters(),
        Ema(),
        TextPairs(),
        WorldModel(),
        Outliers(),
        OutOfDistribution(),
    )


def choose_insights(insights: Any, labels: Any = None) -> tuple[Insight, ...]:
    """Find the insights that were asked for, and check that they can be had.

    Args:
        insights: Names in :data:`INSIGHTS`, insights, and metrics of torchmetrics over embeddings.
        labels: ``None`` if there are none.

    Returns:
        The insights.

    Raises:
        TypeError: If it is no collection of those.
        ValueError: If a name is unknown or taken, or an insight needs labels and there are none.
    """
    if isinstance(insights, str) or not isinstance(insights, Iterable):
        raise TypeError(f"`insights` must be a collection of names, got {insights!r}.")
    chosen: dict[str, Insight] = {found.name: found for found in default_insights(1)}
    defaults = len(chosen)
    for asked in insights:
        found = _find(asked)
        if found.name in chosen:
            if found is chosen[found.name]:
                continue  # named twice
            raise ValueError(
                f"`insights` must have different names, got another {found.name!r} "
                f"({type(found).__name__}): give it a name of its own."
            )
        if LABELS in found.needs and labels is None:
            raise ValueError(f"`insights` names {found.name!r}, which needs `labels`, got None.")
        chosen[found.name] = found
    return tuple(chosen.values())[defaults:]


def _find(asked: Any) -> Insight:
    if isinstance(asked, str):
        if asked not in INSIGHTS:
            raise ValueError(f"`insights` must be among {', '.join(INSIGHTS)}, got {asked!r}.")
        return INSIGHTS[asked]
    if isinstance(asked, type):
        raise TypeError(
            f"`insights` must hold objects, got the class {asked.__name__}: make one of it."
        )
    if isinstance(asked, Insight):
        if not isinstance(getattr(asked, "name", None), str) or not asked.name:
            raise ValueError(f"`insights` must have names, got {type(asked).__name__} without one.")
        return asked
    if all(callable(getattr(asked, name, None)) for name in ("update", "compute", "reset")):
        return MetricInsight(asked)
    raise TypeError(
        "`insights` must hold names, insights and torchmetrics metrics, got "
        f"{type(asked).__name__}."
    )
