"""Self-clustering: how far the directions of the embeddings crowd together."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.hypersphere import mean_over_pairs


def self_clustering(embeddings: Tensor) -> Tensor:
    r"""Self-clustering of the embeddings' directions.

    .. math::
        \frac{\lVert \hat Z \hat Z^\top \rVert_F^2 - N - N(N-1)/K}{N^2 - N - N(N-1)/K}

    Range about 0 to 1; 0 is uniform on the sphere, with a standard deviation of
    :math:`2 / \sqrt{N(N-1)(K-1)(K+2)}` for N isotropic embeddings, and 1 is one direction. It is
    (m − 1)/(K − 1) of :func:`~jepa_monitor.functional.hypersphere.mean_squared_cosine` m. Within runs
    lower is healthier. Time O(N·K²).

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2, K ≥ 2.

    Returns:
        0-dimensional float64 tensor; 1 for constant embeddings and for zeros.

    Raises:
        ValueError: If K is 1, where all directions are one line.

    Source:
        Tsitsulin et al., Unsupervised embedding quality evaluation (arXiv 2305.16562).

    Example:
        >>> import torch
        >>> self_clustering(torch.ones(8, 4))
        tensor(1.0000, dtype=torch.float64)
    """
    z = unit_rows(as_matrix(embeddings, "embeddings", min_rows=2))
    count, width = z.shape
    if width < 2:
        raise ValueError("`embeddings` must have shape (N, K) with K ≥ 2, got K = 1.")
    return crowding(z.T @ z, count, int((z != 0).any(dim=1).sum()))


def crowding(second: Tensor, count: int, directed: int) -> Tensor:
    """Compute :func:`self_clustering` from moments.

    Args:
        second: Sum of the outer products of the unit embeddings, float64, shape (K, K).
        count: Number N of embeddings.
        directed: How many of them are not zero.

    Returns:
        0-dimensional float64 tensor.
    """
    width = len(second)
    return (width * mean_over_pairs(second.square().sum(), count, directed) - 1) / (width - 1)
