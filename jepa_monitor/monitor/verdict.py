"""What a look says, in words: in go its numbers, out come a headline and a few sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jepa_monitor.insights import Insight
from jepa_monitor.monitor.alarm import CollapseState

__all__ = ["Verdict", "judge"]

_STATES = {
    CollapseState.HEALTHY: "Healthy",
    CollapseState.DIMENSIONAL: "Dimensional collapse",
    CollapseState.COMPLETE: "Complete collapse",
}


class Verdict(NamedTuple):
    """What a look says.

    Args:
        headline: The state of the embeddings, and since when.
        sentences: Why, and what the insights say.
        alarming: Whether somebody should look: there is a collapse.
    """

    headline: str
    sentences: tuple[str, ...]
    alarming: bool

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
    sentences = [sentence for insight in insights if (sentence := insight.says(scalars))]
    if state is None:
        return Verdict("Too few images to tell a collapse", tuple(sentences), False)
    headline = _STATES[CollapseState(int(state))]
    lasted = scalars.get("collapse/steps_in_state")
    if step is not None and lasted is not None:
        headline += f" since step {step - lasted:.0f}"
    if state == CollapseState.HEALTHY and not scalars.get("collapse/alarm"):
        return Verdict(headline, tuple(sentences), False)
    if not scalars.get("collapse/alarm"):
        sentences.insert(0, "No alarm yet: an early collapse may pass.")
    return Verdict(headline, (_cause(scalars), *sentences), True)


def _cause(scalars: Mapping[str, float]) -> str:
    """Say what the state was read from."""
    spread = scalars.get("collapse/normalized_std")
    ranks = (scalars.get(f"collapse/effective_rank{end}") for end in ("", "_relative"))
    rank, relative = ranks
    if spread is None or rank is None or relative is None:
        return "Hardly any embedding is finite."
    return (
        f"The embeddings have a spread of {spread:.2g} of 1 and use {rank:.1f} directions, "
        f"{relative:.0%} of what isotropic ones would."
    )
