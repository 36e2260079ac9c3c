"""How the directions of the embeddings lie on the unit sphere.

All functions normalise their input to unit length first. A row of zeros has no direction; it
counts as collapsed: distance 0 to other such rows, cosine 1 with every row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor.functional._checks import (
    as_matrix,
    require_number,
    require_same_shape,
)
from jepa_monitor.functional._directions import unit_rows

_BLOCK = 1024  # rows of the pairwise matrix held at a time


def uniformity(embeddings: Tensor, t: float = 2.0) -> Tensor:
    r"""Uniformity loss of the normalised embeddings.

    .. math::
        \log \frac{2}{N(N-1)} \sum_{i<j} e^{-t \lVert \hat z_i - \hat z_j \rVert^2}

    Range −4t to 0; lower is healthier and 0 is collapse. The minimum over laws lies above −4t:
    −3.94 for t = 2 and K = 128, see ``isotropic_baseline(n, k).uniformity``. In many dimensions it
    hardly notices a dimensional collapse with antipodal spread. Time O(N²·K), in blocks.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.
        t: Inverse width of the kernel.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings and for zeros.

    Source:
        Wang & Isola (ICML 2020, arXiv 2005.10242), Eq. 5 ff.

    Example:
        >>> import torch
        >>> uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
        tensor(-8., dtype=torch.float64)
    """
    z = unit_rows(as_matrix(embeddings, "embeddings", min_rows=2))
    require_number(t, "t", 0, closed=False)
    return pair_potential(z, t)


def pair_potential(z: Tensor, t: float) -> Tensor:
    """Log-mean of exp(−t·squared distance) over all pairs of different rows.

    Args:
        z: Points in float64, shape (N, K), N ≥ 2.
        t: Inverse width of the kernel.

    Returns:
        0-dimensional tensor.
    """
    count = z.shape[0]
    norms = z.square().sum(dim=1)
    sums = []
    for start in range(0, count, _BLOCK):
        block = z[start : start + _BLOCK]
        distances = norms[start : start + _BLOCK, None] + norms - 2 * block @ z.T
        logits = -t * distances.clamp(min=0)
        logits.diagonal(offset=start).fill_(-math.inf)
        sums.append(torch.logsumexp(logits.flatten(), dim=0))
    return torch.logsumexp(torch.stack(sums), dim=0) - math.log(count * (count - 1))


def alignment(first: Tensor, second: Tensor, exponent: float = 2.0) -> Tensor:
    r"""Alignment loss between two views of the same samples.

    .. math::
        \frac1N \sum_n \lVert \hat x_n - \hat y_n \rVert_2^a

    Range 0 to 2^a; lower is healthier *if* uniformity stays low: collapsed embeddings are
    perfectly aligned. Random directions read 2 for a = 2.

    Args:
        first: Embeddings of one view, shape (N, K).
        second: Embeddings of the other view, same shape, row by row the same samples.
        exponent: The exponent a.

    Returns:
        0-dimensional float64 tensor; 0 for equal embeddings.

    Source:
        Wang & Isola (ICML 2020, arXiv 2005.10242), Eq. 4.

    Example:
        >>> import torch
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(2.0000, dtype=torch.float64)
    """
    as_matrix(first, "first")
    return alignment_terms(first, second, exponent).mean()


def alignment_terms(first: Tensor, second: Tensor, exponent: float) -> Tensor:
    """Terms of :func:`alignment`, one for each sample.

    Args:
        first: Embeddings of one view, shape (N, K), of which there may be none.
        second: Embeddings of the other view, same shape.
        exponent: The exponent a.

    Returns:
        Float64 tensor, shape (N,).
    """
    x, y = as_matrix(first, "first", min_rows=0), as_matrix(second, "second", min_rows=0)
    require_same_shape(x, y, ("first", "second"))
    require_number(exponent, "exponent", 0, closed=False)
    difference = unit_rows(x) - unit_rows(y)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return distances.pow(exponent)


def mean_cosine(embeddings: Tensor) -> Tensor:
    r"""Mean cosine over all pairs of different embeddings.

    .. math::
        \frac{\lVert \sum_n \hat z_n \rVert^2 - N}{N(N-1)}

    Range −1/(N − 1) to 1; near 0 is healthy, 1 is collapse to one direction. For isotropic
    embeddings its standard deviation is √(2/(N(N − 1)K)). Blind to dimensional collapse that is
    symmetric about the origin; :func:`mean_squared_cosine` is not. Time O(N·K).

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        0-dimensional float64 tensor; 1 for constant embeddings and for zeros.

    Source:
        Ethayarajh (EMNLP 2019, arXiv 1909.00512), self-similarity; the sum is by expansion.

    Example:
        >>> import torch
        >>> mean_cosine(torch.eye(4)), mean_cosine(torch.ones(8, 4))
        (tensor(0., dtype=torch.float64), tensor(1.0000, dtype=torch.float64))
    """
    z = unit_rows(as_matrix(embeddings, "embeddings", min_rows=2))
    return mean_over_pairs(z.sum(dim=0).square().sum(), len(z), _directed(z))


def mean_squared_cosine(embeddings: Tensor) -> Tensor:
    r"""Mean squared cosine over all pairs of different embeddings, times K.

    .. math::
        \frac{K}{N(N-1)} \sum_{i \ne j} \cos^2(z_i, z_j)

    Range 0 to K; 1 is isotropic (healthy), K/r for a symmetric cloud in r directions, K for one
    direction. It sees complete and dimensional collapse alike. Time O(N·K²).

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        0-dimensional float64 tensor; K for constant embeddings and for zeros.

    Source:
        The second-moment form of the self-clustering metric of Tsitsulin et al.
        (arXiv 2305.16562), scaled so that isotropic embeddings read 1.

    Example:
        >>> import torch
        >>> mean_squared_cosine(torch.ones(8, 4))
        tensor(4.0000, dtype=torch.float64)
    """
    z = unit_rows(as_matrix(embeddings, "embeddings", min_rows=2))
    return z.shape[1] * mean_over_pairs((z.T @ z).square().sum(), len(z), _directed(z))


def mean_over_pairs(total: Tensor, count: int, directed: int) -> Tensor:
    """Mean of a power of the cosine over all pairs of different embeddings.

    Args:
        total: Its sum over all pairs of embeddings that are not zero, those of one with itself too.
        count: Number N of embeddings.
        directed: How many of them are not zero; a zero has cosine 1 with all others.

    Returns:
        0-dimensional tensor.
    """
    undirected_pairs = count * (count - 1) - directed * (directed - 1)
    return (total - directed + undirected_pairs) / (count * (count - 1))


def _directed(z: Tensor) -> int:
    return int((z != 0).any(dim=1).sum())
