"""Metrics in the manner of torchmetrics."""

from jepa_monitor.metrics.jepa_score import JepaScore

__all__ = ["JepaScore"]
