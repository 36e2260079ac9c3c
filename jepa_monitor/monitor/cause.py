"""What is wrong with a run, in words: in go the numbers of a look, out come cause, evidence, first thing to do.

A state says what embeddings are like; several faults lead to the same one. Rules are asked in the order
of how directly they point at a fault, and each reads tags of the dashboard: one that is not there decides
nothing. An *amber* cause is worth knowing and never an alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jepa_monitor.monitor.state import CollapseState

__all__ = ["RECURRENT_RETURNS", "REPEATED_PAIRS", "Cause", "find_cause"]

REPEATED_PAIRS = 0.5  # of one batch that are the same image: at most two images in effect
RECURRENT_RETURNS = 2  # after the first fall, which may be an early phase
_SAME_AS_NOTHING = 0.1  # of the variance of two views, between images
_CLUSTER_PAIRS = 0.05  # of embeddings that are the same: 20 points in effect
_BEYOND_CHANCE = 3.0  # times as many as normal embeddings of the same rank have

Scalars = Mapping[str, float]


class Cause(NamedTuple):
    """What is wrong.

    Attributes:
        name: In a few words, such as ``"the training images repeat"``.
        evidence: The numbers that say so, a sentence.
        first: What to look at first, a sentence.
        red: Whether it may be an alarm; an amber cause is only told.
    """

    name: str
    evidence: str
    first: str
    red: bool = True

    def __str__(self) -> str:
        return f"{self.evidence} {self.first}"


def find_cause(scalars: Scalars) -> Cause | None:
    """Name what is wrong, as far as the numbers of a look tell.

    Args:
        scalars: By tag, without prefix. ``collapse/state`` is needed for a collapse to be named; the
            rest is read where it is there.

    Returns:
        The cause; ``None`` where nothing is wrong or nothing is known.

    Example:
        >>> cause = find_cause({"collapse/state": 0.0, "data/duplicates": 1.0, "data/duplicates_low": 1.0})
        >>> cause.name, cause.first
        ('the training images repeat', 'Look first at the loader: its sampler, its index, a cache.')
    """
    found = (rule(scalars) for rule in _RULES)
    return next((cause for cause in found if cause is not None), None)


def _repeated_images(scalars: Scalars) -> Cause | None:
    if scalars.get("data/duplicates_low", 0.0) < REPEATED_PAIRS:
        return None
    share = scalars["data/duplicates"]
    return Cause(
        "the training images repeat",
        f"{share:.0%} of the pairs of images in a training batch are nearly the same image "
        f"(data/duplicates), as many as if there were no more than {1 / share:.0f} in all.",
        "Look first at the loader: its sampler, its index, a cache.",
    )


def _not_finite(scalars: Scalars) -> Cause | None:
    finite = "collapse/normalized_std" in scalars and "collapse/effective_rank" in scalars
    if scalars.get("collapse/state") != CollapseState.COMPLETE or finite:
        return None
    return Cause(
        "embeddings that are not finite",
        "Hardly any embedding is finite: the others hold NaN or infinity.",
        "Look first at the learning rate and its warm-up, then at the scaler of mixed precision.",
    )


def _shortcut(scalars: Scalars) -> Cause | None:
    if not scalars.get("text/shortcut"):
        return None
    aligned, common, gap = (scalars[f"text/{n}"] for n in ("aligned", "common_share", "pair_gap"))
    before, gap_before = (scalars[f"text/{n}_first"] for n in ("aligned", "pair_gap"))
    return Cause(
        "a shortcut of the loss of pairs",
        f"Since the first look the cosine of held-out pairs has risen from {before:.2f} to {aligned:.2f}, but not above "
        f"that of shuffled pairs: text/pair_gap was {gap_before:.3f} and is {gap:.3f}. What has come together is what all "
        f"texts share, {common:.0%} of the energy (text/common_share).",
        "Look first at the weight of that loss, then at whether any other loss needs the states that it compares; with "
        "the other pairs of a batch as negatives (InfoNCE) there is no such shortcut.",
    )


def _from_the_start(scalars: Scalars) -> Cause | None:
    if not scalars.get("collapse/state") or not scalars.get("collapse/from_start"):
        return None
    return Cause(
        f"{_kind(scalars)} since the start",
        f"{_measured(scalars)} It was so at the first look: training has not brought it about.",
        "Look first at the encoder as it was built (initial weights, its last layer and norm, pooling) "
        "and at how the probe's images are normalised.",
    )


def _early(scalars: Scalars) -> Cause | None:
    if not scalars.get("collapse/state") or scalars.get("collapse/alarm", 1.0):
        return None
    lag = scalars.get("ema/functional_lag")
    near = (
        f" The target trails the encoder by {lag:.2g} of its own variance."
        if lag is not None
        else ""
    )
    return Cause(
        "perhaps an early phase, with a teacher too close to its student",
        f"{_measured(scalars)}{near}",
        "If it lasts, look first at the momentum of the EMA target and at the masking: lower the one, or "
        "hide less.",
        red=False,
    )


def _recurrent(scalars: Scalars) -> Cause | None:
    returns = scalars.get("collapse/returns", 0.0)
    if returns < RECURRENT_RETURNS:
        return None
    collapsed = bool(scalars.get("collapse/state"))
    every = scalars.get("collapse/return_steps")
    pace = f", every {every:.0f} steps" if every else ""
    return Cause(
        f"recurrent {'' if collapsed else 'partial '}collapse",
        f"Directions or spread have been lost and won back {returns:.0f} times after the first{pace}. "
        f"{_measured(scalars)}",
        "Look first at the learning rate and the momentum of the EMA target: lower the first, or raise "
        "the second.",
        red=collapsed,
    )


def _clusters(scalars: Scalars) -> Cause | None:
    share, rank = scalars.get("collapse/same_pairs"), scalars.get("collapse/effective_rank")
    if scalars.get("collapse/state") != CollapseState.DIMENSIONAL or share is None or rank is None:
        return None
    if share < max(_CLUSTER_PAIRS, _BEYOND_CHANCE * _same_by_chance(rank)):
        return None
    return Cause(
        "cluster collapse",
        f"The embeddings sit on about {1 / share:.0f} points: {share:.0%} of their pairs are the same "
        f"but for a hundredth of the variance (collapse/same_pairs). {_measured(scalars)}",
        "Look first at centring and sharpening (the teacher's temperature), at the number of prototypes, "
        "and at whether the data hold few kinds of images.",
    )


def _complete(scalars: Scalars) -> Cause | None:
    if scalars.get("collapse/state") != CollapseState.COMPLETE:
        return None
    return Cause(
        "complete collapse",
        f"The embeddings point nearly the same way. {_measured(scalars)}",
        "Look first at what keeps the embeddings apart (stop-gradient, predictor, EMA momentum, variance "
        "term, centring), then at the learning rate.",
    )


def _dimensional(scalars: Scalars) -> Cause | None:
    if scalars.get("collapse/state") != CollapseState.DIMENSIONAL:
        return None
    return Cause(
        "dimensional collapse",
        f"The embeddings differ in few directions. {_measured(scalars)}",
        "Look first at what decorrelates the dimensions (covariance term, SIGReg weight, centring or "
        "sharpening), then at whether the task is too easy (masking, augmentation).",
    )


def _views_of_one(scalars: Scalars) -> Cause | None:
    highest = scalars.get("data/variety_high")
    if highest is None or highest >= _SAME_AS_NOTHING:
        return None
    return Cause(
        "views of different images are no more different than views of one",
        f"Of the variance of the views' pixels {max(0.0, scalars['data/variety']):.0%} is between images, at "
        f"most {max(0.0, highest):.0%} (data/variety).",
        "Look first at whether the loader repeats one image, then at whether the augmentation leaves "
        "anything of it.",
        red=False,
    )


_RULES: tuple[Callable[[Scalars], Cause | None], ...] = (
    _repeated_images, _not_finite, _shortcut, _recurrent, _from_the_start, _early, _clusters, _complete,
    _dimensional, _views_of_one,
)  # fmt: skip


def _kind(scalars: Scalars) -> str:
    complete = scalars["collapse/state"] == CollapseState.COMPLETE
    return "complete collapse" if complete else "dimensional collapse"


def _measured(scalars: Scalars) -> str:
    """Say what the state was read from."""
    spread = scalars.get("collapse/normalized_std")
    rank, relative = (scalars.get(f"collapse/effective_rank{end}") for end in ("", "_relative"))
    if spread is None or rank is None or relative is None:
        return ""
    return (
        f"They have a spread of {spread:.2g} of 1 and use {rank:.1f} directions, {relative:.0%} of what "
        "isotropic ones would."
    )


def _same_by_chance(rank: float) -> float:
    """Share of the pairs of normal embeddings of a rank that differ by a hundredth of the variance."""
    import torch

    half = torch.tensor([max(rank, 1.0) / 2], dtype=torch.float64)
    return float(torch.special.gammainc(half, 0.01 * half))
