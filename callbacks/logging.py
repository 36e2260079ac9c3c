"""Write a report: in go loggers, a report and a step, out come curves, histograms and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from jepa_monitor.report import Report

__all__ = ["log_report"]

_BINS = 64


def _add_histogram(writer: Any, tag: str, values: Tensor, step: int) -> None:
    numbers = values.double().cpu().numpy()
    if len(numbers):
        # Linear bins: TensorBoard's own are exponential and put scores around −300 into one.
        low, high = numbers.min(), numbers.max()
        width = max(high - low, 1e-6 * max(1.0, abs(high)))
        writer.add_histogram(tag, numbers, step, bins=np.linspace(low, low + width, _BINS + 1))


def log_report(loggers: Iterable[Any], report: Report, step: int) -> None:
    """Write an evaluation to every logger: numbers to all, pictures to those that take them.

    Args:
        loggers: Lightning's loggers.
        report: The evaluation.
        step: The x-coordinate.
    """
    for logger in loggers:
        logger.log_metrics(report.scalars, step=step)
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_histogram"):
            for tag, values in report.histograms.items():
                _add_histogram(writer, tag, values, step)
        if hasattr(writer, "add_figure"):
            for tag, figure in report.figures().items():
                writer.add_figure(tag, figure, step, close=False)
