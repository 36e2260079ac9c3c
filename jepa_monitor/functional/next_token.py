"""Next-token perception: in go token states and classes, out comes how far what tells the next token tells the class.

The directions of a layer that predict its next state, and those in which classes differ, are two subspaces; their
overlap says how much of a task a model trained on next tokens already sees (arXiv 2505.17169). Two things of the published
code are options here and not the default: it takes the *smallest* eigenvalues for the largest, and a basis that
is not orthonormal, which makes the score one of the number of directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.functional._checks import as_matrix, as_views

__all__ = [
    "Perception",
    "TokenMoments",
    "check_context",
    "next_token_perception",
    "perception_of",
    "predictive_overlap",
    "token_moments",
]

_RANGE = 1e-8  # of the largest eigenvalue: directions below it are none of the states'


class Perception(NamedTuple):
    """How far directions that tell the next token tell the class.

    Args:
        value: Mean squared cosine of the principal angles, 0 to 1; a 0-dimensional float64 tensor.
        chance: What k_v of d directions at random have, k_v/d.
        excess: ``(value - chance) / (1 - chance)``: 0 by chance, 1 at most.
        null: Mean of the value with classes that are shuffled among the texts: what directions in
            which the texts' means vary have, whatever the class.
        null_std: Its standard deviation over the shuffles.
        label_directions: How many directions tell the class, k_u.
        token_directions: How many tell the next token, k_v.
    """

    value: Tensor
    chance: float
    excess: Tensor
    null: Tensor
    null_std: Tensor
    label_directions: int
    token_directions: int


def next_token_perception(
    hidden: Tensor,
    mask: Tensor,
    labels: Tensor,
    *,
    k: int = 16,
    context: str = "sum",
    order: str = "descending",
    orthonormal: bool = True,
    centred: bool = True,
    shuffles: int = 20,
    seed: int = 0,
) -> Perception:
    r"""Overlap of the directions that predict the next state of a layer with those that tell the class.

    With contexts :math:`c_t` of the states up to :math:`t`, next states :math:`h_{t+1}`, means
    :math:`m` of the states of a text and its class :math:`y` as a one-hot vector, V are the leading
    eigenvectors of :math:`A_v A_v^\top v = \lambda B_v v` with
    :math:`A_v = \sum c_t h_{t+1}^\top, B_v = \sum c_t c_t^\top`, and U those of the same with
    :math:`A_u = \sum m y^\top, B_u = \sum m m^\top`. The value is the mean squared cosine of the
    principal angles between both.

    Args:
        hidden: States of one layer, (B, T, d).
        mask: Which tokens are real, (B, T), boolean; padding may be on either side.
        labels: Classes, (B,), integers.
        k: How many directions, at most what the states span; of the classes one less than there are,
            or as many if ``centred`` is false.
        context: ``"sum"`` of the states so far, as published, their ``"mean"``, or the ``"last"`` one.
        order: ``"descending"``: the largest eigenvalues; ``"published"``: the smallest.
        orthonormal: Whether the directions of the classes all count alike; published: not.
        centred: Whether classes and means are taken without what all texts have; published: not.
        shuffles: How often classes are shuffled for the null; 0 for none, which is NaN.
        seed: Of the shuffles.

    Returns:
        The value, what chance has, and how many directions there were.

    Raises:
        TypeError: If a tensor is of the wrong type.
        ValueError: If shapes do not fit, a text has no token, no text has two, or there is one class.

    Source:
        Next Token Perception Score, arXiv 2505.17169, and its public code, whose order and scale are
        options; the null is ours.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> hidden = torch.randn(200, 12, 32, generator=draw)
        >>> labels = torch.randint(2, (200,), generator=draw)
        >>> found = next_token_perception(hidden, torch.ones(200, 12, dtype=torch.bool), labels, k=8)
        >>> found.chance, found.label_directions, found.token_directions
        (0.25, 1, 8)
    """
    check_context(context)
    found = token_moments(hidden, mask, context)
    if found.pairs == 0:
        raise ValueError("`mask` leaves one token of each text: there is no next token.")
    return perception_of(
        found,
        labels,
        k=k,
        order=order,
        orthonormal=orthonormal,
        centred=centred,
        shuffles=shuffles,
        seed=seed,
    )


def check_context(context: str) -> str:
    """Return ``context`` if it is one of :func:`next_token_perception`.

    Args:
        context: What the caller gave.

    Returns:
        The value.
    """
    return check_choice(context, "context", ("sum", "mean", "last"))


class TokenMoments(NamedTuple):
    """What is needed of the states of texts, which adds up over batches.

    Args:
        second: Second moment of the contexts, a sum, (d, d), float64.
        cross: Of contexts and next states, likewise.
        means: Mean state of each text, (B, d), float64.
        pairs: How many next states there are.
    """

    second: Tensor
    cross: Tensor
    means: Tensor
    pairs: int


def token_moments(hidden: Tensor, mask: Tensor, context: str) -> TokenMoments:
    """Reduce the states of a batch of texts.

    Args:
        hidden: (B, T, d).
        mask: (B, T), boolean.
        context: See :func:`next_token_perception`.

    Returns:
        The moments.
    """
    states, real = _packed(hidden, mask)
    before, after, there = states[:, :-1], states[:, 1:], real[:, 1:]
    if context != "last":
        before = before.cumsum(1)
    if context == "mean":
        before = before / torch.arange(1, before.shape[1] + 1, device=before.device)[:, None]
    first, second = before[there], after[there]
    means = states.sum(1) / real.sum(1, keepdim=True)
    return TokenMoments(first.T @ first, first.T @ second, means, int(there.sum()))


def perception_of(
    found: TokenMoments,
    labels: Tensor,
    *,
    k: int = 16,
    order: str = "descending",
    orthonormal: bool = True,
    centred: bool = True,
    shuffles: int = 20,
    seed: int = 0,
) -> Perception:
    """Compare directions, given the moments of all texts; see :func:`next_token_perception`.

    Args:
        found: Of at least one pair of states.
        labels: Classes, (B,), integers.
        k: How many directions.
        order: ``"descending"`` or ``"published"``.
        orthonormal: Whether the directions of the classes all count alike.
        centred: Whether classes and means are taken without what all texts have.
        shuffles: How often classes are shuffled for the null.
        seed: Of the shuffles.

    Returns:
        The value, what chance has, and how many directions there were.

    Raises:
        ValueError: If ``shuffles`` is no such number, or there is one class.
    """
    check_positive_int(k, "k")
    check_choice(order, "order", ("descending", "published"))
    if isinstance(shuffles, bool) or not isinstance(shuffles, int) or shuffles < 0:
        raise ValueError(f"`shuffles` must be an integer of at least 0, got {shuffles!r}.")
    means, target = found.means, _one_hot(labels, len(found.means))
    leading = _leading(_whitening(found.second), found.cross, k, order)
    directions, chance_directions = torch.linalg.qr(leading).Q, leading.shape[1]
    if centred:
        means, target = means - means.mean(0), target - target.mean(0)
    most, whiten = min(k, target.shape[1] - centred), _whitening(means.T @ means)

    def overlap(classes: Tensor) -> tuple[Tensor, int]:
        own = _leading(whiten, means.T @ classes, most, order)
        basis = torch.linalg.qr(own).Q if orthonormal else own
        seen = (directions.T @ basis).square().sum() / basis.square().sum()
        return seen, own.shape[1]

    value, taken = overlap(target)
    draw = torch.Generator().manual_seed(seed)
    others = [
        overlap(target[torch.randperm(len(target), generator=draw).to(target.device)])[0]
        for _ in range(shuffles)
    ]
    null = torch.stack(others) if others else value.new_full((1,), torch.nan)
    chance = chance_directions / means.shape[1]
    return Perception(
        value,
        chance,
        (value - chance) / (1 - chance) if chance < 1 else torch.full_like(value, torch.nan),
        null.mean(),
        null.std() if len(null) > 1 else torch.full_like(value, torch.nan),
        taken,
        chance_directions,
    )


def predictive_overlap(
    inputs: Tensor,
    targets: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    *,
    k: int = 16,
    shuffles: int = 20,
    seed: int = 0,
) -> Perception:
    r"""Overlap of the directions by which a joint-embedding predictor predicts with those that tell the class.

    :func:`next_token_perception` with what the predictor is given in the place of the context, and the
    embedding that it must predict in that of the next state: of I-JEPA the context's tokens, and a
    hidden block's. Everything is taken without its mean.

    Args:
        inputs: Of the predictor, (M, d).
        targets: What each must predict, (M, e).
        embeddings: Of images, in the space of ``inputs``, (B, d).
        labels: Their classes, (B,), integers.
        k: How many directions, at most what the inputs span.
        shuffles: How often classes are shuffled for the null; 0 for none, which is NaN.
        seed: Of the shuffles.

    Returns:
        The value, what chance has, and how many directions there were: 0 where classes differ in nothing
        that helps to predict, 1 where they differ in that alone.

    Raises:
        ValueError: If shapes do not fit, inputs do not vary, or there is one class.

    Source:
        Our own extension of arXiv 2505.17169.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 8, generator=draw)
        >>> found = predictive_overlap(x, x[:, :2], x, (x[:, 0] > 0).long(), k=2)  # the class is predicted
        >>> found.value > 0.95, found.chance
        (tensor(True), 0.25)
    """
    before = as_matrix(inputs, "inputs", min_rows=2).detach()
    after = as_matrix(targets, "targets", min_rows=2).detach()
    means = as_matrix(embeddings, "embeddings", min_rows=2).detach()
    if len(before) != len(after):
        raise ValueError(f"`targets` must be as many as `inputs`, {len(before)}, got {len(after)}.")
    if means.shape[1] != before.shape[1]:
        raise ValueError(
            f"`embeddings` must have the width of `inputs`, {before.shape[1]}, got {means.shape[1]}."
        )
    before, after = before - before.mean(0), after - after.mean(0)
    for name, varying in (("inputs", before), ("embeddings", means - means.mean(0))):
        if not bool(varying.any()):
            raise ValueError(f"`{name}` must vary, got {len(varying)} that are the same.")
    moments = TokenMoments(before.T @ before, before.T @ after, means, len(before))
    return perception_of(moments, labels, k=k, shuffles=shuffles, seed=seed)


def _packed(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put real tokens first, in their order, and zeros behind them."""
    states = as_views(hidden, "hidden", min_samples=0, min_views=1).detach()
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a boolean tensor, got {got}.")
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"`mask` must have shape {tuple(states.shape[:2])}, got {tuple(mask.shape)}."
        )
    counts = mask.sum(1)
    if bool((counts == 0).any()):
        row = int((counts == 0).nonzero()[0])
        raise ValueError(f"`mask` leaves no token of text {row}: it is all padding.")
    order = torch.argsort(~mask, dim=1, stable=True)
    real = mask.gather(1, order)
    packed = states.gather(1, order[..., None].expand_as(states))
    return packed.masked_fill(~real[..., None], 0.0), real


def _one_hot(labels: Tensor, texts: int) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` must be a tensor of integers, got {got}.")
    if labels.shape != (texts,):
        raise ValueError(f"`labels` must have shape ({texts},), got {tuple(labels.shape)}.")
    classes, index = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"`labels` must be of at least 2 classes, got {len(classes)}.")
    return torch.nn.functional.one_hot(index, len(classes)).double()


def _whitening(second: Tensor) -> Tensor:
    """Make coordinates of the range of a second moment B in which it is the identity, (d, rank)."""
    values, axes = torch.linalg.eigh(second)
    inside = values > _RANGE * values[-1]
    whiten: Tensor = axes[:, inside] / values[inside].sqrt()
    return whiten


def _leading(whiten: Tensor, cross: Tensor, k: int, order: str) -> Tensor:
    """Solve A Aᵀ w = λ B w on the range of B, and take k of the directions."""
    product = whiten.T @ cross
    _, found = torch.linalg.eigh(product @ product.T)
    chosen = found[:, :k] if order == "published" else found.flip(1)[:, :k]
    leading: Tensor = whiten @ chosen
    return leading
