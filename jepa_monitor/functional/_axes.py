"""Principal axes of embeddings, and the coordinates along them without their scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PrincipalScores(NamedTuple):
    """Embeddings along their own principal axes.

    Args:
        scores: Coordinates of mean 0 and mean square 1 in each of the R directions that have a
            variance, leading first, shape (N, R).
        variances: Of all min(N, K) directions, descending, shape (min(N, K),); 0 for what is
            rounding error.
    """

    scores: Tensor
    variances: Tensor


def principal_scores(z: Tensor, resolution: float) -> PrincipalScores:
    r"""Standardise embeddings along their principal axes.

    Centred normal embeddings of any covariance have left singular vectors that are uniformly
    distributed over all orthonormal sets orthogonal to the constant vector, whatever N and K: what
    is computed from the scores alone has a null law without parameters.

    Args:
        z: Embeddings in float64, shape (N, K), N ≥ 2.
        resolution: Machine epsilon of the type that they came in.

    Returns:
        Scores and variances.

    Source:
        Eaton, Multivariate Statistics (1983), Prop. 7.3, for the uniform law.
    """
    count, width = z.shape
    centred = z - z.mean(dim=0)
    if width <= count:
        squares, vectors = torch.linalg.eigh(centred.T @ centred)
    else:
        squares, vectors = torch.linalg.eigh(centred @ centred.T)
    squares, vectors = squares.flip(0).clamp_min(0.0), vectors.flip(1)
    rounding = 4 * resolution * torch.linalg.vector_norm(z) / math.sqrt(width)
    relative = torch.finfo(z.dtype).eps * count * squares[0]  # of squares: their sum's own rounding
    keep = squares > torch.maximum(relative, rounding.square())
    left = vectors[:, keep]
    if width <= count:
        left = centred @ left / squares[keep].sqrt()
    return PrincipalScores(left * math.sqrt(count), torch.where(keep, squares, 0.0) / count)
