"""Flip rates: in go predictions before and after a word was put into each text, out comes how many it turned.

A classifier that has learned a spurious token predicts its class wherever the token stands (arXiv 2506.11402). Any word
turns some predictions that were close, so that the same is counted for a control word in the same place of each text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._intervals import paired_interval, wilson_interval

__all__ = ["FlipRate", "flip_rate"]


class FlipRate(NamedTuple):
    """How many predictions a word turns to a class, and how many a control word does.

    Args:
        texts: Texts that were predicted to be of another class: only these can turn.
        flips: How many of them the word turned to the class.
        controls: How many of them their control word did.
        rate: flips / texts.
        low: Lower end of its 95 % interval (Wilson).
        high: Its upper end.
        control: controls / texts.
        control_low: Lower end of its 95 % interval.
        control_high: Its upper end.
        excess: rate − control, −1 to 1; 0 for a word like any other.
        excess_low: Lower end of its 95 % interval, of pairs (``paired_interval``).
        excess_high: Its upper end.
    """

    texts: int
    flips: int
    controls: int
    rate: float
    low: float
    high: float
    control: float
    control_low: float
    control_high: float
    excess: float
    excess_low: float
    excess_high: float


def flip_rate(before: Tensor, after: Tensor, control: Tensor, label: int) -> FlipRate:
    """Count the predictions that a word turns to a class, beside those that control words turn.

    The interval of the excess is of pairs, one a text. It speaks of other texts *and* of other control words if
    each text has a control word of its own, drawn at random: the pairs are independent then. Where few control words
    are shared by all texts, it speaks of those words only.

    Args:
        before: Predicted classes of N texts, (N,), whole numbers.
        after: Those with the word in each text, (N,).
        control: Those with a control word in its place, (N,).
        label: The class.

    Returns:
        Counts, shares and intervals; those of N' ≤ N texts that were predicted to be of another class.

    Raises:
        TypeError: If predictions are no whole numbers.
        ValueError: If shapes differ, or every text was of the class before.

    Cost:
        None to speak of.

    Source:
        The paper's counts of turned predictions, arXiv 2506.11402; the control and the intervals are ours.

    Example:
        >>> import torch
        >>> before, after, control = torch.zeros(40), torch.ones(40), torch.zeros(40)
        >>> found = flip_rate(before.long(), after.long(), control.long(), label=1)
        >>> found.rate, found.control, round(found.excess_low, 3)
        (1.0, 0.0, 0.876)
    """
    for name, value in (("before", before), ("after", after), ("control", control)):
        if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"`{name}` must be a tensor of whole numbers, got {got}.")
        if value.ndim != 1 or value.shape != before.shape:
            raise ValueError(
                f"`{name}` must have shape (N,) with N = {before.numel()}, one for each text, got "
                f"{tuple(value.shape)}."
            )
    can = before != label
    total = int(can.sum())
    if total == 0:
        raise ValueError(
            f"`before` must have a text that is not of class {label}: all {len(before)} are, so that "
            "none can turn."
        )
    mine, its = after[can] == label, control[can] == label
    hits = torch.stack([mine.sum(), its.sum()])
    flips, controls = hits.tolist()
    (rate, control_rate), (low, control_low), (high, control_high) = (
        each.tolist() for each in (hits.double() / total, *wilson_interval(hits, total))
    )
    excess, ends = paired_interval(mine, its)
    return FlipRate(
        total,
        flips,
        controls,
        rate,
        low,
        high,
        control_rate,
        control_low,
        control_high,
        excess.item(),
        ends.lower.item(),
        ends.upper.item(),
    )
