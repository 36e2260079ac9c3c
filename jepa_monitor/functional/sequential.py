"""Levels under a normal law that knows how few embeddings it was estimated from.

A law that was fitted to N embeddings is too narrow for the next one: its squared Mahalanobis
distance has the mean K (N + 1)/(N − K − 2) under the very law that was fitted, and not K. Here each
embedding is judged by the law of those before it, with the exact law of that distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional._beta import beta_tails
from jepa_monitor.functional._checks import as_matrix, require_same_width

__all__ = ["LEAST_REFERENCE", "NoLawError", "PredictiveLevels", "predictive_pit"]

LEAST_REFERENCE = 4  # embeddings
_ROUNDING = 1e-13  # share of a column's variance that is no variance in float64
_BLOCK = 64  # rows at least that are judged between two factorisations


class NoLawError(ValueError):
    """Rows vary in fewer directions than those that are to be judged by them."""


class PredictiveLevels(NamedTuple):
    """Levels of held-out embeddings.

    Args:
        levels: Float64 tensor, shape (N,), from 0 (at the mode) to 1 (far out).
        axes: Number of principal axes in which they were judged.
    """

    levels: Tensor
    axes: int


def predictive_pit(embeddings: Tensor, reference: Tensor) -> PredictiveLevels:
    r"""Level of the highest-density region of the reference's normal law that holds each embedding.

    Each embedding is judged by the law of the reference *and of the embeddings before it*, n in
    number, by

    .. math::
        u = F\Bigl(\tfrac{(n - K)\,n}{(n^2 - 1)\,K}\, d^2;\; K,\, n - K\Bigr)

    with d² its squared Mahalanobis distance under their mean and covariance (divided by n − 1)
    and F the law of Fisher and Snedecor. If all are normal with one mean and one covariance, whatever
    these are, the u are independent and uniform *exactly*, for every N, M and K: unlike
    :func:`~jepa_monitor.functional.hdr_pit` they do not read M/K. Values near 1 mean that the
    embeddings lie further out than the reference says.

    A covariance of more than half as many dimensions as embeddings tells little. Where K > (M − 1)/2
    the (M − 1)/2 leading principal axes of all embeddings are judged, which leaves the levels exact;
    directions without variance are left out.

    Args:
        embeddings: Held-out embeddings, shape (N, K).
        reference: Embeddings of the reference, shape (M, K), M ≥ 4.

    Returns:
        Levels and the number of axes; of embeddings that do not vary at all there are none, and
        the levels are ½.

    Raises:
        ValueError: If the widths differ. As a :class:`NoLawError`, if the reference does not vary in a
            direction in which the embeddings do: no normal law of it reaches them.

    Source:
        Rincon-Gallardo, Quesenberry & O'Reilly, Conditional probability integral transformations
        and goodness-of-fit tests for multivariate normal distributions (Annals of Statistics 7,
        1979).

    Example:
        >>> import torch
        >>> from jepa_monitor.functional import kolmogorov_smirnov
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(300, 64, generator=generator)
        >>> levels, axes = predictive_pit(z[200:], z[:200])
        >>> axes, kolmogorov_smirnov(levels).p_value > 0.05
        (64, tensor(True))
    """
    known, held_out = (
        as_matrix(reference, "reference", min_rows=LEAST_REFERENCE),
        as_matrix(embeddings, "embeddings"),
    )
    require_same_width(held_out, known, ("embeddings", "reference"))
    resolution = max(torch.finfo(reference.dtype).eps, torch.finfo(embeddings.dtype).eps)
    scores = principal_scores(torch.cat([known, held_out]), resolution).scores
    axes = min(scores.shape[1], (len(known) - 1) // 2)
    if axes == 0:
        return PredictiveLevels(torch.full_like(held_out[:, 0], 0.5), 0)
    lower, _ = sequential_tails(scores[:, :axes], len(known))
    return PredictiveLevels(lower, axes)


def sequential_tails(z: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Judge the distance of each row by the normal law of the rows before it.

    Args:
        z: Float64 tensor, shape (N, K), of full rank; its scale does not matter.
        start: How many rows to take for granted, at least K + 1.

    Returns:
        Probabilities of a smaller and of a larger distance, each of shape (N − start,) and of full
        relative precision; the first is independent and uniform over the rows if all are normal.

    Raises:
        NoLawError: If the rows taken for granted have no variance in a direction of the others.
    """
    count, width = z.shape
    index = torch.arange(1, count, dtype=z.dtype, device=z.device)
    means = z.cumsum(dim=0)[:-1] / index[:, None]
    # Each row's deviation from the mean of those before it, scaled to the rows' own covariance.
    steps = (z[1:] - means) * (index / (index + 1)).sqrt()[:, None]
    scatter = steps[: start - 1].T @ steps[: start - 1]
    least = _ROUNDING * steps.square().sum(dim=0)
    block = max(_BLOCK, width // 4)
    ratios = []
    for begin in range(start - 1, count - 1, block):
        rows = steps[begin : begin + block]
        factor, failed = torch.linalg.cholesky_ex(scatter)
        if failed or bool((factor.diagonal().square() <= least).any()):
            raise NoLawError(
                f"The first {begin + 1} embeddings do not vary in all of the {width} directions that all "
                f"{count} do: no normal law of them reaches the others."
            )
        solved = torch.linalg.solve_triangular(factor, rows.T, upper=False)
        inner = solved.T @ solved
        inner.diagonal().add_(1.0)
        # det(I + G) row by row: each pivot is 1 + wᵀA⁻¹w under the law of all rows before.
        ratios.append(torch.linalg.cholesky(inner).diagonal().square())
        scatter = scatter + rows.T @ rows
    ratio = torch.cat(ratios) if ratios else z.new_zeros(0)
    freedom = index[start - 1 :] - width
    x = ((ratio - 1) / ratio).clamp_min(0.0)
    return beta_tails(x, 1 / ratio, torch.full_like(x, width / 2), freedom / 2)


def normal_scores(lower: Tensor, upper: Tensor) -> Tensor:
    """Standard normal quantiles of levels known by both tails.

    Args:
        lower: Levels u.
        upper: 1 − u.

    Returns:
        Φ⁻¹(u), finite.
    """
    tiny = torch.finfo(lower.dtype).tiny
    return torch.where(
        lower < upper,
        torch.special.ndtri(lower.clamp_min(tiny)),
        -torch.special.ndtri(upper.clamp_min(tiny)),
    )
