"""The verdict on a whole run: in go its looks, out come its state, since when, why, and what to keep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from jepa_monitor.monitor.cause import find_cause
from jepa_monitor.monitor.keep import Keep, collapse_began, which_to_keep
from jepa_monitor.monitor.verdict import STATES, CollapseState

__all__ = ["Closing", "close_run", "in_unit"]


class Closing(NamedTuple):
    """What there is to say of a whole run.

    Args:
        healthy: Whether it is at its end; ``None`` if that cannot be told.
        headline: The same in words, and since when.
        since: The step at which the collapse began that the alarm told, or the state at the end
            began; ``None`` if nothing can be told.
        cause: What the alarm said when it began: what was seen, and what to check; empty without.
        keep: Which checkpoint to keep, and how sure that is.
        path: Of that checkpoint.
    """

    healthy: bool | None
    headline: str
    since: int | None
    cause: str
    keep: Keep
    path: str | None

    def __str__(self) -> str:
        said = (f"{self.headline}.", self.cause, f"Keep: {self.keep}")
        return " ".join(filter(None, said))


def in_unit(text: str, unit: str) -> str:
    """Speak of epochs where these are counted.

    Args:
        text: That speaks of steps.
        unit: What is counted.

    Returns:
        The same of the unit.
    """
    return re.sub(r"\bstep(s?)\b", rf"{unit}\1", text)


def close_run(
    looks: Sequence[Mapping[str, float]], cause: str | None = None, unit: str = "step"
) -> Closing:
    """Give the verdict on a run.

    Args:
        looks: Scalars by tag, without prefix, each with its ``step``; in order.
        cause: What the alarm said when it last began; default: what the numbers of that look say.
        unit: What ``step`` counts.

    Returns:
        The verdict, without the path of a checkpoint.

    Raises:
        ValueError: If a look has no ``step``, or they are not in order.

    Example:
        >>> run = [{"step": step, "collapse/state": 0.0, "collapse/alarm": 0.0,
        ...         "collapse/steps_in_state": step} for step in (0.0, 10.0, 20.0)]
        >>> close_run(run).headline
        'Healthy since step 0'
    """
    keep = which_to_keep(looks, unit)
    states = [look for look in looks if "collapse/state" in look]
    if not states:
        return Closing(None, "Whether it is healthy cannot be told", None, "", keep, None)
    last = states[-1]
    state = CollapseState(int(last["collapse/state"]))
    since = int(max(last["step"] - last.get("collapse/steps_in_state", 0.0), states[0]["step"]))
    began = collapse_began(looks)
    alarm = _alarm(states)
    if cause is None:
        cause = "" if alarm is None else in_unit(str(find_cause(alarm) or ""), unit)
    if last.get("collapse/alarm"):
        assert alarm is not None
        if began is None:  # what rings is no collapse
            found = find_cause(last)
            name, began = found.name if found else "an alarm", int(alarm["step"])
            headline = f"Not collapsed, but {name}, which was told at {unit} {began}"
            return Closing(False, headline, began, cause, keep, None)
        name = STATES[state] if state else "Collapse, healthy again at the last look"
        return Closing(False, f"{name}, which began at {unit} {began}", began, cause, keep, None)
    if state:
        headline = f"{STATES[state]} since {unit} {since}, too new to be an alarm"
        return Closing(None, headline, since, "", keep, None)
    if began is not None:
        headline = f"Healthy since {unit} {since}; it had collapsed at {unit} {began} and recovered"
        return Closing(True, headline, since, cause, keep, None)
    return Closing(True, f"Healthy since {unit} {since}", since, "", keep, None)


def _alarm(looks: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Find the look at which the last alarm began."""
    found = None
    for before, look in pairwise([{}, *looks]):
        if look.get("collapse/alarm") and not before.get("collapse/alarm"):
            found = look
    return found
