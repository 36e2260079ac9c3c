"""Directions of embeddings: rows of unit length, whatever their size was."""

from __future__ import annotations

import torch
from torch import Tensor

COSINE_TIE = 16 * torch.finfo(torch.float64).eps  # cosines closer than that are equal


def unit_rows(vectors: Tensor) -> Tensor:
    """Scale rows to unit length.

    ``torch.nn.functional.normalize`` divides by no less than 1e-12, so that shorter rows keep a
    length of their own and look spread out; squares under- and overflow long before the numbers do.

    Args:
        vectors: Finite float64 numbers, shape (N, K), K ≥ 1.

    Returns:
        The same shape; rows of zeros stay zero.
    """
    largest = vectors.abs().amax(dim=1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    lengths: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / lengths.clamp(min=1.0)
