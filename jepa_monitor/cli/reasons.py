"""Why an image deserves a look: in go scores, looks and labels, out come a few words for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from jepa_monitor.cli.duplicates import Copy, find_copies
from jepa_monitor.cli.quality import quality_flags
from jepa_monitor.functional.outliers import robust_fence

__all__ = ["Findings", "find"]

_LABEL_FENCE = 3.0  # robust standard deviations under the median
_LEAST_TOLD = 0.5  # share of images that lie nearest to their own class


class Findings(NamedTuple):
    """What was found, one entry an image.

    Args:
        outlier: Whether its score is below the fence; ``None`` where nothing tells.
        suspect_label: Whether it lies nearer to another class, and unusually so; ``None`` where the
            embeddings do not tell the classes apart.
        quality: What is plainly wrong with its pixels, joined by commas.
        copies: Group of the images that are the same or nearly; ``None`` if it has no copy.
        reason: All of that in words; empty if there is nothing to say.
    """

    outlier: list[bool | None]
    suspect_label: list[bool | None]
    quality: list[str]
    copies: list[int | None]
    reason: list[str]


def find(
    arrays: dict[str, np.ndarray[Any, Any]],
    told_by: str,
    fence: float,
    paths: Sequence[str],
    labels: Sequence[str | None],
) -> Findings:
    """Look for outliers, copies, suspect labels and bad pixels.

    Args:
        arrays: What the phases have found.
        told_by: The score that tells outliers.
        fence: Width of its fence, in robust standard deviations.
        paths: What the images are called.
        labels: Their classes.

    Returns:
        The findings.
    """
    values = arrays[told_by]
    outlier, border = _below(values, fence)
    suspect = _suspects(arrays["label_score"])
    quality = quality_flags(arrays["looks"])
    plain = ["low information" in flags for flags in quality]
    digests = [digest.encode() for digest in arrays["pixels"].tolist()]
    copies = find_copies(digests, arrays["gradients"].tolist(), plain)
    reason = []
    for row in range(len(values)):
        words = []
        if outlier[row]:
            words.append(f"unlike the others: {told_by} {values[row]:.4g}, below {border:.4g}")
        if row in copies:
            words += _copied(row, copies[row], paths, labels)
        if suspect[row]:
            other = arrays["other_label"][row]
            words.append(f"labelled {labels[row]}, but nearer to {other}")
        reason.append("; ".join(words + quality[row]))
    groups = [copies[row].group if row in copies else None for row in range(len(values))]
    return Findings(outlier, suspect, [", ".join(flags) for flags in quality], groups, reason)


def _suspects(scores: np.ndarray[Any, Any]) -> list[bool | None]:
    """Doubt labels where embeddings tell classes apart: where they do not, every label looks wrong."""
    known = scores[np.isfinite(scores)]
    if not len(known) or (known > 0).mean() <= _LEAST_TOLD:
        return [None] * len(scores)
    flags, _ = _below(scores, _LABEL_FENCE)
    return [bool(flag) and bool(score < 0) for flag, score in zip(flags, scores, strict=True)]


def _below(values: np.ndarray[Any, Any], width: float) -> tuple[list[bool | None], float]:
    """Compare numbers with their robust fence."""
    numbers = torch.from_numpy(values)
    finite = numbers[torch.isfinite(numbers)]
    if not len(finite):
        return [None] * len(numbers), float("nan")
    border = robust_fence(finite, width)
    return (numbers < border).tolist(), border.item()


def _copied(row: int, copy: Copy, paths: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """Say of what an image is a copy; the first of a group is nobody's."""
    if row == copy.first:
        return []
    how = "the same pixels as" if copy.exact else "nearly the same as"
    other = labels[copy.first]
    conflict = f", which is labelled {other}" if labels[row] and labels[row] != other else ""
    return [f"{how} {paths[copy.first]}{conflict}"]
