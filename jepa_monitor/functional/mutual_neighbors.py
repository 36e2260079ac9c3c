"""Do two embeddings of the same samples have the same neighbourhoods?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_same_rows
from jepa_monitor.functional._directions import unit_rows

BLOCK = 1024  # rows of the similarity matrices held at a time
TIE = 16 * torch.finfo(torch.float64).eps  # cosines closer than that are equal


def mutual_knn(first: Tensor, second: Tensor, k: int = 10, chance_corrected: bool = True) -> Tensor:
    r"""Mutual k-nearest-neighbour alignment of two embeddings of the same samples.

    .. math::
        m = \frac1N \sum_i \frac{\lvert \mathcal N_k^A(i) \cap \mathcal N_k^B(i) \rvert}{k},
        \qquad \text{corrected: } \frac{m - c}{1 - c}, \quad c = \frac{k}{N - 1}

    with the k neighbours of highest cosine, the sample itself left out. Range 0 to 1, corrected
    −c/(1 − c) to 1; 1 is the same neighbourhoods, and 0 (corrected) no more than chance. It compares
    a student with its teacher, an encoder with its own past, or two encoders over one data set. The
    value depends on N and k: keep both. Neighbours that tie share the places that are left, as if
    drawn at random, so that constant embeddings read chance whatever they are compared with. Unlike
    the published pipeline it neither clips large features nor takes the best pair of layers.
    Time O(N²·K), in blocks.

    Args:
        first: Embeddings of one encoder, shape (N, K₁).
        second: Embeddings of the other, shape (N, K₂), row by row the same samples.
        k: Neighbours of a sample, at most N − 2.
        chance_corrected: Whether to give 0 to chance.

    Returns:
        0-dimensional float64 tensor.

    Raises:
        ValueError: If the samples are not as many, or fewer than k + 2.

    Source:
        Huh et al., The Platonic Representation Hypothesis (ICML 2024, arXiv 2405.07987),
        mutual nearest neighbours; with the usual correction for chance.

    Example:
        >>> import torch
        >>> z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> mutual_knn(z, 3 * z, k=5), mutual_knn(z, torch.ones(50, 2), k=5)
        (tensor(1.0000, dtype=torch.float64), tensor(0.0000, dtype=torch.float64))
    """
    a, b = as_matrix(first, "first"), as_matrix(second, "second")
    require_same_rows(a, b, ("first", "second"))
    if check_positive_int(k, "k") > len(a) - 2:
        raise ValueError(f"`k` must be at most N - 2 = {len(a) - 2}, got {k}.")
    a, b = unit_rows(a), unit_rows(b)
    total = a.new_zeros(())
    for start in range(0, len(a), BLOCK):
        total = total + (_membership(a, start, k) * _membership(b, start, k)).sum()
    share = total / (k * len(a))
    chance = k / (len(a) - 1)
    return (share - chance) / (1 - chance) if chance_corrected else share


def _membership(z: Tensor, start: int, k: int) -> Tensor:
    """Probability that each sample is among the k neighbours of each sample of a block."""
    similarity = z[start : start + BLOCK] @ z.T
    similarity.diagonal(offset=start).fill_(-math.inf)
    last = similarity.topk(k, dim=1).values[:, -1:]
    inside = similarity > last + TIE
    tied = (similarity >= last - TIE) & ~inside
    places = k - inside.sum(1, keepdim=True)
    return inside.double() + tied * (places.double() / tied.sum(1, keepdim=True))
