"""Does one number follow another? Pearson's and Spearman's correlation with their intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_same_shape
from jepa_monitor.functional._intervals import correlation_interval
from jepa_monitor.functional.calibration import density_agreement

__all__ = ["Correlation", "pearson", "spearman"]

_LEAST = 4  # of fewer pairs there is no interval


class Correlation(NamedTuple):
    """A correlation, from −1 to 1, and the ends of its 95 % interval."""

    value: float
    lower: float
    upper: float


def spearman(first: Tensor, second: Tensor) -> Correlation:
    """Spearman's rank correlation, with mid-ranks for ties.

    Args:
        first: (N,), N ≥ 4, finite.
        second: (N,), finite.

    Returns:
        The correlation and its interval; NaN throughout if either does not vary.

    Raises:
        TypeError: If either is no floating-point tensor.
        ValueError: If the shapes differ, or values are too few or not finite.

    Source:
        Bonett & Wright, Sample size requirements for estimating Pearson, Kendall and Spearman
        correlations (Psychometrika 65, 2000): Fisher's interval with the variance
        (1 + ρ²/2)/(N − 3).

    Example:
        >>> import torch
        >>> found = spearman(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 1, 4, 3, 5]))
        >>> round(found.value, 6)
        0.8
    """
    return _correlation(first, second, ranks=True)


def pearson(first: Tensor, second: Tensor) -> Correlation:
    """Pearson's correlation.

    Args:
        first: (N,), N ≥ 4, finite.
        second: (N,), finite.

    Returns:
        The correlation and its interval; NaN throughout if either does not vary.

    Raises:
        TypeError: If either is no floating-point tensor.
        ValueError: If the shapes differ, or values are too few or not finite.

    Source:
        Fisher (Metron 1, 1921) for the interval.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2, 3, 4, 5])
        >>> round(pearson(x, -2 * x + 1).value, 6)
        -1.0
    """
    return _correlation(first, second, ranks=False)


def _correlation(first: Tensor, second: Tensor, *, ranks: bool) -> Correlation:
    x = as_vector(first, "first", min_size=_LEAST)
    y = as_vector(second, "second", min_size=_LEAST)
    require_same_shape(x, y, ("first", "second"))
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return Correlation(math.nan, math.nan, math.nan)
    agreement = density_agreement(x, y)
    value = float(agreement.spearman if ranks else agreement.pearson)
    return Correlation(value, *correlation_interval(value, len(x), value**2 / 2 if ranks else 0.0))
