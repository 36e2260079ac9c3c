"""Cluster learnability: are the clusters of half of the embeddings those of the other half?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._directions import COSINE_TIE, unit_rows
from jepa_monitor.functional._kmeans import kmeans

MIN_SAMPLES = 4


class ClusterLearnability(NamedTuple):
    """How well 1-NN learns k-means clusters; every field a 0-dimensional float64 tensor.

    Args:
        learnability: Accuracy corrected for chance: 1 is perfect, 0 chance.
        accuracy: Share of the left-out half whose nearest neighbour is of the same cluster.
        chance: What that share is on average if labels are shuffled.
    """

    learnability: Tensor
    accuracy: Tensor
    chance: Tensor


def cluster_learnability(
    embeddings: Tensor, clusters: int | None = None, restarts: int = 3, seed: int = 0
) -> ClusterLearnability:
    r"""CL, one of the two parts of CLID: the accuracy of 1-NN on pseudo-labels.

    The unit embeddings are clustered by k-means, cut into two random halves, and each embedding of
    the second gets the cluster of its nearest neighbour (by cosine) in the first. With the shares
    p_c and q_c of the clusters in the halves chance is Σ p_c q_c, and the accuracy corrected for it
    (a − c)/(1 − c). The other part of CLID is the intrinsic dimension
    (:func:`~jepa_monitor.functional.two_nn.two_nn`); the paper standardises each over a pool of models and
    adds them, so no sum is made here. Nearly all encoders come close to 1 with few clusters.
    Compare at one N and number of clusters. Time O(N²·K + restarts·N·clusters·K).

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 4.
        clusters: Number of clusters, 2 to N/2; default √N.
        restarts: Starts of k-means, of which the best counts.
        seed: Of k-means and of the halves.

    Returns:
        Learnability, accuracy and chance. 0, 1 and 1 for constant embeddings: one cluster, in which
        there is nothing to learn.

    Raises:
        ValueError: If the clusters are too many or too few.

    Source:
        Lu et al., CLID (arXiv 2206.01251), cluster learnability; here out of sample.

    Example:
        >>> import torch
        >>> blobs = 9 * torch.eye(4).repeat(25, 1)
        >>> blobs = blobs + torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> cluster_learnability(blobs, clusters=4).learnability
        tensor(1.0, dtype=torch.float64)
    """
    z = as_matrix(embeddings, "embeddings", MIN_SAMPLES)
    return learn_clusters(z, clusters, restarts, seed, torch.finfo(embeddings.dtype).eps)


def learn_clusters(
    z: Tensor, clusters: int | None, restarts: int, seed: int, resolution: float
) -> ClusterLearnability:
    """Compute :func:`cluster_learnability` of embeddings in float64.

    Args:
        z: Embeddings in float64, shape (N, K), N ≥ 4.
        clusters: Number of clusters, or None for the default.
        restarts: Starts of k-means.
        seed: Of k-means and of the halves.
        resolution: Machine epsilon of the dtype in which the embeddings came.

    Returns:
        As :func:`cluster_learnability`.

    Raises:
        ValueError: If the clusters are too many or too few.
    """
    # In an order of its own, so that the result does not depend on how the samples came.
    rows, repeats = torch.unique(unit_rows(z), dim=0, return_counts=True)
    z = rows.repeat_interleave(repeats, dim=0)
    count = len(z)
    number = max(2, round(math.sqrt(count))) if clusters is None else clusters
    check_positive_int(restarts, "restarts")
    if not 2 <= check_positive_int(number, "clusters") <= count // 2:
        raise ValueError(f"`clusters` must lie in [2, N/2 = {count // 2}], got {clusters}.")
    spread = (z - z.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    if float(spread) <= 4 * resolution:
        z = z[:1].expand_as(z)
    labels = kmeans(z[None], number, seed, restarts).labels[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(z.device)
    known, asked = order[: count // 2], order[count // 2 :]
    similarity = z[asked] @ z[known].T
    nearest = (similarity >= similarity.amax(dim=1, keepdim=True) - COSINE_TIE).double()
    same = (labels[asked][:, None] == labels[known]).double()
    accuracy = ((nearest * same).sum(dim=1) / nearest.sum(dim=1)).mean()  # ties share the credit
    shares = [
        torch.bincount(labels[half], minlength=number).double() / len(half)
        for half in (known, asked)
    ]
    chance = (shares[0] * shares[1]).sum()
    room = 1 - chance
    learnability = (accuracy - chance) / room if room > 0 else torch.zeros_like(room)
    return ClusterLearnability(learnability, accuracy, chance)
