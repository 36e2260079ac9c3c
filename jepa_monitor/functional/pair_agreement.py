"""Do two views of one thing have one embedding, or do all things: in go both views, out comes what is theirs alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_same_shape
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._intervals import wilson_interval
from jepa_monitor.functional.mutual_neighbors import BLOCK, TIE

_Z = 1.96


class PairGap(NamedTuple):
    """Cosines of pairs beside those of shuffled pairs; 0-dimensional float64 tensors.

    Args:
        aligned: Mean cosine of the two views of one thing.
        shuffled: Mean cosine of the views of two different things, over all of them.
        gap: What the first is above the second.
        error: Half the width of the 95 % interval of the gap.
        aligned_error: The same of the first.
    """

    aligned: Tensor
    shuffled: Tensor
    gap: Tensor
    error: Tensor
    aligned_error: Tensor


class Retrieval(NamedTuple):
    """Whether the two views of one thing find each other; 0-dimensional float64 tensors.

    Args:
        share: Share of first views of which the nearest second view is their own.
        low: Lower end of its 95 % interval.
        high: Upper end.
        chance: 1/N.
    """

    share: Tensor
    low: Tensor
    high: Tensor
    chance: Tensor


def pair_gap(first: Tensor, second: Tensor) -> PairGap:
    r"""How much nearer the two views of one thing are than views of different things.

    .. math::
        \text{gap} = \frac1N \sum_i \cos(z_i, y_i) - \frac1{N(N-1)} \sum_{i \ne j} \cos(z_i, y_j)

    A high cosine of pairs alone may be a direction that all embeddings share: a loss 1 − cos is as low for an
    encoder that maps everything to one point. The gap is not: constant embeddings and pairs in any other order
    read 0, and at most it is 1 + 1/(N − 1). The error is the jackknife's, which leaves out one thing at a time.
    Time O(N·K).

    Args:
        first: One view of each thing, shape (N, K), N ≥ 3.
        second: The other, same shape, row by row the same things.

    Returns:
        Both means, the gap and its error. A row of zeros has a cosine of 0 with all.

    Raises:
        ValueError: If the shapes differ, there are fewer than 3 rows, or one is not finite.

    Source:
        The lesson of a negative reproduction of LLM-JEPA (arXiv 2509.14252): cosines of 0.99, gap 2e-4.

    Example:
        >>> import torch
        >>> z = torch.eye(4)
        >>> pair_gap(z, z).gap, pair_gap(torch.ones(4, 3), torch.ones(4, 3)).gap
        (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    a, b = as_matrix(first, "first", 3), as_matrix(second, "second", 3)
    require_same_shape(a, b, ("first", "second"))
    a, b = unit_rows(a), unit_rows(b)
    count = len(a)
    own = (a * b).sum(1)
    # Of each thing, the cosines of either of its views with the views of all others.
    others = a @ b.sum(0) + b @ a.sum(0) - 2 * own
    pairs, crossed = own.sum(), others.sum() / 2
    aligned, shuffled = pairs / count, crossed / (count * (count - 1))
    without = (pairs - own) / (count - 1) - (crossed - others) / ((count - 1) * (count - 2))
    spread = (without - without.mean()).square().sum() * (count - 1) / count
    return PairGap(
        aligned,
        shuffled,
        aligned - shuffled,
        _Z * spread.sqrt(),
        _Z * own.std() / count**0.5,
    )


def pair_hits(first: Tensor, second: Tensor) -> Tensor:
    """Say which first views are nearest, by cosine, to their own second view.

    Args:
        first: Embeddings of one view, float64, (N, K).
        second: Embeddings of the other, same shape.

    Returns:
        (N,): 1 or 0; where t second views tie for the nearest, 1/t if the own one is among them, so that
        constant embeddings hit by chance.
    """
    a, b = unit_rows(first), unit_rows(second)
    hits = []
    for start in range(0, len(a), BLOCK):
        similarity = a[start : start + BLOCK] @ b.T
        tied = (similarity >= similarity.amax(dim=1, keepdim=True) - TIE).double()
        hits.append(tied.diagonal(offset=start) / tied.sum(dim=1))
    return torch.cat(hits)


def pair_retrieval(first: Tensor, second: Tensor) -> Retrieval:
    """Share of first views whose nearest second view, by cosine, is their own.

    It depends on N, the number of second views to choose from: compare at one. Second views that tie share a hit,
    so that constant embeddings read 1/N, which is chance. Time O(N²·K), in blocks.

    Args:
        first: One view of each thing, shape (N, K), N ≥ 2.
        second: The other, same shape, row by row the same things.

    Returns:
        The share with Wilson's interval, and chance.

    Raises:
        ValueError: If the shapes differ, there are fewer than 2 rows, or one is not finite.

    Source:
        Top-1 accuracy of InfoNCE (van den Oord et al., arXiv 1807.03748) among all N.

    Example:
        >>> import torch
        >>> z = torch.eye(4)
        >>> pair_retrieval(z, z).share, pair_retrieval(z, torch.ones(4, 4)).share
        (tensor(1., dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """
    a, b = as_matrix(first, "first", 2), as_matrix(second, "second", 2)
    require_same_shape(a, b, ("first", "second"))
    hits = pair_hits(a, b)
    low, high = wilson_interval(hits.sum(), len(hits))
    return Retrieval(hits.mean(), low, high, hits.new_tensor(1 / len(hits)))


def common_share(embeddings: Tensor) -> Tensor:
    r"""Share of the embeddings' energy that is the same in all of them: that of their mean.

    .. math:: \lVert \tfrac1N \sum_n z_n \rVert^2 \Big/ \tfrac1N \sum_n \lVert z_n \rVert^2

    Range 0 to 1. 1/N for isotropic embeddings; 1 for constant ones, of which all cosines are 1 whatever they
    stand for. Time O(N·K).

    Args:
        embeddings: Shape (N, K).

    Returns:
        0-dimensional float64; NaN if all embeddings are 0.

    Raises:
        ValueError: If a row is not finite.

    Example:
        >>> import torch
        >>> common_share(torch.ones(8, 4)), common_share(torch.cat([torch.eye(4), -torch.eye(4)]))
        (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    z = as_matrix(embeddings, "embeddings")
    return z.mean(0).square().sum() / z.square().sum(1).mean()
