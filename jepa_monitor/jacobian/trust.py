"""How far a sketch can be trusted: in go sketched and exact scores of a few images, out come words.

Splitting a sketch's rows into halves does not tell: both halves are blind to the same small singular
values, agree with each other at 0.99 and may still order images at random (docs/sketching.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_same_shape
from jepa_monitor.functional._intervals import correlation_interval
from jepa_monitor.jacobian.engine import Spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.spectrum import log_volume

__all__ = ["LEAST", "TRIED", "TRUSTED", "SketchAgreement", "settle", "sketch_agreement"]

TRUSTED = 0.9  # correlation with exact scores
TRIED = 8  # images that are scored exactly as well
LEAST = 4  # fewer say nothing
_MORE = 16


class SketchAgreement(NamedTuple):
    """Sketched scores against exact ones of the same images.

    Args:
        correlation: Pearson's; NaN if either does not vary.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
        error: Standard deviation of the exact scores minus K/R times the sketched ones, in nats.
        spread: Standard deviation of the exact scores, in nats.
        images: How many.
        rows: R.
    """

    correlation: float
    lower: float
    upper: float
    error: float
    spread: float
    images: int
    rows: int

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"sketches of {self.rows} rows correlate {self.correlation:.2f} ({self.lower:.2f} to "
            f"{self.upper:.2f}) with exact scores of {self.images} images, which spread by "
            f"{self.spread:.1f} nats, and miss them by {self.error:.1f}"
        )


def sketch_agreement(sketched: Tensor, exact: Tensor, rows: int, width: int) -> SketchAgreement:
    """Compare sketched scores with exact ones.

    Args:
        sketched: Scores of some images, (n,), n ≥ 4, finite.
        exact: Exact scores of the same images, (n,), finite.
        rows: R of the sketch.
        width: K.

    Returns:
        Correlation, error and spread.

    Source:
        Fisher (Metron 1, 1921) for the interval.

    Example:
        >>> import torch
        >>> exact = torch.tensor([-5.0, -3.0, -1.0, 2.0, 4.0])
        >>> found = sketch_agreement(exact / 4 + 7, exact, 16, 64)
        >>> round(found.correlation, 6), round(found.error, 6)
        (1.0, 0.0)
    """
    ours = as_vector(sketched, "sketched", min_size=LEAST)
    truth = as_vector(exact, "exact", min_size=LEAST)
    require_same_shape(ours, truth, ("sketched", "exact"))
    error, spread = float((truth - width / rows * ours).std()), float(truth.std())
    numbers = (error, spread, len(ours), rows)
    # Scores that differ by rounding have no order that a sketch could keep.
    resolution = 1e-6 * float(torch.cat([ours, truth]).abs().max())
    if spread <= resolution or float(ours.std()) <= resolution:
        return SketchAgreement(math.nan, math.nan, math.nan, *numbers)
    correlation = float(torch.corrcoef(torch.stack([ours, truth]))[0, 1].clamp(-1, 1))
    lower, upper = correlation_interval(correlation, len(ours))
    return SketchAgreement(correlation, lower, upper, *numbers)


def settle(
    options: ScoreOptions, images: Tensor, spectra_of: Callable[[Tensor, ScoreOptions], Spectra]
) -> tuple[ScoreOptions, SketchAgreement | None]:
    """Measure how far a sketch can be trusted, and let ``auto`` take more rows where it cannot.

    The first 8 images are scored exactly as well. Where the two correlate below 0.9, ``auto`` looks
    at 16, and if it stays so doubles the rows, up to half of all; then it takes all.

    Args:
        options: How to score.
        images: Some images, (B, ...); of fewer than 4 nothing is measured.
        spectra_of: Takes their Jacobians with given options.

    Returns:
        How to score then, and how far sketches, the last ones tried, agree with exact scores;
        ``None`` where nothing is sketched or too few scores are finite.
    """
    few = images[:TRIED]
    if len(few) < LEAST:
        return options, None
    found = spectra_of(few, options)
    exact = torch.zeros(0, dtype=torch.float64)
    while found.basis is not None:
        rows, width = found.basis.shape
        if len(exact) < len(few):
            everything = dataclasses.replace(options, method="exact", rows=None)
            rest = spectra_of(few[len(exact) :], everything)
            exact = torch.cat([exact, log_volume(rest.singular_values, options.eps).cpu()])
        sketched = log_volume(found.singular_values, options.eps).cpu()
        finite = torch.isfinite(sketched) & torch.isfinite(exact)
        if int(finite.sum()) < LEAST:
            return options, None
        agreement = sketch_agreement(sketched[finite], exact[finite], rows, width)
        if options.method != "auto" or not agreement.correlation < TRUSTED:
            return options, agreement
        if len(few) < min(_MORE, len(images)):
            few = images[:_MORE]
        elif 4 * rows <= width:
            options = dataclasses.replace(options, rows=2 * rows)
        else:
            return dataclasses.replace(options, method="exact", rows=None), agreement
        found = spectra_of(few, options)
    return options, None
