"""Archetypal analysis: in go sets of points, out come few mixtures of them that all are mixtures of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_views

__all__ = ["Archetypes", "archetypal_analysis"]

_INNER = 5  # steps for one factor before the other's turn
_LAST = 50  # for the mixtures in the end


class Archetypes(NamedTuple):
    """Archetypes of G sets of points; float64.

    Args:
        error: What they leave unexplained, as a share of the variance about each set's mean, (G,); NaN for
            points that are all the same.
        archetypes: (G, k, d); each a mixture of the set's points.
        mixtures: Shares of the archetypes in each point, (G, N, k); rows sum to 1.
    """

    error: Tensor
    archetypes: Tensor
    mixtures: Tensor


def archetypal_analysis(points: Tensor, k: int, *, iterations: int = 20) -> Archetypes:
    r"""Find k mixtures of the points of which all points are mixtures, as nearly as may be.

    Minimises :math:`\lVert X - A B X \rVert^2` over A (N, k) and B (k, N) with rows on the simplex: by turns,
    accelerated projected gradients for each, from points far from each other. The error is not below that of
    PCA with k − 1 axes and, at the optimum, not above that of k-means. It finds a local optimum, without randomness.

    Args:
        points: G sets of N points, (G, N, d).
        k: 1 … N.
        iterations: Turns.

    Returns:
        Errors, archetypes and mixtures of each set.

    Raises:
        ValueError: If there are fewer points than archetypes.

    Source:
        Cutler & Breiman, Archetypal analysis (1994); Mørup & Hansen (2012) for starting points and steps.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> inside = torch.tensor([[0.2, 0.3], [0.1, 0.1], [0.5, 0.5]])
        >>> found = archetypal_analysis(torch.cat([corners, inside])[None], k=3)
        >>> bool(found.error < 1e-6)
        True
    """
    x = as_views(points, "points", min_samples=1, min_views=1)
    check_positive_int(k, "k")
    check_positive_int(iterations, "iterations")
    if k > x.shape[1]:
        raise ValueError(f"`k` must be at most the {x.shape[1]} points of a set, got {k}.")
    centre = x.mean(1, keepdim=True)
    x = x - centre
    total = x.square().sum((1, 2))
    floor = (4 * torch.finfo(points.dtype).eps) ** 2 * centre.square().sum((1, 2)) * x.shape[1]
    spread = total > floor
    x = x / torch.where(spread, total, 1.0).sqrt()[:, None, None]
    weights = _far_points(x, k)
    found = weights @ x
    mixtures = x.new_full((len(x), x.shape[1], k), 1 / k)
    gram = x @ x.transpose(1, 2)
    size = torch.linalg.eigvalsh(gram)[:, -1, None, None].clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(iterations):
        mixtures = _mixtures(x, found, mixtures, _INNER)
        weights = _weights(gram, size, mixtures, weights)
        found = weights @ x
    mixtures = _mixtures(x, found, mixtures, _LAST)
    error = (x - mixtures @ found).square().sum((1, 2))
    scale = torch.where(spread, total, 0.0).sqrt()[:, None, None]
    return Archetypes(torch.where(spread, error, torch.nan), found * scale + centre, mixtures)


def _far_points(x: Tensor, k: int) -> Tensor:
    """Choose points that are far from each other, one after the other, (G, k, N) of zeros and ones."""
    distances = torch.cdist(x, x)
    rows = torch.arange(len(x), device=x.device)
    chosen = [x.square().sum(2).argmax(1)]
    total = torch.zeros_like(distances[:, 0])
    for _ in range(1, k):
        # A sum of distances is convex, so that it is largest at a corner of the points' hull.
        total = total + distances[rows, chosen[-1]]
        total[rows, chosen[-1]] = -torch.inf
        chosen.append(total.argmax(1))
    picked = torch.stack(chosen, 1)
    return torch.nn.functional.one_hot(picked, x.shape[1]).to(x.dtype)


def _simplex(rows: Tensor) -> Tensor:
    """Put rows onto the simplex: the nearest that are not negative and sum to 1 (Held et al. 1974)."""
    ordered = rows.sort(dim=-1, descending=True).values
    count = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    level = (ordered.cumsum(-1) - 1) / count
    size = (ordered > level).sum(-1, keepdim=True).clamp(min=1)
    return (rows - level.gather(-1, size - 1)).clamp(min=0)


def _norm(gram: Tensor) -> Tensor:
    """An upper bound of the largest eigenvalue of positive matrices, (G, 1, 1)."""
    largest: Tensor = torch.linalg.matrix_norm(gram).clamp(min=torch.finfo(gram.dtype).tiny)
    return largest[:, None, None]


def _mixtures(x: Tensor, found: Tensor, start: Tensor, steps: int) -> Tensor:
    gram, cross = found @ found.transpose(1, 2), x @ found.transpose(1, 2)
    return _descended(start, lambda rows: rows @ gram - cross, 1 / _norm(gram), steps)


def _weights(gram: Tensor, size: Tensor, mixtures: Tensor, start: Tensor) -> Tensor:
    inner, cross = mixtures.transpose(1, 2) @ mixtures, mixtures.transpose(1, 2) @ gram
    step = 1 / (_norm(inner) * size)
    return _descended(start, lambda rows: inner @ rows @ gram - cross, step, _INNER)


def _descended(
    start: Tensor, slope: Callable[[Tensor], Tensor], step: Tensor, steps: int
) -> Tensor:
    """Accelerated projected gradients on the simplex (Beck & Teboulle 2009)."""
    now, ahead = start, start
    for number in range(steps):
        after = _simplex(ahead - step * slope(ahead))
        ahead, now = after + number / (number + 3) * (after - now), after
    return now
