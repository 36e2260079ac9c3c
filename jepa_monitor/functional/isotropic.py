"""What the collapse metrics read on isotropic normal embeddings of the same size."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from jepa_monitor._checks import check_positive_int

_KNOTS = 4096


class IsotropicBaseline(NamedTuple):
    """Values of N samples of N(0, I_K): what the best-conditioned embeddings can reach."""

    rankme: float
    effective_rank: float
    participation_ratio: float
    stable_rank: float
    uniformity: float


def isotropic_baseline(n: int, k: int) -> IsotropicBaseline:
    r"""Values of the collapse metrics for n samples of N(0, I_k), to first order.

    A finite sample of white embeddings has no flat spectrum but the Marchenko–Pastur law with
    ratio y = min/max of n and k. With r = min(n, k) and λ under that law:

    - RankMe: :math:`r\,E[\sqrt\lambda]\exp(-E[\sqrt\lambda\log\sqrt\lambda]/E[\sqrt\lambda])`,
      integrated numerically;
    - effective rank: :math:`r\,e^{-y/2}`, the same expression in λ, in closed form;
    - participation ratio: :math:`k/(1+k/n)`;
    - stable rank of the covariance: :math:`k/(1+\sqrt{k/n})^2`, 3 % low at k = 100 since the
      largest eigenvalue has not reached the edge of the law;
    - uniformity at t = 2: :math:`-4 + \log {}_0F_1(;k/2;4)`, its minimum over all laws.

    Divide a measured rank by its baseline to compare runs of different n and k; 1 is isotropic.

    Args:
        n: Number of embeddings.
        k: Their dimension.

    Returns:
        One float for each metric.

    Source:
        Marchenko & Pastur (Math. USSR Sbornik 1, 1967); Page (Phys. Rev. Lett. 71, 1993) for the
        entropy; Wang & Isola (arXiv 2005.10242) for uniformity.

    Example:
        >>> baseline = isotropic_baseline(512, 128)
        >>> round(baseline.rankme), round(baseline.effective_rank)
        (124, 113)
        >>> round(baseline.participation_ratio, 1), round(baseline.uniformity, 2)
        (102.4, -3.94)
    """
    check_positive_int(n, "n")
    check_positive_int(k, "k")
    rank, ratio = min(n, k), min(n, k) / max(n, k)
    return IsotropicBaseline(
        rankme=rank * _rankme_share(ratio),
        effective_rank=rank * math.exp(-ratio / 2),
        participation_ratio=k / (1 + k / n),
        stable_rank=k / (1 + math.sqrt(k / n)) ** 2,
        uniformity=-4 + _log_hypergeometric(k / 2, 4.0),
    )


def _rankme_share(ratio: float) -> float:
    # With λ = 1 + y + 2√y·cos θ the law has density (2/π)·sin²θ/λ on (0, π): smooth, so that the
    # midpoint rule converges fast.
    theta = (torch.arange(_KNOTS, dtype=torch.float64) + 0.5) * (math.pi / _KNOTS)
    eigenvalue = 1 + ratio + 2 * math.sqrt(ratio) * theta.cos()
    density = theta.sin().square() / eigenvalue * (2 / _KNOTS)
    singular = eigenvalue.sqrt()
    mean = float((density * singular).sum())
    entropy = float((density * singular * singular.log()).sum())
    return mean * math.exp(-entropy / mean)


def _log_hypergeometric(b: float, x: float) -> float:
    # 0F1(; b; x) = Σ x^m / (b (b+1) … (b+m−1) m!)
    term = total = 1.0
    for m in range(100):
        term *= x / ((b + m) * (m + 1))
        total += term
    return math.log(total)
