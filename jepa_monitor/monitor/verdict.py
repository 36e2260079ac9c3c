"""What a look says, in words: in go its numbers, out come a headline and a few sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jepa_monitor.insights import Insight
from jepa_monitor.monitor.advice import advice_sentence
from jepa_monitor.monitor.alarm import CollapseState
from jepa_monitor.monitor.cause import Cause, find_cause

__all__ = ["STATES", "CollapseState", "Verdict", "judge"]

_FIRST = "outliers"  # name of the insight that people ask for first
STATES = {
    CollapseState.HEALTHY: "Healthy",
    CollapseState.DIMENSIONAL: "Dimensional collapse",
    CollapseState.COMPLETE: "Complete collapse",
}


class Verdict(NamedTuple):
    """What a look says.

    Args:
        headline: The state of the embeddings, and since when.
        sentences: Why, and what the insights say.
        alarming: Whether somebody should look: there is a collapse, or training images repeat.
        cause: What is wrong, with the evidence and what to look at first; ``None`` where nothing is.
    """

    headline: str
    sentences: tuple[str, ...]
    alarming: bool
    cause: Cause | None = None

    def __str__(self) -> str:
        return " ".join([f"{self.headline}.", *self.sentences])


def judge(
    scalars: Mapping[str, float], insights: Iterable[Insight], step: float | None = None
) -> Verdict:
    """Put numbers into words.

    Args:
        scalars: Of a look, by tag, without prefix.
        insights: Who may say something.
        step: Training steps done, to say since when.

    Returns:
        The verdict. It says nothing of what was not measured.
    """
    state = scalars.get("collapse/state")
    heard = sorted(insights, key=lambda insight: insight.name != _FIRST)
    sentences = [sentence for insight in heard if (sentence := insight.says(scalars))]
    begun = step != 0  # before it, there is no other look to keep and no run to be a share of
    advice = advice_sentence(scalars) if begun else ""
    if advice:  # after the outliers: what to do before how sure all is
        sentences.insert(min(1, len(sentences)), advice)
    cause = find_cause(scalars)
    if cause is not None:
        waits = state and scalars.get("collapse/alarm") == 0
        waiting = ["No alarm yet: an early collapse may pass."] if waits else []
        sentences = [cause.evidence, *waiting, cause.first, *sentences]
    if cost := _cost(scalars, begun):
        sentences.append(cost)
    if state is None:
        return Verdict("Too few images to tell a collapse", tuple(sentences), False, cause)
    if not state and cause is not None and cause.red:  # a loader that repeats one image, say
        return Verdict(f"Not collapsed, but {cause.name}", tuple(sentences), True, cause)
    headline = STATES[CollapseState(int(state))]
    lasted = scalars.get("collapse/steps_in_state")
    if step is not None and lasted is not None:
        headline += f" since step {step - lasted:.0f}"
    if cause is not None and not headline.casefold().startswith(cause.name):
        headline += f": {cause.name}"
    alarming = bool(state or scalars.get("collapse/alarm"))
    return Verdict(headline, tuple(sentences), alarming, cause)


def _cost(scalars: Mapping[str, float], begun: bool) -> str:
    """Say what the looks cost, and their share of the run once there is one."""
    seconds, share = (scalars.get(f"monitor/{name}") for name in ("seconds", "overhead"))
    if seconds is None or share is None:
        return ""
    of_run = f", all of them {share:.1%} of the run" if begun else ""
    return f"This look took {seconds:.2g} s{of_run}."
