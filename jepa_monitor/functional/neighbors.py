"""Distance to the nearest reference embeddings: the baseline that a density score must beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_same_width
from jepa_monitor.functional._directions import unit_rows

_BLOCK = 1024  # rows of the distance matrix held at a time


def knn_distance(
    embeddings: Tensor, reference: Tensor, k: int = 10, exclude_self: bool = False
) -> Tensor:
    """Euclidean distance to the k-th nearest reference embedding.

    Range from 0; lower is denser. It scales with the embeddings. Time O(N·M·K), in blocks.

    Args:
        embeddings: Embeddings, shape (N, K).
        reference: Reference embeddings, shape (M, K).
        k: Which neighbour.
        exclude_self: Whether row n of ``embeddings`` is row n of ``reference`` and must not be
            its own neighbour, as when the reference is scored against itself.

    Returns:
        Float64 tensor, shape (N,); accurate to about 1e-8 of the embeddings' length.

    Raises:
        ValueError: If there are fewer than k neighbours, or the rows cannot be the same.

    Source:
        Loftsgaarden & Quesenberry (Annals of Mathematical Statistics 36, 1965).

    Example:
        >>> import torch
        >>> grid = torch.arange(5.0)[:, None]
        >>> knn_distance(torch.tensor([[0.0], [9.0]]), grid, k=2)
        tensor([1., 6.], dtype=torch.float64)
    """
    z, base = as_matrix(embeddings, "embeddings"), as_matrix(reference, "reference")
    require_same_width(z, base, ("embeddings", "reference"))
    check_positive_int(k, "k")
    neighbours = len(base) - int(exclude_self)
    if k > neighbours:
        raise ValueError(f"`k` must be at most the {neighbours} possible neighbours, got {k}.")
    if exclude_self and z.shape != base.shape:
        raise ValueError(
            "`exclude_self` needs `embeddings` and `reference` of the same shape, "
            f"got {tuple(z.shape)} and {tuple(base.shape)}."
        )
    distances = []
    for start in range(0, len(z), _BLOCK):
        block = torch.cdist(z[start : start + _BLOCK], base)
        if exclude_self:
            block.diagonal(offset=start).fill_(math.inf)
        distances.append(block.kthvalue(k, dim=1).values)
    return torch.cat(distances)


def knn_score(
    embeddings: Tensor, reference: Tensor, k: int = 10, exclude_self: bool = False
) -> Tensor:
    """Negative distance to the k-th neighbour between l2-normalised embeddings.

    Range −2 to 0; higher is denser, like all scores here. Normalising drops the embeddings' scale,
    and with it what their length says. Constant embeddings read 0 throughout: no order at all.

    Args:
        embeddings: Embeddings, shape (N, K).
        reference: Reference embeddings, shape (M, K).
        k: Which neighbour.
        exclude_self: As in :func:`knn_distance`.

    Returns:
        Float64 tensor, shape (N,).

    Source:
        Sun et al., Out-of-distribution detection with deep nearest neighbors (ICML 2022,
        arXiv 2204.06507), Algorithm 1.

    Example:
        >>> import torch
        >>> knn_score(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]), k=2)
        tensor([-1.4142], dtype=torch.float64)
    """
    z, base = as_matrix(embeddings, "embeddings"), as_matrix(reference, "reference")
    return -knn_distance(unit_rows(z), unit_rows(base), k, exclude_self)
