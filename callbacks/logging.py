"""Write a report: in go loggers, a report and a step, out come curves, histograms and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

__all__ = ["current_step", "log_dashboard", "log_pictures", "takes_pictures"]

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


def dashboard(prefix: str) -> dict[str, dict[str, list[Any]]]:
    """Lay out TensorBoard's custom-scalars page.

    Args:
        prefix: Of all tags.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [prefix + tag for tag in tags]]

    def margin(middle: str, low: str, high: str) -> list[Any]:
        return ["Margin", [prefix + tag for tag in (middle, low, high)]]

    return {
        f"{prefix}density": {
            "JEPA-SCORE: median, 5 % and 95 %": margin(
                "jepa_score/p50", "jepa_score/p05", "jepa_score/p95"
            ),
            "log-density: median, 5 % and 95 %": margin(
                "log_density/p50", "log_density/p05", "log_density/p95"
            ),
            "log singular values: median, 5 % and 95 %": margin(
                "jacobian/log_sigma_p50", "jacobian/log_sigma_p05", "jacobian/log_sigma_p95"
            ),
        },
        f"{prefix}calibration": {
            "error of coverage, gap to the training data": lines(
                "density/calibration_error", "density/generalisation_gap"
            ),
            "polarity (below 0.5: inverted)": lines(
                "density/polarity", "density/polarity_(noise|blur|shuffle)"
            ),
        },
        f"{prefix}collapse": {
            "relative to isotropic embeddings": lines(
                "collapse/(rankme|effective_rank|participation_ratio)_relative",
                "collapse/normalized_std",
            ),
            "state (0 healthy, 1 dimensional, 2 complete)": lines("collapse/state"),
        },
        f"{prefix}outliers": {
            "share below the 5 % quantile of the reference": lines(
                "outliers/(jepa_score|log_density|knn|mahalanobis)$"
            ),
        },
    }


def takes_pictures(loggers: Iterable[Any]) -> bool:
    """Say whether any logger has a place for histograms or figures, which are dear to draw.

    Args:
        loggers: Lightning's loggers.

    Returns:
        Whether :func:`log_pictures` would write anything.
    """
    return any(
        hasattr(logger, "log_image")
        or hasattr(logger.experiment, "add_figure")
        or hasattr(logger.experiment, "log_figure")
        for logger in loggers
    )


def log_pictures(
    loggers: Iterable[Any],
    histograms: Mapping[str, Tensor],
    figures: Mapping[str, Any],
    step: int,
    prefix: str,
) -> None:
    """Write histograms and figures to the loggers that take them.

    TensorBoard gets both; Weights & Biases (``log_image``) and MLflow (``log_figure``) the figures.

    Args:
        loggers: Lightning's loggers.
        histograms: Finite values by tag.
        figures: Pictures by tag.
        step: The x-coordinate.
        prefix: Of all tags.
    """
    for logger in loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_histogram"):
            for tag, values in histograms.items():
                _add_histogram(writer, prefix + tag, values, step)
        for tag, figure in figures.items():
            if hasattr(writer, "add_figure"):
                writer.add_figure(prefix + tag, figure, step, close=False)
            elif hasattr(logger, "log_image"):
                logger.log_image(prefix + tag, [figure], step=step)
            elif hasattr(writer, "log_figure"):
                writer.log_figure(logger.run_id, figure, f"{prefix}{tag}/{step:08d}.png")


def log_dashboard(
    loggers: Iterable[Any], prefix: str, settings: str, prefixes: Iterable[str]
) -> None:
    """Write, once, how to arrange the curves and what they depend on.

    Args:
        loggers: Lightning's loggers.
        prefix: Of the callback's tags.
        settings: Shown as text.
        prefixes: Of all callbacks of the run, in the same order in each: TensorBoard shows only one
            arrangement a run, so each of them writes that of all.
    """
    layout = {chart: lines for each in prefixes for chart, lines in dashboard(each).items()}
    for logger in loggers:
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            writer.add_custom_scalars(layout)
        if hasattr(writer, "add_text"):
            writer.add_text(f"{prefix}monitor/settings", settings)
