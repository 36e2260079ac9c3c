"""Do two views of a sample find each other, and the same neighbours?"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_same_shape
from jepa_monitor.functional.mutual_neighbors import mutual_knn
from jepa_monitor.functional.pair_agreement import pair_hits


class NeighborConsistency(NamedTuple):
    """Both corrected for chance: 1 is perfect, 0 chance; 0-dimensional float64 tensors.

    Args:
        retrieval: Share of samples of which one view is nearest to their own other view.
        overlap: Share of the k neighbours that the two views have in common.
    """

    retrieval: Tensor
    overlap: Tensor


def neighbor_consistency(first: Tensor, second: Tensor, k: int = 10) -> NeighborConsistency:
    r"""How far the neighbourhoods of an encoder survive augmentation; no labels needed.

    .. math::
        \text{retrieval} = \frac1N \sum_i \bigl[ \arg\max_j \cos(z^a_i, z^b_j) = i \bigr], \qquad
        \text{overlap} = \frac1N \sum_i
        \frac{\lvert \mathcal N_k(z^a_i) \cap \mathcal N_k(z^b_i) \rvert}{k}

    with neighbours among the samples of the same view, the sample itself left out. Both are
    corrected for chance c, 1/N and k/(N − 1): (v − c)/(1 − c), at most 1, 0 is chance. Samples that
    tie share the places that are left, as if drawn at random, so that constant embeddings read 0. An
    encoder that copies pixels reads 1 under weak augmentation: use the augmentation of the training,
    and compare at one N and k. Time O(N²·K), in blocks.

    Args:
        first: Embeddings of one view of each sample, shape (N, K).
        second: Embeddings of another view, same shape, row by row the same samples.
        k: Neighbours of a sample, at most N − 2.

    Returns:
        Retrieval and overlap.

    Source:
        The retrieval is the top-1 accuracy of the InfoNCE objective (van den Oord et al.,
        arXiv 1807.03748, Eq. 4) at batch size N; the overlap that of Huh et al. (arXiv 2405.07987).

    Example:
        >>> import torch
        >>> z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> neighbor_consistency(z, 2 * z)
        NeighborConsistency(retrieval=tensor(1., dtype=torch.float64), overlap=tensor(1.0000, dtype=torch.float64))
        >>> neighbor_consistency(z, torch.ones(50, 8)).retrieval
        tensor(0., dtype=torch.float64)
    """
    a, b = as_matrix(first, "first"), as_matrix(second, "second")
    require_same_shape(a, b, ("first", "second"))
    overlap = mutual_knn(first, second, k)
    chance = 1 / len(a)
    return NeighborConsistency((pair_hits(a, b).mean() - chance) / (1 - chance), overlap)
