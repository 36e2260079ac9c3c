"""Law of the Epps-Pulley statistic if the data are normal: moments and tail.

The statistic is a weighted sum of squares of the empirical characteristic function's deviation, a
Gaussian process in the limit. Its law is therefore that of Σ λ_j χ²_1, with λ_j the eigenvalues of
the process's covariance on the quadrature's knots.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

STEP = 3 / 16
KNOTS = torch.arange(17, dtype=torch.float64) * STEP
TARGET = torch.exp(-KNOTS.square() / 2)
WEIGHTS = TARGET * STEP * torch.tensor([1.0] + [2.0] * 15 + [1.0], dtype=torch.float64)
_IMHOF_GRID = torch.arange(1, 20_001, dtype=torch.float64) * 0.05
_TERMS = 12


KNOWN = (1.0, 1.0)


def moment_weights(count: int, fitted: int, width: int) -> tuple[float, float]:
    """How much more slices vary in mean and variance if a fit to other embeddings standardised them.

    The mean of a fit to M embeddings misses the truth by 1/M, as that of N misses it by 1/N; the
    variance of a random direction of them, whitened and set right on average, is (M − K − 2)/χ² of
    M − K degrees of freedom.

    Args:
        count: Number N of embeddings that are tested.
        fitted: Number M of embeddings behind the fit, M > K + 2.
        width: Dimension K.

    Returns:
        Factors on the terms of first and second order of the null law; 1 if nothing is fitted.
    """
    return 1 + count / fitted, 1 + count / (fitted - width)


@lru_cache(maxsize=8)
def null_eigenvalues(estimated: bool, moments: tuple[float, float] = KNOWN) -> Tensor:
    r"""Weights λ_j of the null law Σ λ_j χ²_1 of one slice, largest first.

    With f(t) = exp(−t²/2) the covariances of the real and of the imaginary part are
    [f(s−t) + f(s+t)]/2 − f(s)f(t) and [f(s−t) − f(s+t)]/2. If mean and variance come from the same
    data, f(s)f(t)(st)²/2 and f(s)f(t)st are subtracted further.

    Args:
        estimated: Whether each slice is standardised with its own mean and variance.
        moments: Otherwise, factors on the terms of first and second order; see
            :func:`moment_weights`.

    Returns:
        Eigenvalues above 1e-8, float64, on the CPU.

    Source:
        Epps & Pulley (Biometrika 70, 1983); Ebner & Henze (arXiv 2109.04897) for the estimated
        case.
    """
    s, t = KNOTS[:, None], KNOTS[None, :]
    plus, minus = torch.exp(-((s + t) ** 2) / 2), torch.exp(-((s - t) ** 2) / 2)
    product = TARGET[:, None] * TARGET[None, :]
    real, imaginary = (minus + plus) / 2 - product, (minus - plus) / 2
    first, second = (0.0, 0.0) if estimated else moments
    real = real + (second - 1) * product * (s * t) ** 2 / 2
    imaginary = imaginary + (first - 1) * product * s * t
    root = WEIGHTS.sqrt()
    scale = root[:, None] * root[None, :]
    values = torch.cat([torch.linalg.eigvalsh(kernel * scale) for kernel in (real, imaginary)])
    return values[values > 1e-8].sort(descending=True).values


def slice_mean(estimated: bool, moments: tuple[float, float] = KNOWN) -> float:
    """Mean of the null law of one slice.

    Args:
        estimated: Whether each slice is standardised with its own mean and variance.
        moments: See :func:`null_eigenvalues`.

    Returns:
        1.0525 or, asymptotically, 0.3289.
    """
    return float(null_eigenvalues(estimated, moments).sum())


def average_sd(
    width: int, num_slices: int, estimated: bool, moments: tuple[float, float] = KNOWN
) -> float:
    r"""Standard deviation of the statistic averaged over random slices of N(0, I_K).

    Two slices with cosine ρ have the covariance Σ_m c_m ρ^m, from the Hermite expansion of the
    process's covariance; the even moments of ρ between random directions are
    (m − 1)!! / (K (K + 2) … (K + m − 2)). If mean and covariance are estimated, the Hermite terms
    of order 1 and 2 vanish, so that the slices are nearly independent.

    Args:
        width: Dimension K.
        num_slices: Number of slices M.
        estimated: Whether mean and covariance come from the same data.
        moments: See :func:`null_eigenvalues`.

    Returns:
        √(V/M + (1 − 1/M)·Σ_m c_m E[ρ^m]) with V the variance of one slice.
    """
    variance = 2 * float(null_eigenvalues(estimated, moments).square().sum())
    lowest = 3 if estimated else 1
    factors = (0.0, *moments) + (1.0,) * (2 * _TERMS)
    covariance, moment = 0.0, 1.0
    for order in range(2, 2 * _TERMS + 2, 2):  # order = j + k of the two Hermite terms
        moment *= (order - 1) / (width + order - 2)
        integral = float((WEIGHTS * TARGET**2 * KNOTS**order).sum())
        pairs = sum(
            factors[j] * factors[order - j] / (math.factorial(j) * math.factorial(order - j))
            for j in range(lowest, order - lowest + 1)
        )
        covariance += 2 * integral**2 * pairs * moment
    return math.sqrt(variance / num_slices + (1 - 1 / num_slices) * covariance)


def slice_tail(statistic: float, estimated: bool, moments: tuple[float, float] = KNOWN) -> float:
    """Probability that one slice of normal data exceeds a statistic.

    Imhof's integral by the trapezoidal rule, which converges exponentially here; far out, where
    the integral cancels, Zolotarev's expansion in the largest eigenvalue.

    Args:
        statistic: Epps-Pulley statistic of one slice.
        estimated: Whether each slice is standardised with its own mean and variance.
        moments: See :func:`null_eigenvalues`.

    Returns:
        Probability from 0 to 1.

    Source:
        Imhof (Biometrika 48, 1961), Eq. 3.2; Zolotarev (Theory Probab. Appl. 6, 1961).
    """
    weights = null_eigenvalues(estimated, moments)
    if statistic > 25 * float(weights[0]):
        factor = float((1 - weights[1:] / weights[0]).rsqrt().prod())
        return factor * math.erfc(math.sqrt(statistic / float(weights[0]) / 2))
    phase, damping = _imhof_tables(estimated, moments)
    angle = (phase - statistic * _IMHOF_GRID) / 2
    at_zero = (float(weights.sum()) - statistic) / 2  # limit of the integrand for u → 0
    integrand = angle.sin() * damping
    integral = 0.05 * (float(integrand.sum()) + at_zero / 2)
    return min(max(0.5 + integral / math.pi, 0.0), 1.0)


@lru_cache(maxsize=4)
def _imhof_tables(estimated: bool, moments: tuple[float, float]) -> tuple[Tensor, Tensor]:
    scaled = null_eigenvalues(estimated, moments) * _IMHOF_GRID[:, None]
    damping = torch.exp(-torch.log1p(scaled.square()).sum(dim=1) / 4) / _IMHOF_GRID
    return torch.atan(scaled).sum(dim=1), damping


def sum_tail(total: float, copies: int) -> float:
    """Probability that the sum over several directions of normal data exceeds a total.

    Pearson's approximation by a chi-square law of the same first three moments.

    Args:
        total: Sum of the Epps-Pulley statistics of uncorrelated directions, each standardised with
            its own mean and variance.
        copies: Number of directions.

    Returns:
        Probability from 0 to 1.

    Source:
        Pearson (Biometrika 46, 1959), in the form of Imhof (Biometrika 48, 1961), Sec. 4.
    """
    weights = null_eigenvalues(estimated=True)
    first, second, third = (copies * float((weights**power).sum()) for power in (1, 2, 3))
    freedom = second**3 / third**2
    quantile = (total - first) * math.sqrt(freedom / second) + freedom
    half = torch.tensor([freedom / 2, max(quantile, 0.0) / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
