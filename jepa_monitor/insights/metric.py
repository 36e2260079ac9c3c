"""Metrics of torchmetrics as insights: in go the probe's embeddings, out come what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jepa_monitor.insights.base import Insight
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

__all__ = ["MetricInsight"]


class MetricInsight(Insight):
    """Whatever a metric computes from embeddings, under ``metrics/<name>``.

    The metric gets the finite embeddings of the probe, (n, K), in one update. Each look has a fresh
    copy: the metric given stays as it is, and accumulates nothing.

    Args:
        metric: Its ``update`` takes embeddings, (n, K); ``compute`` returns a number, or numbers
            by name, which become ``metrics/<name>_<field>`` (of a MetricCollection: of each metric).
        name: In the tags; default: the name of the metric's class.

    Example:
        >>> import torch
        >>> from jepa_monitor import DensityMonitor
        >>> from jepa_monitor.metrics import EffectiveRank
        >>> monitor = DensityMonitor(torch.eye(6), insights=[EffectiveRank(6)])
        >>> round(monitor.evaluate(lambda x: 2 * x).scalars["metrics/EffectiveRank"], 3)
        5.0
    """

    def __init__(self, metric: Metric | MetricCollection, name: str | None = None) -> None:
        self.metric = metric
        self.name = type(metric).__name__ if name is None else name

    def scalars(self, look: Look) -> dict[str, float]:
        """Compute the metric.

        Args:
            look: What was gathered.

        Returns:
            Numbers by tag.
        """
        metric = self.metric.clone().to("cpu")
        metric.reset()
        # Every process has all embeddings: a sync would count each as often as there are processes.
        part: Any
        for part in metric.modules():
            if hasattr(part, "distributed_available_fn"):
                part.distributed_available_fn = _alone
        metric.update(look.probe.finite_embeddings)
        return _flatten(f"metrics/{self.name}", metric.compute())


def _alone() -> bool:
    return False


def _flatten(tag: str, found: Any) -> dict[str, float]:
    if hasattr(found, "_asdict"):
        found = found._asdict()
    if not isinstance(found, Mapping):
        return {tag: float(found)}
    return {
        inner: number
        for name, value in found.items()
        for inner, number in _flatten(f"{tag}_{name}", value).items()
    }
