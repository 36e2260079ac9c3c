"""What is said of images: in go their scores, out comes a table with quantiles and outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jepa_monitor.cli.fits import Fits
from jepa_monitor.cli.images import Source
from jepa_monitor.cli.reasons import find
from jepa_monitor.cli.reference import Law
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.settings import Settings
from jepa_monitor.cli.tables import LABEL_SCORE, LOG_PRIOR, NEXT_BEST
from jepa_monitor.detectors import Detector
from jepa_monitor.functional._intervals import midranks
from jepa_monitor.functional.conformal import benjamini_hochberg, conformal_p_values
from jepa_monitor.insights.outliers import outlier_scalars

__all__ = ["Verdict", "compared", "table_of"]

_FENCE = 5.0  # of log_density the width with the best F1 on planted images: docs/scoring.md
_LAST = "knn"  # tells outliers, or that nothing does


class Verdict(NamedTuple):
    """By which scores the images are judged.

    Args:
        scores: All that there are.
        rank_by: The one that quantiles are of.
        outlier_by: The one that tells outliers.
        fence: Width of its fence, in robust standard deviations.
        left_out: Those that rest on a void law, and are missing in the table.
        void: Why, in words; empty if none is.
        missing: Why others are missing, by name.
    """

    scores: tuple[str, ...]
    rank_by: str
    outlier_by: str
    fence: float
    left_out: tuple[str, ...]
    void: str
    missing: dict[str, str]

    @classmethod
    def of(cls, settings: Settings, law: Law, detectors: Iterable[Detector], fits: Fits) -> Verdict:
        """Take the next best score for one that is not there.

        Args:
            settings: What was asked for.
            law: What the images are compared with.
            detectors: That were to score them.
            fits: Those that do.

        Returns:
            The verdict.
        """
        names = [each.name for each in detectors]
        void = [each.name for each in detectors if each.by_law] + [LOG_PRIOR]
        left_out = () if law.holds else tuple(void)
        there = {*fits.fitted} if not law.holds else {*fits.fitted, LOG_PRIOR}
        missing = {name: fits.missing[name] for name in names if name not in {*there, *left_out}}
        others = [name for name in NEXT_BEST if name in there]
        ranks = next((name for name in (settings.rank_by, *others) if name in there), _LAST)
        tells = [name for name in (settings.outlier_by, *others) if name in there]
        # The score by itself tells no outliers: where nothing better is there, nothing is told.
        told = next((name for name in tells if name != NEXT_BEST[-1]), _LAST)
        if settings.outlier_by == NEXT_BEST[-1]:
            told = settings.outlier_by
        scores = (*names, LOG_PRIOR, LABEL_SCORE)
        fence = settings.fence or _FENCE
        return cls(scores, ranks, told, fence, left_out, law.void, missing)


def table_of(
    source: Source,
    reference: Source,
    scored: Part,
    verdict: Verdict,
    usual: Mapping[str, Tensor],
) -> pa.Table:
    """Make a row of every image that could be read.

    Args:
        source: Where the images are.
        reference: Where those are that they are compared with.
        scored: All batches of the scores.
        verdict: By which scores they are judged.
        usual: Scores of reference images that no detector has learned from, by name.

    Returns:
        The table.
    """
    arrays = scored.arrays
    indices = [int(index) for index in arrays["index"]]
    paths = [source.key(index) for index in indices]
    labels = [source.label(index) for index in indices]
    found = find(arrays, verdict.outlier_by, verdict.fence, paths, labels)
    near = [reference.key(index) if index >= 0 else None for index in arrays["neighbour"].tolist()]
    told = arrays[verdict.outlier_by]
    p_values, q_values = _levels(told, usual.get(verdict.outlier_by))
    columns = {
        "path": pa.array(paths, pa.string()),
        "label": pa.array(labels, pa.string()),
        **{name: _column(arrays[name]) for name in verdict.scores},
        "below_noise_floor": _counts(arrays["below_noise_floor"]),
        "quantile": _column(_quantiles(arrays[verdict.rank_by])),
        "outlier": pa.array(found.outlier, pa.bool_()),
        "p_value": _column(p_values),
        "q_value": _column(q_values),
        "suspect_label": pa.array(found.suspect_label, pa.bool_()),
        "copies": pa.array(found.copies, pa.int64()),
        "quality": pa.array(found.quality, pa.string()),
        "reason": pa.array(found.reason, pa.string()),
        "neighbour": pa.array(near, pa.string()),
        "note": pa.array(arrays["note"].tolist(), pa.string()),
    }
    return pa.table(columns)


def compared(scored: Part, usual: Mapping[str, Tensor]) -> dict[str, float]:
    """Say what share of the images is unlike the reference, by every detector.

    Args:
        scored: All batches of the scores.
        usual: Scores of reference images that no detector has learned from, by name.

    Returns:
        The scalars of :func:`~jepa_monitor.insights.outliers.outlier_scalars`; nothing of images that
        are their own reference.
    """
    images = {name: torch.from_numpy(scored.arrays[name]) for name in usual}
    found = outlier_scalars(images, usual)
    return {tag: value for tag, value in found.items() if not tag.endswith("_fence")}


def _levels(
    values: np.ndarray[Any, Any], usual: Tensor | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Give p-values and false-discovery rates; NaN without a reference of other images."""
    nothing = np.full(len(values), np.nan)
    p_values, q_values = nothing, nothing.copy()
    known = torch.zeros(0) if usual is None else usual[torch.isfinite(usual)]
    finite = np.isfinite(values)
    if len(known) and finite.any():
        found = conformal_p_values(torch.from_numpy(values[finite]), known)
        p_values[finite] = found.numpy()
        q_values[finite] = benjamini_hochberg(found).numpy()
    return p_values, q_values


def _quantiles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the share of values that are no higher; NaN for what is not finite."""
    finite = np.isfinite(values)
    found = np.full(len(values), np.nan)
    if finite.any():
        found[finite] = midranks(torch.from_numpy(values[finite])).numpy() / finite.sum()
    return found


def _counts(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values, pa.int64(), mask=values < 0)


def _column(values: Any) -> pa.Array:
    """Make a column in which what is not a finite number is missing."""
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
