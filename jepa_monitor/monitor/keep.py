"""Which checkpoint to keep: in go the looks of a run, out come a step, why, and how sure.

The rule: of the looks before the first alarm that found the encoder healthy, the last; a single one amid a
collapse does not count, as it does not end the alarm. Of a run that was healthy to its end that is the last
look; of one that collapsed, the last before it did. Of one that has recovered from an alarm, its last healthy
look is named as well: only a task tells the two apart. It rests on spread
and rank of embeddings alone, which tell a broken checkpoint from a sound one, and not which of two sound
ones is the more useful: ``docs/replay.md`` has what it was worth where accuracies are known. Where
``advice/quality`` says something of the sound ones, that is said as well; and where the data have labels, at which of
them neighbours tell the classes best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jepa_monitor.monitor.advice import is_founded

__all__ = ["Keep", "collapse_began", "which_to_keep"]

_MANY = 3  # looks, of which fewer are no course of a run


class Keep(NamedTuple):
    """Which checkpoint to keep.

    Args:
        step: Of its look; ``None`` if none can be named.
        why: In a sentence.
        sure: How sure that is, in a sentence or two.
    """

    step: int | None
    why: str
    sure: str

    def __str__(self) -> str:
        return f"{self.why} {self.sure}"


def which_to_keep(looks: Sequence[Mapping[str, float]], unit: str = "step") -> Keep:
    """Choose among the looks of a run.

    Args:
        looks: Scalars by tag, without prefix, each with its ``step``; in order. ``collapse/state`` and
            ``collapse/alarm`` decide; looks without a state are passed over.
        unit: What ``step`` counts.

    Returns:
        The last look with state 0 before the first alarm, or else of those without an alarm, unless the
        look before it was collapsed and the one after it is not healthy either, or not there.

    Raises:
        ValueError: If a look has no ``step``, or they are not in order.

    Example:
        >>> run = [{"step": s, "collapse/state": float(s > 20), "collapse/alarm": float(s > 30)}
        ...        for s in (10, 20, 30, 40)]
        >>> which_to_keep(run).step
        20
    """
    _check(looks)
    told = [look for look in looks if "collapse/state" in look]
    if not told:
        return Keep(None, "No checkpoint can be named.", "No look had images enough to tell.")
    every = [look for n, look in enumerate(told) if _is_sound(told, n)]
    first = next((look["step"] for look in told if look.get("collapse/alarm")), math.inf)
    sound = [look for look in every if look["step"] < first] or every
    if not sound:
        return Keep(
            None,
            "None: no look found the encoder healthy for more than a moment.",
            f"Sure, as far as looks go: there was none before {unit} {told[0]['step']:.0f}.",
        )
    chosen, last = sound[-1], told[-1]
    step = int(chosen["step"])
    recovered = ""
    if every[-1]["step"] > first > chosen["step"]:
        other = f"{every[-1]['step']:.0f}"
        recovered = f" The run has recovered since: the other one to try is at {unit} {other}."
    if chosen is not last:
        after = next(look for look in told if look["step"] > chosen["step"])
        alarmed = any(look.get("collapse/alarm") for look in told if look["step"] > step)
        later = "What came later was collapsed"
        later += "" if alarmed else ", which is no alarm yet and may pass"
        return Keep(
            step,
            f"The last that was healthy, at {unit} {step}.",
            f"{later}: spread and rank say so, and of how useful it is they say nothing. It may have "
            f"begun to fail unseen: nothing was looked at until {unit} {after['step']:.0f}"
            f"{_lost(chosen)}.{recovered}{_advised(sound, unit)}{_labelled(sound, unit)}",
        )
    if len(told) < _MANY:
        few = "one look shows" if len(told) == 1 else f"{len(told)} looks show"
        return Keep(step, f"The last, at {unit} {step}.", f"Not sure: {few} no course of a run.")
    return Keep(
        step,
        f"The last, at {unit} {step}.",
        "It is not collapsed. Whether an earlier one is more useful, spread and rank do not tell: only "
        f"a task does{_lost(chosen)}.{_advised(sound, unit)}{_labelled(sound, unit)}",
    )


def collapse_began(looks: Sequence[Mapping[str, float]]) -> int | None:
    """Find where the collapse began that an alarm told last.

    Args:
        looks: As :func:`which_to_keep` takes them.

    Returns:
        The step of its first look, counted as the alarm counts: a single healthy look does not end a
        collapse, two in a row do. ``None`` if there was no alarm.

    Raises:
        ValueError: As :func:`which_to_keep`.
    """
    _check(looks)
    began: int | None = None
    found: int | None = None
    healthy = 0
    for look in looks:
        if "collapse/state" not in look:
            continue
        healthy = 0 if look["collapse/state"] else healthy + 1
        if healthy >= 2:
            began = None
        elif look["collapse/state"] and began is None:
            began = int(look["step"])
        if look.get("collapse/alarm"):
            found = began
    return found


def _is_sound(looks: Sequence[Mapping[str, float]], n: int) -> bool:
    if looks[n]["collapse/state"] or looks[n].get("collapse/alarm"):
        return False
    rises = n > 0 and looks[n - 1]["collapse/state"] > 0
    lasts = n + 1 < len(looks) and looks[n + 1]["collapse/state"] == 0
    return lasts or not rises


def _advised(sound: Sequence[Mapping[str, float]], unit: str) -> str:
    """Say what the advice says of the sound looks: one run is not told two things unconnected."""
    told = [look for look in sound if "advice/quality" in look]
    if len(told) < 2 or told[-1] is not sound[-1]:
        return ""
    best = max(told, key=lambda look: (look["advice/quality"], look["step"]))
    if not is_founded(told[-1], best["advice/quality"]):
        return ""
    if best is told[-1]:
        return f" advice/quality was at no look higher ({best['advice/quality']:.2g})."
    return (
        f" advice/quality was highest at {unit} {best['step']:.0f} ({best['advice/quality']:.2g}, here "
        f"{told[-1]['advice/quality']:.2g}): try that one, too."
    )


def _labelled(sound: Sequence[Mapping[str, float]], unit: str) -> str:
    """Say what the labels at hand tell of the sound looks: they are a task, if not the user's."""
    ends = ("quality/knn_low", "quality/knn", "quality/knn_high")
    told = [look for look in sound if all(end in look for end in ends)]
    if len(told) < 2 or told[-1] is not sound[-1]:
        return ""
    here, best = told[-1], max(told, key=lambda look: (look["quality/knn"], look["step"]))
    if best is here:
        return f" By the labels at hand, quality/knn was at no look higher ({here['quality/knn']:.2f})."
    numbers = f"({best['quality/knn']:.2f}, here {here['quality/knn']:.2f})"
    found = (
        f" By the labels at hand, quality/knn was highest at {unit} {best['step']:.0f} {numbers}"
    )
    if best["quality/knn_low"] > here["quality/knn_high"]:
        return f"{found}: for classes like these, that one is better."
    return f"{found}, by less than can be told from chance."


def _lost(look: Mapping[str, float]) -> str:
    """Mention that directions were being lost, where a quarter of them was."""
    lost = look.get("collapse/lost", 0.0)
    return (
        f"; {lost:.0%} of the most directions that the run has had were gone" if lost > 0.25 else ""
    )


def _check(looks: Sequence[Mapping[str, float]]) -> None:
    steps = [look.get("step") for look in looks]
    if any(step is None for step in steps):
        raise ValueError(f"`looks` must each have a `step`, got {steps}.")
    if any(b < a for a, b in itertools.pairwise(steps)):  # type: ignore[operator]
        raise ValueError(f"`looks` must be in order of `step`, got {steps}.")
