"""What groups say of embeddings: does the encoder tell patients, scanners or scenes instead of classes?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._directions import COSINE_TIE, unit_rows
from jepa_monitor.functional._intervals import paired_interval
from jepa_monitor.functional.probing import knn_predict


class GroupNeighbors(NamedTuple):
    """How often nearest neighbours are of one group; every field a 0-dimensional float64 tensor.

    Args:
        share: Of the embeddings whose nearest neighbour is of their own group.
        expected: The same for groups shuffled within classes, mean.
        lower: Between this
        upper: and this it lies for 95 % of shufflings.
    """

    share: Tensor
    expected: Tensor
    lower: Tensor
    upper: Tensor


class GroupLeak(NamedTuple):
    """What classifying gains by having the own group among the known; 0-dimensional float64 tensors.

    Args:
        across: Accuracy by neighbours of other groups alone.
        within: Accuracy where as many neighbours of the same class, but of other groups, are left out
            instead of the own group.
        leak: ``within`` minus ``across``.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
        asked: Embeddings that could be asked: their class has enough companions in other groups.
    """

    across: Tensor
    within: Tensor
    leak: Tensor
    lower: Tensor
    upper: Tensor
    asked: Tensor


def group_neighbors(
    embeddings: Tensor,
    groups: Tensor,
    labels: Tensor | None = None,
    draws: int = 200,
    seed: int = 0,
) -> GroupNeighbors:
    """Share of embeddings whose nearest other one, by cosine, is of their own group.

    That is the accuracy of telling the group by one neighbour. Images of one class lie together, and
    a group may be of few classes; so the share is compared with groups that are shuffled among images
    of a class. Above the upper end the encoder tells groups as such. Neighbours that tie share the
    place. Time O(N²·K).

    Args:
        embeddings: Shape (N, K), N ≥ 2.
        groups: Integers of shape (N,).
        labels: Classes, integers of shape (N,); default: all of one class.
        draws: How often to shuffle.
        seed: Of the shuffling; torch's global generator is neither read nor seeded.

    Returns:
        The share, and what chance gives.

    Raises:
        TypeError: If the groups or labels are no tensor.
        ValueError: If they are not one integer for each embedding, or there is one embedding.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> group_neighbors(z, torch.tensor([0, 0, 1, 1])).share
        tensor(1., dtype=torch.float64)
    """
    z = as_matrix(embeddings, "embeddings")
    check_positive_int(draws, "draws")
    if len(z) < 2:
        raise ValueError(f"`embeddings` must have at least 2 rows, got {len(z)}.")
    index = _integers(groups, "groups", z)
    classes = torch.zeros_like(index) if labels is None else _integers(labels, "labels", z)
    unit = unit_rows(z)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity >= similarity.max(1, keepdim=True).values - COSINE_TIE
    pairs = nearest.nonzero().T
    weights = 1 / nearest.sum(1).double()[pairs[0]] / len(z)
    share = _same(pairs, weights, index)
    generator = torch.Generator().manual_seed(seed)
    by_class = classes.argsort(stable=True)
    shuffled = []
    for _ in range(draws):
        order = torch.randperm(len(z), generator=generator).to(z.device)
        order = order[classes[order].argsort(stable=True)]
        drawn = torch.empty_like(index)
        drawn[by_class] = index[order]
        shuffled.append(_same(pairs, weights, drawn))
    chance = torch.stack(shuffled)
    ends = torch.quantile(chance, chance.new_tensor([0.025, 0.975]))
    return GroupNeighbors(share, chance.mean(), ends[0], ends[1])


def group_leak(
    embeddings: Tensor, groups: Tensor, labels: Tensor, k: int = 20, seed: int = 0
) -> GroupLeak:
    """What a k-NN classifier gains by having images of the own group among the known ones.

    Each embedding is classified by all others (:func:`~jepa_monitor.functional.knn_predict`), once
    without those of its own group, and once without as many others of its group's classes, drawn among
    other groups: the same number of neighbours of the same classes, but not the same ones. A leak means
    that accuracy measured on held-out images of known groups is not that on new groups. Embeddings are
    asked whose group has another member, and that have enough of each of these classes elsewhere.

    Args:
        embeddings: Shape (N, K).
        groups: Integers of shape (N,).
        labels: Classes, integers of shape (N,).
        k: Neighbours that vote.
        seed: Of what is left out; torch's global generator is neither read nor seeded.

    Returns:
        Both accuracies, and their difference with a paired interval; NaN where nothing can be asked.

    Raises:
        TypeError: If the groups or labels are no tensor.
        ValueError: If they are not one integer for each embedding.

    Source:
        Newcombe (Statistics in Medicine 17, 1998), for the interval.

    Example:
        >>> import torch
        >>> z = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        >>> labels, groups = torch.arange(80) % 2, torch.arange(80) // 8
        >>> bool(group_leak(z, groups, labels).lower < 0)
        True
    """
    z = as_matrix(embeddings, "embeddings")
    index, classes = _integers(groups, "groups", z), _integers(labels, "labels", z)
    same_group = index[:, None] == index
    generator = torch.Generator().manual_seed(seed)
    own = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    across, within = own & ~same_group, own.clone()
    asked = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for row in range(len(z)):
        left_out = _like_the_group(row, own[row] & same_group[row], across[row], classes, generator)
        if left_out is not None:
            within[row, left_out] = False
            asked[row] = True
    if not bool(asked.any()):
        nothing = z.new_tensor(torch.nan)
        return GroupLeak(nothing, nothing, nothing, nothing, nothing, asked.sum().double())
    near, far = (
        knn_predict(z, classes, z[asked], k, may_vote=may_vote[asked]) == classes[asked]
        for may_vote in (within, across)
    )
    leak, ends = paired_interval(near, far)
    accuracies = far.double().mean(), near.double().mean()
    return GroupLeak(*accuracies, leak, ends.lower, ends.upper, asked.sum().double())


def _like_the_group(
    row: int, group: Tensor, others: Tensor, classes: Tensor, generator: torch.Generator
) -> Tensor | None:
    """Draw others of the classes of a group's members; ``None`` if there are too few of them."""
    if not bool(group.any()) or not bool((others & (classes == classes[row])).any()):
        return None
    drawn = []
    for label, count in zip(*torch.unique(classes[group], return_counts=True), strict=True):
        there = (others & (classes == label)).nonzero().flatten()
        if len(there) < int(count):
            return None
        order = torch.randperm(len(there), generator=generator)[: int(count)]
        drawn.append(there[order.to(there.device)])
    return torch.cat(drawn)


def _same(pairs: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    return weights[groups[pairs[0]] == groups[pairs[1]]].sum()


def _integers(values: Tensor, name: str, embeddings: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(values).__name__}.")
    if values.is_floating_point() or values.shape != (len(embeddings),):
        raise ValueError(
            f"`{name}` must be integers of shape ({len(embeddings)},), one for each row of "
            f"`embeddings`, got {values.dtype} of shape {tuple(values.shape)}."
        )
    return values.to(embeddings.device)
