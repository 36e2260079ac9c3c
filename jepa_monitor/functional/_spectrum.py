"""Spectra of embeddings and what is read off them; shared by the functions and the metrics."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class PowerLawFit(NamedTuple):
    """Exponent of a power law λ_i ∝ i^(−alpha) and how well it fits."""

    alpha: Tensor
    r2: Tensor


def covariance_eigenvalues(z: Tensor, resolution: float) -> Tensor:
    """Eigenvalues of the covariance up to a common factor, largest first, min(N − 1, K) of them.

    The factor is the square of the largest number, so that neither tiny nor huge embeddings under-
    or overflow when squared; all that is read off the spectrum is free of it.

    Args:
        z: Embeddings in float64, shape (N, K), N ≥ 2.
        resolution: Machine epsilon of the dtype in which they came.

    Returns:
        Eigenvalues; all zero if the embeddings are constant up to rounding.
    """
    count, width = z.shape
    z = z / z.abs().amax().clamp(min=torch.finfo(z.dtype).tiny)
    centred = z - z.mean(dim=0)
    gram = centred.T @ centred if width <= count else centred @ centred.T
    power = float(z.square().sum()) / count
    return _resolved(gram / (count - 1), count, width, (_ROUNDING * resolution) ** 2 * power)


def moment_eigenvalues(count: int, total: Tensor, second: Tensor, resolution: float) -> Tensor:
    """The same eigenvalues from running sums.

    The subtraction of the mean cancels digits: a spread under some 1e-7 of the mean's length is
    lost, and counts as none.

    Args:
        count: Number N of embeddings, at least 2.
        total: Their sum, float64, shape (K,).
        second: Sum of their outer products, float64, shape (K, K).
        resolution: Machine epsilon of the coarsest dtype in which they came.

    Returns:
        Eigenvalues; all zero if the embeddings are constant up to rounding.
    """
    covariance = (second - torch.outer(total, total) / count) / (count - 1)
    power = float(second.trace()) / count
    return _resolved(covariance, count, total.shape[0], lost_share(count, resolution) * power)


def lost_share(count: int, resolution: float) -> float:
    """Share of the mean square under which a variance from running sums is rounding.

    Args:
        count: Number of terms in the sums.
        resolution: Machine epsilon of the coarsest dtype in which they came.

    Returns:
        The share.
    """
    return max((_ROUNDING * resolution) ** 2, 16 * _EPS * math.sqrt(count))


def gram_singular_values(count: int, second: Tensor) -> Tensor:
    """Singular values of the uncentred embeddings from the sum of their outer products.

    Args:
        count: Number N of embeddings.
        second: Sum of their outer products, float64, shape (K, K).

    Returns:
        The min(N, K) singular values, largest first; those under √(K·eps) of the largest are 0.
    """
    squares = torch.linalg.eigvalsh(second).flip(0)[: min(count, second.shape[0])]
    floor = second.shape[0] * _EPS * squares[0]
    return torch.where(squares > floor, squares, 0.0).sqrt()


def entropy_rank(spectrum: Tensor, eps: float = 0.0) -> Tensor:
    """Exponential of the entropy of a spectrum.

    Args:
        spectrum: Non-negative numbers, shape (r,).
        eps: Added to each share after the division.

    Returns:
        0-dimensional tensor; 0 for a spectrum of zeros.
    """
    total = spectrum.sum()
    if total == 0:
        return torch.zeros_like(total)
    entropy: Tensor = torch.special.entr(spectrum / total + eps).sum()
    return entropy.exp()


def participation(eigenvalues: Tensor, bias_corrected: bool, count: int, width: int) -> Tensor:
    """Participation ratio (Σλ)² / Σλ².

    Args:
        eigenvalues: Eigenvalues of the covariance.
        bias_corrected: Whether to remove what N samples add to the spread of eigenvalues.
        count: Number N of embeddings; of two, the only eigenvalue cannot be corrected.
        width: Dimension K.

    Returns:
        0-dimensional tensor; 0 for a spectrum of zeros.
    """
    if eigenvalues[0] == 0:
        return torch.zeros_like(eigenvalues[0])
    ratio = eigenvalues.sum().square() / eigenvalues.square().sum()
    if not bias_corrected:
        return ratio
    return 1 / (1 / ratio - 1 / (count - 1)).clamp(min=1 / width)


def stable_share(eigenvalues: Tensor) -> Tensor:
    """Sum of the eigenvalues in units of the largest.

    Args:
        eigenvalues: Not negative, largest first.

    Returns:
        0-dimensional tensor; 0 for a spectrum of zeros.
    """
    largest = eigenvalues[0]
    return eigenvalues.sum() / largest if largest > 0 else torch.zeros_like(largest)


def fit_power_law(eigenvalues: Tensor, ranks: tuple[int, int]) -> PowerLawFit:
    """Weighted least squares of log λ_i on log i with weights 1/i.

    Args:
        eigenvalues: Eigenvalues of the covariance, largest first.
        ranks: First and last rank of the fit, counted from 1; the last is cut to what exists.

    Returns:
        The fit; (inf, 0) if fewer than half of the eigenvalues in the window are positive.

    Raises:
        ValueError: If the window holds fewer than 5 ranks.
    """
    first, last = ranks[0], min(ranks[1], eigenvalues.shape[0])
    if not 1 <= first <= last - 4:
        raise ValueError(
            f"`fit_ranks` {ranks} must hold at least 5 of the {eigenvalues.shape[0]} eigenvalues; "
            "there are min(N - 1, K)."
        )
    window = eigenvalues[first - 1 : last]
    window = window[window > 0]
    if len(window) < max(5, (last - first + 1) / 2):
        return PowerLawFit(
            torch.full_like(eigenvalues[0], math.inf), torch.zeros_like(window.sum())
        )
    index = torch.arange(first, first + len(window), device=window.device, dtype=window.dtype)
    weight = 1 / index / (1 / index).sum()
    x, y = index.log(), window.log()
    x_centred = x - (weight * x).sum()
    slope = (weight * x_centred * y).sum() / (weight * x_centred.square()).sum()
    residual = y - (weight * y).sum() - slope * x_centred
    spread = (y - y.mean()).square().sum()
    r2 = 1 - residual.square().sum() / spread if spread > 0 else torch.zeros_like(spread)
    return PowerLawFit(-slope, r2)


def _resolved(gram: Tensor, count: int, width: int, negligible: float) -> Tensor:
    values = torch.linalg.eigvalsh(gram).flip(0)[: min(count - 1, width)]
    if float(gram.trace()) <= negligible:
        return torch.zeros_like(values)
    return torch.where(values > gram.shape[0] * _EPS * values[0], values, 0.0)
