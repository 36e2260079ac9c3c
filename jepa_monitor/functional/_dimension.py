"""What both estimates of the intrinsic dimension share: their result, and distinct points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._directions import unit_rows

_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class IntrinsicDimension(NamedTuple):
    """Estimate of a dimension; every field a 0-dimensional float64 tensor.

    Args:
        dimension: The estimate; infinite where there is none, as for constant embeddings.
        error: Its standard error; infinite likewise.
        duplicates: Embeddings that equal another one and were left out.
    """

    dimension: Tensor
    error: Tensor
    duplicates: Tensor


def no_dimension(duplicates: Tensor) -> IntrinsicDimension:
    """The result where none can be told.

    Args:
        duplicates: How many embeddings were left out.

    Returns:
        An infinite dimension: never among the low ones.
    """
    infinite = torch.full_like(duplicates, torch.inf)
    return IntrinsicDimension(infinite, infinite, duplicates)


def distinct_points(z: Tensor, normalized: bool, resolution: float) -> tuple[Tensor, Tensor]:
    """Centre embeddings, scale them, and leave out those that come up again.

    Args:
        z: Embeddings in float64, shape (N, K).
        normalized: Whether to scale them to unit length first.
        resolution: Machine epsilon of the dtype in which they came.

    Returns:
        Distinct points, float64, shape (n, K), a single one if all are equal up to rounding; and how
        many were left out, float64.
    """
    z = unit_rows(z) if normalized else z / z.abs().amax().clamp(min=torch.finfo(z.dtype).tiny)
    distinct = torch.unique(z, dim=0)
    duplicates = z.new_tensor(float(len(z) - len(distinct)))
    centred = distinct - distinct.mean(dim=0)
    size, spread = z.square().sum(1).mean().sqrt(), centred.square().sum(1).mean().sqrt()
    if float(spread) <= _ROUNDING * resolution * float(size):
        return centred[:1], z.new_tensor(float(len(z) - 1))
    return centred, duplicates
