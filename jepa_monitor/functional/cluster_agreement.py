"""Do two views of the same samples fall into the same clusters?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_same_shape
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._kmeans import kmeans

MIN_SAMPLES = 4


def cluster_agreement(
    first: Tensor, second: Tensor, clusters: int | None = None, restarts: int = 10, seed: int = 0
) -> Tensor:
    r"""Adjusted mutual information of the clusters of two views.

    .. math::
        \frac{I(a; b) - \mathbb E\,I}{\tfrac12 (H(a) + H(b)) - \mathbb E\,I}

    The unit embeddings of the first view are clustered by k-means, those of the second get the cluster
    of the nearest centroid; E I is the mean over all permutations. 1 is the same clusters, 0 chance.
    Compare at one N and number of clusters, and within one architecture.
    Time O(N·clusters·K·restarts).

    Args:
        first: Embeddings of one view of each sample, shape (N, K), N ≥ 4.
        second: Embeddings of another view, same shape, row by row the same samples.
        clusters: Number of clusters, 2 to N/2; default √N.
        restarts: Starts of k-means, of which the best counts.
        seed: Of k-means.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings, which are one cluster.

    Raises:
        ValueError: If the clusters are too many or too few.

    Source:
        Vinh, Epps & Bailey (JMLR 11, 2010), Eq. 24 and AMI with the mean of the entropies;
        arXiv 2409.06612 for its relation with linear probes.

    Example:
        >>> import torch
        >>> z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> cluster_agreement(z, 2 * z), cluster_agreement(z, torch.ones(200, 8))
        (tensor(1.0000, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    a, b = as_matrix(first, "first", MIN_SAMPLES), as_matrix(second, "second", MIN_SAMPLES)
    require_same_shape(a, b, ("first", "second"))
    a, b = unit_rows(a), unit_rows(b)
    count = len(a)
    number = max(2, round(math.sqrt(count))) if clusters is None else clusters
    check_positive_int(restarts, "restarts")
    if not 2 <= check_positive_int(number, "clusters") <= count // 2:
        raise ValueError(f"`clusters` must lie in [2, N/2 = {count // 2}], got {clusters}.")
    for z, given in ((a, first), (b, second)):
        spread = (z - z.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        if float(spread) <= 4 * torch.finfo(given.dtype).eps:
            return a.new_zeros(())
    found = kmeans(a[None], number, seed, restarts)
    mode = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(b, found.centroids[0], compute_mode=mode).argmin(dim=1)
    table = torch.zeros(number, number, dtype=torch.float64, device=a.device)
    table.index_put_((found.labels[0], nearest), table.new_ones(count), accumulate=True)
    return adjusted_mutual_information(table)


def adjusted_mutual_information(table: Tensor) -> Tensor:
    """Compute the adjusted mutual information of two labelings.

    Args:
        table: How many samples have each pair of labels, float64, shape (R, C).

    Returns:
        0-dimensional float64 tensor; 0 where a labeling has only one label.
    """
    total = table.sum()
    rows, columns = table.sum(1), table.sum(0)
    rows, columns = rows[rows > 0], columns[columns > 0]
    if len(rows) < 2 or len(columns) < 2:
        return total.new_zeros(())
    independent = table.sum(1, keepdim=True) * table.sum(0) / total
    cells = table > 0
    information = (table[cells] * (table[cells] / independent[cells]).log()).sum() / total
    entropies = [-(sums / total * (sums / total).log()).sum() for sums in (rows, columns)]
    expected = _expected_information(rows, columns, total)
    return (information - expected) / ((entropies[0] + entropies[1]) / 2 - expected)


def _expected_information(rows: Tensor, columns: Tensor, total: Tensor) -> Tensor:
    """Mean of the mutual information over permutations: each cell is hypergeometric."""
    a, b = rows[:, None, None], columns[None, :, None]
    n = torch.arange(1, int(min(rows.max(), columns.max())) + 1, device=rows.device).double()
    possible = (n <= torch.minimum(a, b)) & (n >= a + b - total)

    def choose(whole: Tensor, part: Tensor) -> Tensor:
        return (
            torch.lgamma(whole + 1)
            - torch.lgamma(part + 1)
            - torch.lgamma((whole - part).clamp(min=0) + 1)
        )

    log_probability = choose(a, n) + choose(total - a, (b - n).clamp(min=0)) - choose(total, b)
    gain = n / total * (total * n / (a * b)).log()
    return torch.where(possible, log_probability.exp() * gain, 0.0).sum()
