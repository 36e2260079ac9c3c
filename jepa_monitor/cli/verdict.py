"""What is said of images: in go their scores, out comes a table with quantiles and outliers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from jepa_monitor.cli.images import Source
from jepa_monitor.cli.phases import Law
from jepa_monitor.cli.reasons import find
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.settings import Settings
from jepa_monitor.cli.tables import LABEL_SCORE, LOG_PRIOR
from jepa_monitor.detectors import Detector
from jepa_monitor.functional._intervals import midranks

__all__ = ["Verdict", "table_of"]

_FALLBACK = "knn"  # for what the law of too few embeddings would say


class Verdict(NamedTuple):
    """By which scores the images are judged.

    Args:
        scores: All that there are.
        rank_by: The one that quantiles are of.
        outlier_by: The one that tells outliers.
        left_out: Those that are void, and missing in the table.
        void: Why, in words; empty if none is.
    """

    scores: tuple[str, ...]
    rank_by: str
    outlier_by: str
    left_out: tuple[str, ...]
    void: str

    @classmethod
    def of(cls, settings: Settings, law: Law, detectors: Iterable[Detector]) -> Verdict:
        """Take neighbours' distances, which hold of any number of images, for what is void.

        Args:
            settings: What was asked for.
            law: What the images are compared with.
            detectors: That score them.

        Returns:
            The verdict.
        """
        left_out = () if law.holds else (*(d.name for d in detectors if d.by_law), LOG_PRIOR)
        asked = (settings.rank_by, settings.outlier_by)
        rank_by, outlier_by = (_FALLBACK if name in left_out else name for name in asked)
        names = (*(each.name for each in detectors), LOG_PRIOR, LABEL_SCORE)
        return cls(names, rank_by, outlier_by, left_out, law.void)


def table_of(
    source: Source, reference: Source, scored: Part, verdict: Verdict, fence: float
) -> pa.Table:
    """Make a row of every image that could be read.

    Args:
        source: Where the images are.
        reference: Where those are that they are compared with.
        scored: All batches of the scores.
        verdict: By which scores they are judged.
        fence: Width of the fence, in robust standard deviations.

    Returns:
        The table.
    """
    arrays = scored.arrays
    indices = [int(index) for index in arrays["index"]]
    paths = [source.key(index) for index in indices]
    labels = [source.label(index) for index in indices]
    found = find(arrays, verdict.outlier_by, fence, paths, labels)
    near = [reference.key(index) if index >= 0 else None for index in arrays["neighbour"].tolist()]
    columns = {
        "path": pa.array(paths, pa.string()),
        "label": pa.array(labels, pa.string()),
        **{name: _column(arrays[name]) for name in verdict.scores},
        "below_noise_floor": pa.array(arrays["below_noise_floor"], pa.int64()),
        "quantile": _column(_quantiles(arrays[verdict.rank_by])),
        "outlier": pa.array(found.outlier, pa.bool_()),
        "suspect_label": pa.array(found.suspect_label, pa.bool_()),
        "copies": pa.array(found.copies, pa.int64()),
        "quality": pa.array(found.quality, pa.string()),
        "reason": pa.array(found.reason, pa.string()),
        "neighbour": pa.array(near, pa.string()),
        "note": pa.array(arrays["note"].tolist(), pa.string()),
    }
    return pa.table(columns)


def _quantiles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the share of values that are no higher; NaN for what is not finite."""
    finite = np.isfinite(values)
    found = np.full(len(values), np.nan)
    if finite.any():
        found[finite] = midranks(torch.from_numpy(values[finite])).numpy() / finite.sum()
    return found


def _column(values: Any) -> pa.Array:
    """Make a column in which what is not a finite number is missing."""
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
