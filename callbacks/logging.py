"""Write a report: in go loggers, a report and a step, out come curves, histograms and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from jepa_monitor.report import Report

__all__ = ["current_step", "log_report"]

_BINS = 64


def current_step(trainer: pl.Trainer) -> int:
    """Say where on the x-axis Lightning puts its own values now.

    Lightning counts a batch after its own hooks, but before those of the end of the epoch, where it
    subtracts one.

    Args:
        trainer: The Trainer.

    Returns:
        Number of optimizer steps taken before this batch.
    """
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


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
