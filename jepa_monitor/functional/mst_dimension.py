"""Intrinsic dimension from how fast the minimum spanning tree grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._dimension import IntrinsicDimension, distinct_points, no_dimension

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the embeddings: more than a decade of sizes
MIN_SAMPLES = 48  # embeddings, of which the smallest tree has 3


def mst_dimension(
    embeddings: Tensor,
    normalized: bool = True,
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    seed: int = 0,
) -> IntrinsicDimension:
    r"""IdEst: dimension from the length of the Euclidean minimum spanning tree of n embeddings.

    .. math::
        L(n) \propto n^{(d-1)/d}, \qquad \hat d = \frac{1}{1 - m}

    with the slope m of log L on log n, by least squares over random subsets of several sizes. The
    paper finds lower values with better encoders. The standard error counts how far subsets of one
    size differ; they overlap, so it is a little low.

    It is no dimension at finite n, and no quality by itself. It is biased low from ten dimensions on
    (2000 points of N(0, I) read about 33 of 50 and 57 of 128); ten classes that move apart lower it
    from 37 to 5 at the same dimension within each; and a collapse lowers it too: rank 2 reads 2, rank
    8 reads 8. Read it only while nothing has collapsed, at equal N, sizes and K. Sizes within a narrow
    band make it noise. Memory O(N²), time O(N²·(K + draws)).

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 48.
        normalized: Whether to scale them to unit length first.
        sizes: Sizes n of the subsets, at least two different ones of at least 3, at most N;
            default: N/16, N/8, N/4, N/2 and 3N/4.
        draws: Subsets of each size.
        seed: Of the subsets.

    Returns:
        Dimension, standard error and the number of duplicates, which have no part in any tree. An
        infinite dimension for constant embeddings, and where the slope is not between 0 and 1.

    Raises:
        ValueError: If the sizes do not fit.

    Source:
        IdEst (arXiv 2606.03338); Steele (Annals of Probability 16, 1988) for the growth of the tree.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 9, 800)
        >>> helix = torch.stack([t.cos(), t.sin(), t], dim=1)
        >>> mst_dimension(helix, normalized=False).dimension
        tensor(1.0, dtype=torch.float64)
    """
    z = as_matrix(embeddings, "embeddings", MIN_SAMPLES)
    return tree_growth(z, normalized, sizes, draws, seed, torch.finfo(embeddings.dtype).eps)


def tree_growth(
    z: Tensor,
    normalized: bool,
    sizes: Sequence[int] | None,
    draws: int,
    seed: int,
    resolution: float,
) -> IntrinsicDimension:
    """Compute :func:`mst_dimension` of embeddings in float64.

    Args:
        z: Embeddings in float64, shape (N, K), N ≥ 48.
        normalized: Whether to scale them to unit length first.
        sizes: Sizes of the subsets, or None for the default.
        draws: Subsets of each size.
        seed: Of the subsets.
        resolution: Machine epsilon of the dtype in which the embeddings came.

    Returns:
        As :func:`mst_dimension`.

    Raises:
        ValueError: If the sizes do not fit.
    """
    check_positive_int(draws, "draws")
    given = len(z)
    z, duplicates = distinct_points(z, normalized, resolution)
    if sizes is None:
        chosen = [max(3, round(share * len(z))) for share in _SHARES]
    else:
        chosen = [check_positive_int(size, "sizes") for size in sizes]
        if min(chosen) < 3 or max(chosen) > given or len(set(chosen)) < 2:
            raise ValueError(
                f"`sizes` must be at least two different numbers from 3 to {given}, got "
                f"{list(sizes)}."
            )
    if len(set(chosen)) < 2 or max(chosen) > len(z):
        return no_dimension(duplicates)
    distances = torch.cdist(z, z).cpu().numpy()
    generator = torch.Generator().manual_seed(seed)
    logs = np.empty((len(chosen), draws))
    for i, size in enumerate(chosen):
        for j in range(draws):
            subset = torch.randperm(len(z), generator=generator)[:size].numpy()
            logs[i, j] = math.log(spanning_tree_length(distances[np.ix_(subset, subset)]))
    x = np.log(chosen) - np.log(chosen).mean()
    weights = x / (x @ x)
    slope = float(weights @ logs.mean(axis=1))
    if not 0 < slope < 1:
        return no_dimension(duplicates)
    dimension = 1 / (1 - slope)
    variance = logs.var(axis=1, ddof=1) / draws if draws > 1 else np.full(len(chosen), np.inf)
    error = dimension**2 * math.sqrt(float(weights**2 @ variance))
    return IntrinsicDimension(
        duplicates.new_tensor(dimension), duplicates.new_tensor(error), duplicates
    )


def spanning_tree_length(distances: np.ndarray[Any, Any]) -> float:
    """Total length of the minimum spanning tree, by Prim's algorithm.

    Args:
        distances: Between all points, shape (n, n).

    Returns:
        The sum of its n − 1 edges.
    """
    outside = distances[0].copy()
    outside[0] = np.inf
    inside = np.zeros(len(distances), dtype=bool)
    inside[0] = True
    total = 0.0
    for _ in range(len(distances) - 1):
        nearest = int(outside.argmin())
        total += float(outside[nearest])
        inside[nearest] = True
        np.minimum(outside, distances[nearest], out=outside)
        outside[inside] = np.inf
    return total
