"""Self-clustering: how far the directions of the embeddings crowd together."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional.hypersphere import mean_squared_cosine


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
    width = as_matrix(embeddings, "embeddings", min_rows=2).shape[1]
    if width < 2:
        raise ValueError("`embeddings` must have shape (N, K) with K ≥ 2, got K = 1.")
    return (mean_squared_cosine(embeddings) - 1) / (width - 1)
