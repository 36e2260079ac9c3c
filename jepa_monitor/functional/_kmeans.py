"""k-means of several sets of points at once; shared by what needs pseudo-labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ITERATIONS = 100


class Clusters(NamedTuple):
    """Assignment and centroids of each set.

    Args:
        labels: Cluster of each point, shape (G, N), int64.
        centroids: Shape (G, C, K), of the points' dtype.
    """

    labels: Tensor
    centroids: Tensor


def kmeans(
    points: Tensor,
    clusters: int,
    seed: int,
    restarts: int = 1,
    *,
    iterations: int = _ITERATIONS,
    by_products: bool = False,
) -> Clusters:
    """Cluster each set of points by Lloyd's algorithm from k-means++ seeds.

    Centroids that lose all their points move to the points that lie furthest from theirs. Random
    numbers are the function's own: torch's global generator is neither read nor seeded.

    Args:
        points: G sets of N points, floating point, shape (G, N, K).
        clusters: Number C of clusters, at most N.
        seed: Of the first centroids.
        restarts: Starts, of which the one of the lowest sum of squared distances counts, set by set.
        iterations: At most.
        by_products: Whether distances are made of inner products, many times faster and, for points far from the
            origin, less exact: centre them.

    Returns:
        Labels and centroids, on the device of the points.

    Source:
        Arthur & Vassilvitskii, k-means++ (SODA 2007): seeds drawn in proportion to squared distances.
    """
    sets = points.shape[0]
    generator = torch.Generator().manual_seed(seed)
    everything = points.repeat(restarts, 1, 1)
    centroids = _seeds(everything, clusters, generator)
    labels = torch.full(everything.shape[:2], -1, device=points.device)
    for _ in range(iterations):
        distances = _squared_distances(everything, centroids, by_products)
        nearest = distances.argmin(dim=2)
        if bool((nearest == labels).all()):
            break
        labels = nearest
        centroids = _means(everything, labels, distances)
    spread = _squared_distances(everything, centroids, by_products).amin(dim=2).sum(dim=1)
    best = spread.view(restarts, sets).argmin(dim=0) * sets + torch.arange(
        sets, device=points.device
    )
    return Clusters(labels[best], centroids[best])


def _squared_distances(points: Tensor, centroids: Tensor, by_products: bool) -> Tensor:
    if by_products:
        products = torch.baddbmm(
            centroids.square().sum(2)[:, None], points, centroids.transpose(1, 2), alpha=-2
        )
        return products.add_(points.square().sum(2)[..., None]).clamp_(min=0)
    distances: Tensor = torch.cdist(
        points, centroids, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    return distances


def _seeds(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    sets, count, _ = points.shape
    rows = torch.arange(sets, device=points.device)
    chosen = torch.randint(count, (sets,), generator=generator).to(points.device)
    centroids = [points[rows, chosen]]
    nearest = points.new_full((sets, count), torch.inf)
    while len(centroids) < clusters:
        newest = (points - centroids[-1][:, None]).square().sum(dim=2)
        nearest = torch.minimum(nearest, newest)
        # Where every point is a centroid already, any will do.
        weights = torch.where(nearest.sum(1, keepdim=True) > 0, nearest, torch.ones_like(nearest))
        chosen = torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(points.device)
        centroids.append(points[rows, chosen])
    return torch.stack(centroids, dim=1)


def _means(points: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
    clusters = distances.shape[2]
    member = torch.nn.functional.one_hot(labels, clusters).to(points.dtype)
    counts = member.sum(dim=1)
    means = member.transpose(1, 2) @ points / counts.clamp(min=1)[..., None]
    empty = counts == 0
    if not bool(empty.any()):
        return means
    furthest = distances.amin(dim=2).topk(clusters, dim=1).indices
    turn = (empty.cumsum(dim=1) - 1).clamp(min=0)
    index = furthest.gather(1, turn)[..., None].expand_as(means)
    return torch.where(empty[..., None], points.gather(1, index), means)
