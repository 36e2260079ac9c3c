"""What labels say of embeddings: classes told by neighbours, by a linear map, and from a few examples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive, check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_same_width
from jepa_monitor.functional._directions import COSINE_TIE, unit_rows
from jepa_monitor.functional._intervals import wilson_interval

_BLOCK = 1024  # rows of the similarities held at a time
_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread
_PENALTIES = tuple(10.0**power for power in range(-3, 7))


class FewShot(NamedTuple):
    """Accuracy from a few examples of each class; every field a 0-dimensional float64 tensor.

    Args:
        accuracy: Mean over the draws of the examples.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
    """

    accuracy: Tensor
    lower: Tensor
    upper: Tensor


def knn_predict(
    known: Tensor,
    labels: Tensor,
    asked: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    may_vote: Tensor | None = None,
) -> Tensor:
    r"""Classify embeddings by the weighted vote of their nearest neighbours.

    The k neighbours of highest cosine s vote with weight :math:`e^{s/\tau}`. Neighbours that tie for
    the last places share them, so that constant embeddings get the class that most known ones have,
    whatever their order. Time O(N·M·K), in blocks.

    Args:
        known: Embeddings of which the classes are known, shape (N, K).
        labels: Their classes, integers of shape (N,).
        asked: Embeddings to classify, shape (M, K).
        k: Neighbours that vote; all N if there are fewer.
        temperature: :math:`\tau`; small values trust the nearest neighbour most.
        may_vote: Which known embeddings may vote for which asked one, bool, shape (M, N); default:
            all. At least one for each.

    Returns:
        Classes, int64, shape (M,).

    Raises:
        ValueError: If the labels are not one integer for each known embedding, the widths differ, or
            nothing may vote for an embedding.

    Source:
        Wu et al. (CVPR 2018, arXiv 1805.01978), Eq. 9.

    Example:
        >>> import torch
        >>> z = torch.eye(3)
        >>> knn_predict(z, torch.tensor([7, 7, 9]), z + 0.1, k=1)
        tensor([7, 7, 9])
    """
    x, q, names, index = _checked(known, labels, asked)
    check_positive(temperature, "temperature")
    count = min(check_positive_int(k, "k"), len(x))
    x, q = unit_rows(x), unit_rows(q)
    allowed = None if may_vote is None else _checked_voters(may_vote, len(q), len(x))
    predicted = []
    for start in range(0, len(q), _BLOCK):
        block = q[start : start + _BLOCK]
        similarity = block @ x.T
        if allowed is not None:
            similarity.masked_fill_(~allowed[start : start + _BLOCK].to(x.device), -math.inf)
        last = similarity.topk(count, dim=1).values[:, -1:]
        inside = similarity > last + COSINE_TIE
        tied = (similarity >= last - COSINE_TIE) & ~inside
        places = (count - inside.sum(1, keepdim=True)).double() / tied.sum(1, keepdim=True)
        # Subtracting 1, the highest cosine, changes no order and avoids overflow.
        weights = (inside + tied * places) * ((similarity - 1) / temperature).exp()
        votes = weights.new_zeros(len(block), len(names)).index_add_(1, index, weights)
        predicted.append(votes.argmax(1))
    return names[torch.cat(predicted)]


def ridge_predict(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    r"""Classify embeddings by a linear map: ridge regression of each class against the rest.

    Embeddings are scaled to mean 0 and variance 1 of the known ones, targets are ±1, and the largest
    output counts. The penalty is the power of ten from 10⁻³ to 10⁶ of which the known embeddings,
    each left out of its own fit, have the least squared error; in closed form, so that nothing
    depends on a seed or on when an optimiser stops. Time O(min(N, K)²·max(N, K)).

    Args:
        known: Embeddings of which the classes are known, shape (N, K), N ≥ 2.
        labels: Their classes, integers of shape (N,).
        asked: Embeddings to classify, shape (M, K).

    Returns:
        Classes, int64, shape (M,). The class that most known embeddings have, where these are
        constant.

    Raises:
        ValueError: If the labels are not one integer for each known embedding, or the widths differ.

    Source:
        Allen, PRESS (Technometrics 16, 1974), for the error of what is left out.

    Example:
        >>> import torch
        >>> z = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
        >>> side = (z[:, 0] > 0).long()
        >>> int((ridge_predict(z[:60], side[:60], z[60:]) == side[60:]).sum())
        29
    """
    x, q, names, index = _checked(known, labels, asked)
    if len(x) < 2:
        raise ValueError(f"`known` must have at least 2 rows, got {len(x)}.")
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    x, q = (x - mean) / scale, (q - mean) / scale
    targets = 2 * torch.nn.functional.one_hot(index, len(names)).double() - 1
    offset = targets.mean(0)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    along = u.T @ (targets - offset)
    errors, maps = [], []
    for penalty in _PENALTIES:
        kept = s.square() / (s.square() + penalty)
        own = 1 / len(x) + u.square() @ kept  # what each has in its own fit
        missed = targets - offset - u @ (kept[:, None] * along)
        errors.append((missed / (1 - own)[:, None]).square().mean())
        maps.append(v.T @ ((s / (s.square() + penalty))[:, None] * along))
    best = int(torch.stack(errors).argmin())
    return names[(q @ maps[best] + offset).argmax(1)]


def few_shot_accuracy(
    known: tuple[Tensor, Tensor],
    asked: tuple[Tensor, Tensor],
    shots: int,
    draws: int = 10,
    seed: int = 0,
) -> FewShot:
    r"""Accuracy of :func:`knn_predict` from a few known embeddings of each class.

    The examples are drawn several times. The interval counts both how far draws differ and how far
    embeddings do, as if they were independent: with the share :math:`a_i` of draws in which
    embedding i is classified correctly and the accuracy :math:`p_d` of a draw, the variance is
    :math:`\operatorname{Var}(a_i)/M + \operatorname{Var}(p_d)/D`, and the ends are Wilson's for as
    many independent trials as have that variance.

    Args:
        known: Embeddings (N, K) and classes (N,) to draw examples from, without putting any back.
        asked: Embeddings (M, K) and classes (M,) to test on.
        shots: Examples of each class.
        draws: How often to draw them.
        seed: Of the draws; torch's global generator is neither read nor seeded.

    Returns:
        Accuracy and the ends of its interval.

    Raises:
        ValueError: If a class has fewer known embeddings than shots.

    Source:
        The vote of Wu et al. (arXiv 1805.01978), of few neighbours.

    Example:
        >>> import torch
        >>> z, labels = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
        >>> few_shot_accuracy((z, labels), (z, labels), shots=2).accuracy
        tensor(1., dtype=torch.float64)
    """
    z, labels = known
    check_positive_int(draws, "draws")
    _, _, names, index = _checked(z, labels, asked[0])
    counts = torch.bincount(index, minlength=len(names))
    if int(counts.min()) < check_positive_int(shots, "shots"):
        raise ValueError(
            f"`shots` must be at most {int(counts.min())}, as many as the smallest class has, "
            f"got {shots}."
        )
    generator = torch.Generator().manual_seed(seed)
    hits = []
    for _ in range(draws):
        order = torch.randperm(len(z), generator=generator).to(index.device)
        members = order[index[order].argsort(stable=True)]  # class by class, in random order
        starts = counts.cumsum(0) - counts
        chosen = members[(starts[:, None] + torch.arange(shots, device=index.device)).flatten()]
        predicted = knn_predict(z[chosen], labels[chosen], asked[0])
        hits.append((predicted == asked[1]).double())
    right = torch.stack(hits)
    accuracy = right.mean()
    variance = right.mean(0).var(correction=1) / right.shape[1]
    if draws > 1:
        variance = variance + right.mean(1).var(correction=1) / draws
    trials = accuracy * (1 - accuracy) / variance
    total = float(trials) if 0 < trials < math.inf else float(right.shape[1])
    ends = wilson_interval(accuracy * total, total)
    return FewShot(accuracy, ends.lower, ends.upper)


def _checked_voters(may_vote: Tensor, asked: int, known: int) -> Tensor:
    if may_vote.dtype != torch.bool or may_vote.shape != (asked, known):
        raise ValueError(
            f"`may_vote` must be of torch.bool and of shape {(asked, known)}, got {may_vote.dtype} of "
            f"shape {tuple(may_vote.shape)}."
        )
    if not bool(may_vote.any(1).all()):
        raise ValueError("`may_vote` must let a known embedding vote for each one that is asked.")
    return may_vote


def _checked(known: Tensor, labels: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sets in float64, the names of the classes, and the known ones' among 0 … C − 1."""
    x, q = as_matrix(known, "known"), as_matrix(asked, "asked")
    require_same_width(x, q, ("known", "asked"))
    if not isinstance(labels, Tensor):
        raise TypeError(f"`labels` must be a torch.Tensor, got {type(labels).__name__}.")
    if labels.is_floating_point() or labels.shape != (len(x),):
        raise ValueError(
            f"`labels` must be integers of shape ({len(x)},), one for each row of `known`, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    names, index = torch.unique(labels.to(x.device), return_inverse=True)
    spread = (x - x.mean(0)).square().sum(1).mean().sqrt()
    if float(spread) <= _ROUNDING * torch.finfo(known.dtype).eps * float(
        x.square().sum(1).mean().sqrt()
    ):
        x = x[:1].expand_as(x)
    return x, q, names.long(), index
