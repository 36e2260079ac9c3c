"""Does the encoder keep apart what differs? Embeddings against classes of equivalent samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_number
from jepa_monitor.functional.detection import auroc

_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class Separation(NamedTuple):
    """How far classes that differ are kept apart; every field is free of the embeddings' scale."""

    accuracy: Tensor
    gap_ratio: Tensor
    collapse_rate: Tensor
    auroc: Tensor
    merged: Tensor


def separation(embeddings: Tensor, classes: Tensor, merge_below: float = 0.75) -> Separation:
    r"""Whether samples of different classes have different embeddings, in five numbers.

    The classes are those of equivalent samples: labels, or states of an environment. That samples
    of one class may differ is allowed; the "no unhealthy collapse" theorem too says only that
    classes that differ stay apart.

    - ``accuracy``: balanced accuracy of the nearest class centroid, each sample being left out of
      its own centroid. 0 to 1, high is healthy, 1/C is chance.
    - ``gap_ratio``: :math:`\min_{c \ne c'} \lVert \mu_c - \mu_{c'} \rVert / (2 \max_c r_c)` with
      the root mean square distance :math:`r_c` of a class to its centroid. From 0; above 1 the two
      nearest classes are further apart than the widest is wide. Infinite if classes are points.
    - ``collapse_rate``: share of pairs of different classes that are no further apart than 95 % of
      the pairs of one class. 0 is healthy, about 0.95 if classes do not matter, 1 if all
      embeddings are equal.
    - ``auroc``: probability that a pair of different classes is further apart than one of the same
      class. 1 is healthy, ½ chance.
    - ``merged``: classes lost to others. Two classes are merged if the nearest of their two
      centroids is right for less than ``merge_below`` of their samples (balanced, left out as
      above); C minus the number of groups that this leaves. 0 to C − 1, 0 is healthy. Neighbours
      chain: classes in a row can merge though their ends are apart.

    Nothing is said of the embeddings' scale, which a dynamics loss can shrink to nothing; read
    :func:`normalized_std` beside it. Time O(N²·K), memory O(N²).

    Args:
        embeddings: Embeddings, shape (N, K).
        classes: Integer class of each sample, shape (N,); at least 2 classes, each of at least 2
            samples.
        merge_below: Accuracy under which two classes count as one, above ½.

    Returns:
        The five numbers, 0-dimensional float64 tensors. For constant embeddings 1/C, 0, 1, ½ and
        C − 1.

    Source:
        The question is that of arXiv 2509.12249, Theorem 1; nearest centroids are its measure, here
        with held-out samples.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> [round(v.item(), 2) for v in separation(z, torch.tensor([0, 0, 1, 1]))]
        [1.0, 10.0, 0.0, 1.0, 0.0]
        >>> [round(v.item(), 2) for v in separation(torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))]
        [0.5, 0.0, 1.0, 0.5, 1.0]
    """
    z = as_matrix(embeddings, "embeddings", min_rows=4)
    require_number(merge_below, "merge_below", 0.5, 1)
    return separate(z, classes, merge_below, torch.finfo(embeddings.dtype).eps)


def separate(z: Tensor, classes: Tensor, merge_below: float, resolution: float) -> Separation:
    """Compute :func:`separation` of embeddings in float64.

    Args:
        z: Embeddings in float64, shape (N, K).
        classes: Integer class of each sample, shape (N,).
        merge_below: Accuracy under which two classes count as one.
        resolution: Machine epsilon of the dtype in which the embeddings came.

    Returns:
        The five numbers.
    """
    index, counts = (x.to(z.device) for x in _class_index(classes, len(z)))
    z = _without_rounding(z, resolution)
    means = torch.zeros(len(counts), z.shape[1], dtype=z.dtype, device=z.device)
    means = means.index_add(0, index, z) / counts[:, None]
    residuals = (z - means[index]).square().sum(1)
    radii = torch.zeros_like(counts).index_add(0, index, residuals).div(counts).sqrt()
    gap, width = torch.pdist(means).min(), 2 * radii.max()
    points = torch.full_like(gap, math.inf if gap > 0 else 0.0)

    # Squared distances to all centroids. Leaving z out of its own centroid moves that away from z:
    # z − (nμ − z)/(n − 1) = (z − μ)·n/(n − 1).
    distances = torch.cdist(z, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    left_out = residuals * (counts / (counts - 1)).square()[index]
    distances.scatter_(1, index[:, None], left_out[:, None])
    nearest = (distances == distances.amin(1, keepdim=True)).double()
    hits = nearest.gather(1, index[:, None])[:, 0] / nearest.sum(1)  # ties share the credit
    accuracy = (torch.zeros_like(counts).index_add(0, index, hits) / counts).mean()

    equivalent, different = _pair_distances(z, index)
    # Not torch.quantile, which takes 2²⁴ numbers at most.
    usual = equivalent.kthvalue(math.ceil(0.95 * len(equivalent))).values
    collapse_rate = (different <= usual).double().mean()
    # As a "density" of the equivalent pairs: closer is more usual.
    return Separation(
        accuracy,
        gap / width if width > 0 else points,
        collapse_rate,
        auroc(-equivalent, -different),
        _merged(distances, index, counts, merge_below),
    )


def _class_index(classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Classes as 0 … C − 1, and the number of samples of each."""
    if not isinstance(classes, Tensor):
        raise TypeError(f"`classes` must be a torch.Tensor, got {type(classes).__name__}.")
    if classes.is_floating_point() or classes.shape != (count,):
        raise ValueError(
            f"`classes` must be integers of shape ({count},), one for each row of `embeddings`, "
            f"got {classes.dtype} of shape {tuple(classes.shape)}."
        )
    names, index, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"`classes` must hold at least 2 classes, got {len(names)}.")
    if bool((counts < 2).any()):
        raise ValueError(
            "`classes` must hold at least 2 samples of each class, got a single one of "
            f"{names[counts < 2].tolist()}."
        )
    return index, counts.double()


def _without_rounding(z: Tensor, eps: float) -> Tensor:
    """Scale, centre, and make embeddings that differ by rounding only equal."""
    z = z / z.abs().amax().clamp(min=torch.finfo(z.dtype).tiny)
    centred = z - z.mean(0)
    size = z.square().sum(1).mean().sqrt()
    spread = centred.square().sum(1).mean().sqrt()
    return torch.zeros_like(z) if float(spread) <= _ROUNDING * eps * float(size) else centred


def _pair_distances(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of all pairs of one class, and of all pairs of two classes."""
    distances = torch.pdist(z)
    first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    same = index[first] == index[second]
    return distances[same], distances[~same]


def _merged(distances: Tensor, index: Tensor, counts: Tensor, merge_below: float) -> Tensor:
    """Number of classes that are lost when classes that cannot be told apart become one."""
    own = distances.gather(1, index[:, None])
    wins = (own < distances).double() + 0.5 * (own == distances)
    share = torch.zeros(len(counts), len(counts), dtype=wins.dtype, device=wins.device)
    share = share.index_add(0, index, wins) / counts[:, None]
    linked = (share + share.T) / 2 < merge_below
    linked.fill_diagonal_(True)
    for _ in range(len(counts).bit_length()):  # paths of doubling length
        linked = linked.double() @ linked.double() > 0
    groups = len(torch.unique(linked, dim=0))
    return counts.new_tensor(len(counts) - groups)
