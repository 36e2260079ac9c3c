"""LiDAR: rank of the between-sample scatter, as seen through the within-sample scatter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_views, require_number
from jepa_monitor.functional._spectrum import entropy_rank

_TRACY_WIDOM_99 = 2.0234  # 99 % quantile of the Tracy-Widom law of order 1


def lidar(
    embeddings: Tensor, delta: float = 1e-4, eps: float = 1e-8, correct_noise: bool = True
) -> Tensor:
    r"""LiDAR of several views of the same samples.

    With the mean :math:`\mu_i` of the q views of sample i, the between-sample covariance
    :math:`S_b` of the :math:`\mu_i` (divided by n − 1) and the within-sample covariance
    :math:`S_w` (divided by n(q − 1)) plus δI,

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad
        p_k \propto \lambda_k\bigl(S_w^{-1/2} S_b S_w^{-1/2}\bigr) + \varepsilon .

    Range 1 to min(n − 1, K); higher is healthier. Taken literally the formula has two false
    healthy readings: constant embeddings have all λ = 0, so ε makes the shares uniform and the
    value K; and embeddings that differ between views only still read some full rank, since the
    mean of q noisy views keeps 1/q of the noise. Hence, by default, eigenvalues under the largest
    that pure noise produces (99 % quantile, Tracy–Widom) are left out and 1/q is subtracted from
    the others. That quantile rises as n(q − 1) approaches K, so take n(q − 1) well above K. With
    ``correct_noise=False`` the literal formula is evaluated, and 0 returned where the sample means
    do not differ beyond the rounding of the input's dtype: that is the number of the paper and of
    stable-pretraining, and it is the higher one (last example). δ and ε have the units of the
    embeddings, squared: literally, embeddings of which the means spread by no more than √(δε) read K.

    Args:
        embeddings: q views of each of n samples, shape (n, q, K), n ≥ 2, q ≥ 2.
        delta: Ridge δ on the within-sample covariance, in squared units of the embeddings.
        eps: Added to the eigenvalues in the literal formula.
        correct_noise: Whether to leave out what within-sample noise alone can produce.

    Returns:
        0-dimensional float64 tensor; 0 if no direction separates the samples.

    Source:
        Thilak et al., LiDAR (ICLR 2024, arXiv 2312.04000), Eqs. 1-4; for the quantile Johnstone
        (Annals of Statistics 36, 2008, arXiv 0803.3408), Theorem 1.

    Example:
        >>> import torch
        >>> lidar(torch.ones(64, 4, 8))
        tensor(0., dtype=torch.float64)
        >>> generator = torch.Generator().manual_seed(0)
        >>> signal = torch.randn(256, 1, 8, generator=generator)
        >>> noise = 0.1 * torch.randn(256, 4, 8, generator=generator)
        >>> lidar(signal + noise)
        tensor(7.9, dtype=torch.float64)
        >>> lidar(noise)
        tensor(0., dtype=torch.float64)
        >>> few = torch.randn(1000, 1, 10, generator=generator) @ torch.eye(10, 32)
        >>> z = few + torch.randn(1000, 4, 32, generator=generator)  # 10 directions in noise
        >>> lidar(z), lidar(z, correct_noise=False)
        (tensor(9.9, dtype=torch.float64), tensor(22.9, dtype=torch.float64))
    """
    z = as_views(embeddings, "embeddings", min_samples=2, min_views=2)
    samples, views, _ = z.shape
    means = z.mean(dim=1)
    residuals = (z - means[:, None]).flatten(0, 1)
    within = residuals.T @ residuals
    centred = means - means.mean(dim=0)
    between = centred.T @ centred
    negligible = (4 * torch.finfo(embeddings.dtype).eps) ** 2 * float(means.square().sum())
    if float(between.trace()) <= negligible:
        between = torch.zeros_like(between)
    return scatter_rank(
        between, within, samples, views, delta=delta, eps=eps, correct_noise=correct_noise
    )


def scatter_rank(
    between: Tensor,
    within: Tensor,
    samples: int,
    views: int,
    *,
    delta: float,
    eps: float,
    correct_noise: bool,
) -> Tensor:
    """LiDAR from the two scatter matrices.

    Args:
        between: Scatter of the sample means (not divided), float64, shape (K, K).
        within: Scatter of the views about them (not divided), float64, shape (K, K).
        samples: Number n of samples.
        views: Number q of views of each.
        delta: Ridge on the within-sample covariance.
        eps: Added to the eigenvalues in the literal formula.
        correct_noise: Whether to leave out what within-sample noise alone can produce.

    Returns:
        0-dimensional float64 tensor; 0 if no direction separates the samples.

    Raises:
        ValueError: If the noise is to be corrected but there are too few views to know it.
    """
    width = between.shape[0]
    require_number(delta, "delta", 0, closed=False)
    require_number(eps, "eps", 0)
    freedom = samples * (views - 1)
    if correct_noise and freedom <= width:
        raise ValueError(
            f"`embeddings` must have n·(q - 1) > K to know the noise, got {freedom} and {width}; "
            "take more samples or views, or `correct_noise=False`."
        )
    if not between.any():
        return torch.zeros_like(between[0, 0])
    ridge = delta * torch.eye(width, dtype=between.dtype, device=between.device)
    values, vectors = torch.linalg.eigh(within / freedom + ridge)
    whitening = (vectors * values.clamp(min=delta).rsqrt()) @ vectors.T
    spectrum = torch.linalg.eigvalsh(whitening @ between @ whitening / (samples - 1)).clamp(min=0)
    if not correct_noise:
        return entropy_rank(spectrum + eps)
    edge = _largest_noise_root(width, freedom, samples - 1) / views
    return entropy_rank(torch.where(spectrum > edge, spectrum - 1 / views, 0.0))


def _largest_noise_root(width: int, error_freedom: int, hypothesis_freedom: int) -> float:
    """99 % quantile of the largest eigenvalue of S_w⁻¹S_b if both estimate one covariance.

    Args:
        width: Dimension K.
        error_freedom: Degrees of freedom of S_w, above K.
        hypothesis_freedom: Degrees of freedom of S_b.

    Returns:
        The quantile.
    """
    total = error_freedom + hypothesis_freedom - 1
    low, high = sorted((width, hypothesis_freedom))
    gamma = 2 * math.asin(math.sqrt((low - 0.5) / total))
    phi = 2 * math.asin(math.sqrt((high - 0.5) / total))
    centre = 2 * math.log(math.tan((phi + gamma) / 2))
    shape = math.sin(phi + gamma) ** 2 * math.sin(phi) * math.sin(gamma)
    scale = (16 / total**2 / shape) ** (1 / 3)
    ratio = math.exp(centre + scale * _TRACY_WIDOM_99)
    return ratio * error_freedom / hypothesis_freedom
