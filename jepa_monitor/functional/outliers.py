"""How many probe samples are outliers. All scores are *densities*: higher means more usual."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from jepa_monitor.functional._beta import log_beta_binomial
from jepa_monitor.functional._checks import as_vector, require_number


class OutlierFraction(NamedTuple):
    """Share of outliers; every field a 0-dimensional float64 tensor.

    Args:
        fraction: Share of the probe under the threshold.
        lower: Lower end of what the share can be if probe and reference have one law.
        upper: Upper end.
        expected: What the share is on average then, at most α.
        threshold: The score that separates.
        p_value: Probability, then, of a share at least as far out on its side, doubled.
    """

    fraction: Tensor
    lower: Tensor
    upper: Tensor
    expected: Tensor
    threshold: Tensor
    p_value: Tensor


def outlier_fraction(
    scores: Tensor, reference_scores: Tensor, alpha: float = 0.05, confidence: float = 0.95
) -> OutlierFraction:
    r"""Share of probe scores under the α-quantile of the reference scores.

    The threshold is the ⌊α(M + 1)⌋-th smallest reference score: a new score of the same law lies
    under it with probability ⌊α(M + 1)⌋/(M + 1) exactly, if scores have no ties.

    Range 0 to 1; healthy is a share inside its interval. More is a shift or memorisation; scores
    that are all equal read 0, below it. The threshold is drawn like the scores: with
    a = ⌊α(M + 1)⌋ the number of probe scores under it is *beta-binomial* with parameters a and
    M + 1 − a, whatever the law, and twice as variable as a binomial number for N = M. The interval
    is the middle of that law: the share leaves it in at most 1 − ``confidence`` of all looks at one
    law, less if scores have ties. The reference must not have served to fit what scores.

    Args:
        scores: Probe scores, shape (N,), higher is denser.
        reference_scores: Reference scores, shape (M,), M ≥ 1/α − 1.
        alpha: Share to expect.
        confidence: Level of the interval.

    Returns:
        The share, its interval under one law, the expected share, the threshold and the p-value.

    Source:
        The order statistic is that of split conformal prediction (Vovk et al., Algorithmic Learning
        in a Random World, 2005); the law of the number is that of exceedances (Wilks, Annals of
        Mathematical Statistics 12, 1941; Gumbel & von Schelling, ibid. 21, 1950).

    Example:
        >>> import torch
        >>> result = outlier_fraction(torch.arange(100.0) - 5, torch.arange(99.0), alpha=0.05)
        >>> result.fraction, result.expected, result.threshold
        (tensor(0.0900, dtype=torch.float64), tensor(0.0500, dtype=torch.float64), tensor(4., dtype=torch.float64))
        >>> result.lower, result.upper
        (tensor(0., dtype=torch.float64), tensor(0.1200, dtype=torch.float64))
    """
    values = as_vector(scores, "scores")
    threshold, order = reference_threshold(reference_scores, alpha)
    below = int((values < threshold.to(values.device)).sum())
    size = len(reference_scores)
    return summarize_outliers(below, len(values), threshold, order, size, confidence)


def reference_threshold(reference_scores: Tensor, alpha: float) -> tuple[Tensor, int]:
    """Threshold of :func:`outlier_fraction`.

    Args:
        reference_scores: Reference scores, shape (M,).
        alpha: Share to expect.

    Returns:
        The threshold, 0-dimensional, and its rank a among the reference scores.

    Raises:
        ValueError: If the reference is too small for α.
    """
    reference = as_vector(reference_scores, "reference_scores")
    require_number(alpha, "alpha", 0, 1, closed=False)
    count = len(reference)
    order = math.floor(alpha * (count + 1) + 1e-9)
    if order < 1:
        raise ValueError(
            f"`reference_scores` must have at least {math.ceil(1 / alpha) - 1} values for "
            f"alpha={alpha:g}, got {count}."
        )
    return reference.sort().values[order - 1], order


def summarize_outliers(
    below: int, total: int, threshold: Tensor, order: int, size: int, confidence: float
) -> OutlierFraction:
    """Share and its interval from a count.

    Args:
        below: Number of scores under the threshold.
        total: Number of scores.
        threshold: The threshold.
        order: Its rank a among the reference scores.
        size: Number M of reference scores.
        confidence: Level of the interval.

    Returns:
        The filled tuple.
    """
    require_number(confidence, "confidence", 0, 1, closed=False)
    probabilities = log_beta_binomial(total, order, size + 1 - order).exp()
    up_to = probabilities.cumsum(dim=0)
    tail = (1 - confidence) / 2
    lower = int((up_to <= tail).sum())
    upper = int((up_to < 1 - tail).sum())
    # Each tail by its own sum: 1 minus the other one rounds to less than nothing.
    p_value = min(1.0, 2 * float(min(up_to[below], probabilities[below:].sum())))
    numbers = (below / total, lower / total, upper / total, order / (size + 1))
    fraction = [threshold.new_tensor(number) for number in numbers]
    return OutlierFraction(
        fraction[0], fraction[1], fraction[2], fraction[3], threshold, threshold.new_tensor(p_value)
    )


def robust_fence(scores: Tensor, k: float = 3.0) -> Tensor:
    r"""Lower fence median − k·1.4826·MAD: scores under it are outliers without any reference.

    The median absolute deviation times 1.4826 estimates a normal law's standard deviation and
    bears up to half of the scores being outliers. Under a normal law 0.13 % lie under the fence
    for k = 3. Where more than half of the scores are equal the MAD is 0 and the fence is the
    median, so that every lower score counts.

    Args:
        scores: Scores, shape (N,), higher is denser.
        k: Width of the fence in standard deviations.

    Returns:
        0-dimensional float64 tensor.

    Source:
        Leys et al. (J. Experimental Social Psychology 49, 2013).

    Example:
        >>> import torch
        >>> robust_fence(torch.tensor([1.0, 2.0, 3.0, 4.0, -500.0]))
        tensor(-2.4478, dtype=torch.float64)
    """
    values = as_vector(scores, "scores")
    require_number(k, "k", 0, closed=False)
    centre = _median(values)
    return centre - k * 1.4826 * _median((values - centre).abs())


def _median(values: Tensor) -> Tensor:
    ordered = values.sort().values
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
