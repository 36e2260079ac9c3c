"""Are the embeddings normal? The precondition of every density read off a Jacobian.

Statistics here assume independent rows: give *one view for each image*. Several views of one image
multiply the null mean by up to their number.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._null_laws import (
    KNOTS,
    KNOWN,
    STEP,
    TARGET,
    WEIGHTS,
    average_sd,
    slice_mean,
    slice_tail,
)

_BLOCK = 1024  # rows of the pairwise matrix held at a time
_CACHED = 32_768  # projections whose characteristic function is computed at a time


class SlicedEppsPulley(NamedTuple):
    """Sliced Epps-Pulley test; every field a 0-dimensional float64 tensor.

    Args:
        statistic: Mean over the slices, at least 0.
        null_mean: What normal embeddings read on average.
        null_sd: Their standard deviation, for this K and this number of slices.
        z_score: (statistic − null_mean) / null_sd; above 3 the embeddings are not normal.
        effect_size: (statistic − null_mean) / N, which does not grow with N.
        max_statistic: Largest slice; finds one bad direction that the mean hides.
        max_p_value: Bonferroni-corrected p-value of that slice.
    """

    statistic: Tensor
    null_mean: Tensor
    null_sd: Tensor
    z_score: Tensor
    effect_size: Tensor
    max_statistic: Tensor
    max_p_value: Tensor


class HenzeZirkler(NamedTuple):
    """Henze-Zirkler test; both fields 0-dimensional float64 tensors."""

    statistic: Tensor
    p_value: Tensor


def epps_pulley(samples: Tensor) -> Tensor:
    r"""Epps-Pulley statistic of each column against N(0, 1).

    .. math::
        T = N \int_{-3}^{3} \bigl|\hat\varphi(t) - e^{-t^2/2}\bigr|^2 e^{-t^2/2}\,dt,
        \qquad \hat\varphi(t) = \frac1N \sum_n e^{itx_n}

    by the trapezoidal rule with 33 knots, 17 of them by symmetry. Nothing is centred or scaled.

    Range 0 to 1.4·N; lower is healthier. Under N(0, 1) its mean is 1.0525 for every N and its 95 %
    quantile 2.95; under any other law it grows like N, so do not compare it across N.

    Args:
        samples: One column for each slice, shape (N, M).

    Returns:
        Float64 tensor, shape (M,).

    Source:
        Epps & Pulley (Biometrika 70, 1983); grid and window as in the code of LeJEPA
        (arXiv 2511.08544).

    Example:
        >>> import torch
        >>> normal = torch.special.ndtri((torch.arange(100.0) + 0.5) / 100)
        >>> epps_pulley(torch.stack([normal, 2 * normal], dim=1))
        tensor([4.9e-04, 2.4e+01], dtype=torch.float64)
    """
    x = as_matrix(samples, "samples")
    return statistic_from_sums(characteristic_sums(x), x.shape[0])


def sliced_epps_pulley(
    embeddings: Tensor,
    num_slices: int = 256,
    seed: int = 0,
    standardized: Literal["none", "whitened"] = "none",
) -> SlicedEppsPulley:
    r"""Epps-Pulley statistic averaged over random directions, with its null law.

    With ``"none"`` the embeddings are compared with N(0, I), as SIGReg trains them. With
    ``"whitened"`` they are first whitened by their own mean and covariance (divided by N), which
    asks for the shape only; the null mean is then 0.3289 (for large N) and the slices nearly
    independent. Directions without variance stay without: they are not normal, and raise the
    statistic. As N approaches K the whitened test loses its power.

    The z-score grows like N under any misfit, the effect size does not. Effect sizes for ``"none"``
    in one dimension: a point mass at 0 0.402, N(0, ¼) 0.151, N(0, 4) 0.234, N(½, 1) 0.118, a
    uniform or Laplace law of variance 1 0.016. The null law of the average is skewed for K under
    64, so that a z-score of 3 is then less rare than 1 in 700.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2; N > K if whitened.
        num_slices: Number of directions M.
        seed: Seed of the directions. Keep it for a run, or its curve jitters.
        standardized: ``"none"`` or ``"whitened"``.

    Returns:
        The test's numbers; constant embeddings have a large z-score in both modes.

    Source:
        Balestriero & LeCun, LeJEPA (arXiv 2511.08544), Sec. 4, for the statistic. Its null law
        is derived in :mod:`jepa_monitor.functional._null_laws`.

    Example:
        >>> import torch
        >>> z = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
        >>> normal, halved = sliced_epps_pulley(z), sliced_epps_pulley(z / 2)
        >>> abs(normal.z_score) < 3, halved.z_score > 100, halved.effect_size
        (tensor(True), tensor(True), tensor(0.15, dtype=torch.float64))
    """
    z = as_matrix(embeddings, "embeddings", min_rows=2)
    check_choice(standardized, "standardized", ("none", "whitened"))
    whitened = standardized == "whitened"
    if whitened:
        z = _standardize(z, torch.finfo(embeddings.dtype).eps)
    directions = slice_directions(z.shape[1], num_slices, seed).to(z.device)
    statistics = statistic_from_sums(characteristic_sums(z @ directions), z.shape[0])
    return summarize_slices(statistics, z.shape[0], z.shape[1], whitened)


def henze_zirkler(embeddings: Tensor) -> HenzeZirkler:
    r"""Henze-Zirkler test of multivariate normality.

    N times the weighted squared distance between the empirical characteristic function of the
    standardised embeddings and that of N(0, I), with the bandwidth
    :math:`b = 2^{-1/2} [(2K+1)N/4]^{1/(K+4)}`; the p-value is that of a log-normal law with the
    exact mean and variance.

    Range 0 to 4·N; lower is healthier. **Of no use above K ≈ 50**: the kernel's off-diagonal terms
    vanish there and the test has next to no power. Use :func:`sliced_epps_pulley`.
    Time O(N²·K), in blocks.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        Statistic and p-value. Where the covariance is singular (constant embeddings, a dimensional
        collapse, N ≤ K) the statistic is 4·N by definition and the p-value 0.

    Source:
        Henze & Zirkler (Communications in Statistics 19, 1990), Eqs. 2.2 and 3.1.

    Example:
        >>> import torch
        >>> z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> henze_zirkler(z).p_value > 0.01, henze_zirkler(z.exp()).p_value < 1e-6
        (tensor(True), tensor(True))
    """
    z = as_matrix(embeddings, "embeddings", min_rows=2)
    count, width = z.shape
    residuals = None
    if count > width:
        residuals = _standardize(z, torch.finfo(embeddings.dtype).eps)
    # Whitened columns have squares that sum to N; those of flat directions are 0.
    if residuals is None or float(residuals.square().sum()) < count * (width - 0.5):
        return HenzeZirkler(z.new_tensor(4.0 * count), z.new_tensor(0.0))
    b2 = 0.5 * ((2 * width + 1) * count / 4) ** (2 / (width + 4))
    norms = residuals.square().sum(dim=1)
    pairs = z.new_zeros(())
    for start in range(0, count, _BLOCK):
        block = residuals[start : start + _BLOCK]
        distances = norms[start : start + _BLOCK, None] + norms - 2 * block @ residuals.T
        pairs = pairs + torch.exp(-b2 / 2 * distances.clamp(min=0)).sum()
    centre = torch.exp(-b2 / (2 * (1 + b2)) * norms).sum() * 2 * (1 + b2) ** (-width / 2)
    statistic = pairs / count - centre + count * (1 + 2 * b2) ** (-width / 2)
    log_mean, log_sd = _henze_zirkler_null(b2, width)
    score = (statistic.log() - log_mean) / log_sd
    return HenzeZirkler(statistic, torch.special.ndtr(-score))


def slice_directions(width: int, num_slices: int, seed: int) -> Tensor:
    """Random unit vectors, the same for a seed on every device and process.

    Args:
        width: Dimension K.
        num_slices: Number of directions M.
        seed: Seed of a generator of their own; the global one is not touched.

    Returns:
        Float64 tensor, shape (K, M), on the CPU.
    """
    check_positive_int(num_slices, "num_slices")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_slices, width, generator=generator, dtype=torch.float64)
    return F.normalize(directions, dim=1).T


def characteristic_sums(projections: Tensor) -> Tensor:
    """Sums over the rows of cos(tx) and sin(tx) at the knots.

    Args:
        projections: Float64 tensor, shape (N, M).

    Returns:
        Float64 tensor, shape (17, M, 2); sums of several batches add.
    """
    blocks = []
    # A few columns at a time: what is read at every knot must stay in the processor's cache.
    at_once = max(1, _CACHED // max(1, len(projections)))
    for columns in torch.split(projections, at_once, dim=1):
        step = torch.exp(1j * STEP * columns)
        phase = torch.ones_like(step)
        sums = []
        for _ in range(len(KNOTS)):
            sums.append(phase.sum(dim=0))
            phase = phase * step
        blocks.append(torch.stack(sums))
    return torch.view_as_real(torch.cat(blocks, dim=1))


def statistic_from_sums(sums: Tensor, count: int) -> Tensor:
    """Epps-Pulley statistics from :func:`characteristic_sums`.

    Args:
        sums: Shape (17, M, 2).
        count: Number N of rows behind them.

    Returns:
        Float64 tensor, shape (M,).
    """
    means = sums / count
    target, weights = TARGET.to(sums.device), WEIGHTS.to(sums.device)
    deviation = (means[..., 0] - target[:, None]).square() + means[..., 1].square()
    return count * (weights @ deviation)


def summarize_slices(
    statistics: Tensor,
    count: int,
    width: int,
    whitened: bool,
    moments: tuple[float, float] = KNOWN,
) -> SlicedEppsPulley:
    """Compare slices with their null law.

    Args:
        statistics: Epps-Pulley statistics, shape (M,).
        count: Number N of embeddings.
        width: Dimension K.
        whitened: Whether mean and covariance came from the same embeddings.
        moments: If they came from others, see
            :func:`~jepa_monitor.functional._null_laws.moment_weights`.

    Returns:
        The test's numbers.
    """
    num_slices = len(statistics)
    statistic, largest = statistics.mean(), statistics.max()
    null_mean = slice_mean(whitened, moments)
    null_sd = average_sd(width, num_slices, whitened, moments)
    excess = statistic - null_mean
    p_value = min(1.0, num_slices * slice_tail(float(largest), whitened, moments))
    return SlicedEppsPulley(
        statistic,
        statistic.new_tensor(null_mean),
        statistic.new_tensor(null_sd),
        excess / null_sd,
        excess / count,
        largest,
        statistic.new_tensor(p_value),
    )


def _standardize(z: Tensor, resolution: float) -> Tensor:
    # Whitened coordinates up to a rotation, to which every statistic here is blind.
    count, width = z.shape
    if count <= width:
        raise ValueError(
            f"`embeddings` must have more rows than columns to be whitened, got {tuple(z.shape)}."
        )
    scores = principal_scores(z, resolution).scores
    return F.pad(scores, (0, width - scores.shape[1]))


def _henze_zirkler_null(b2: float, width: int) -> tuple[float, float]:
    d = width
    a, w = 1 + 2 * b2, (1 + b2) * (1 + 3 * b2)
    mean = 1 - a ** (-d / 2) * (1 + d * b2 / a + d * (d + 2) * b2**2 / (2 * a**2))
    variance = (
        2 * (1 + 4 * b2) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b2**2 / a**2 + 3 * d * (d + 2) * b2**4 / (4 * a**4))
        - 4 * w ** (-d / 2) * (1 + 3 * d * b2**2 / (2 * w) + d * (d + 2) * b2**4 / (2 * w**2))
    )
    ratio = variance / mean**2
    return math.log(mean) - 0.5 * math.log1p(ratio), math.sqrt(math.log1p(ratio))
