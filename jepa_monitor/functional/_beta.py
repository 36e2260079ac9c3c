"""The incomplete beta function, and with it the laws of F and beta-binomial, without SciPy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-300
_ITERATIONS = 2000  # some √(a + b) are enough


def beta_tails(x: Tensor, complement: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Both tails of the beta law, I_x(a, b) and 1 − I_x(a, b), each to full relative precision.

    Args:
        x: Numbers from 0 to 1, float64.
        complement: 1 − x, which the caller may know better than a subtraction does.
        a: First parameter, positive, of the shape of x.
        b: Second parameter, positive, of the shape of x.

    Returns:
        P(X ≤ x) and P(X > x), of the shape of x.

    Source:
        The continued fraction of DiDonato & Morris (ACM TOMS 18, 1992), Eq. 9, by Lentz's method.
    """
    swap = x > (a + 1) / (a + b + 2)  # where the fraction of the other tail converges faster
    near, far = torch.where(swap, complement, x), torch.where(swap, x, complement)
    first, second = torch.where(swap, b, a), torch.where(swap, a, b)
    log_beta = torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second)
    front = torch.exp(torch.xlogy(first, near) + torch.xlogy(second, far) - log_beta) / first
    tail = (front * _fraction(near, first, second)).clamp(0.0, 1.0)
    return torch.where(swap, 1 - tail, tail), torch.where(swap, tail, 1 - tail)


def log_beta_binomial(total: int, a: float, b: float) -> Tensor:
    """Log-probabilities of 0 … n successes whose chance is itself Beta(a, b).

    Args:
        total: Number n of trials.
        a: First parameter, positive.
        b: Second parameter, positive.

    Returns:
        Float64 tensor, shape (n + 1,), on the CPU.

    Source:
        Skellam (J. Royal Statistical Society B 10, 1948).
    """
    k = torch.arange(total + 1, dtype=torch.float64)
    choose = math.lgamma(total + 1) - torch.lgamma(k + 1) - torch.lgamma(total - k + 1)
    joint = torch.lgamma(k + a) + torch.lgamma(total - k + b) - math.lgamma(total + a + b)
    return choose + joint - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


def _fraction(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    c = torch.ones_like(x)
    d = _bounded(1 - (a + b) * x / (a + 1)).reciprocal()
    value = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = _bounded(1 + even * d).reciprocal(), _bounded(1 + even / c)
        value = value * d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = _bounded(1 + odd * d).reciprocal(), _bounded(1 + odd / c)
        step = d * c
        value = value * step
        if bool(((step - 1).abs() < 1e-14).all()):
            break
    return value


def _bounded(value: Tensor) -> Tensor:
    return torch.where(value.abs() < _TINY, _TINY, value)
