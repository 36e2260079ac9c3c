"""Has the encoder collapsed? In go embeddings as training goes on, out come a state and an alarm.

A state (:mod:`jepa_monitor.monitor.state`) is no alarm yet. Runs with an EMA target may pass through a
collapse phase early on and recover (https://openreview.net/forum?id=SdOYmP67a2): :class:`CollapseAlarm`
waits for a stated patience, and loses it when a collapse returns. Nor is noise a collapse: a measure that
varies from look to look (:mod:`jepa_monitor.monitor.noise`) must fall by more than it varies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.monitor.cause import REPEATED_PAIRS, Cause, find_cause
from jepa_monitor.monitor.evidence import Fallen
from jepa_monitor.monitor.noise import LEAST_LOOKS, NoisyMeasure
from jepa_monitor.monitor.returns import Returns
from jepa_monitor.monitor.state import (
    MIN_SAMPLES,
    CollapseMeasures,
    CollapseState,
    collapse_measures,
    collapse_state,
)

__all__ = [
    "MIN_SAMPLES",
    "AlarmReading",
    "CollapseAlarm",
    "CollapseMeasures",
    "CollapseState",
    "collapse_measures",
    "collapse_state",
    "default_patience",
]

CONFIRMATIONS = 2  # readings in a row that begin or end a collapse for the alarm


def default_patience(planned_steps: float) -> int:
    """Patience for a run of which nothing but its length is known.

    A tenth of it, but at least 1000 steps: the collapse phase of I-JEPA on digits takes 400 to 650.
    Methods without an EMA target have no such phase and need less.

    Args:
        planned_steps: Steps of the run; infinite if no end is planned.

    Returns:
        Training steps, for ``patience_steps`` of :class:`CollapseAlarm`.

    Example:
        >>> default_patience(1760), default_patience(100_000)
        (1000, 10000)
    """
    return max(1000, math.ceil(planned_steps / 10)) if math.isfinite(planned_steps) else 1000


class AlarmReading(NamedTuple):
    """What one look found.

    Attributes:
        state: The state now.
        since_step: The step of the first look that found this state without interruption.
        steps_in_state: Steps since then.
        alarm: Whether somebody should come and look.
        reason: What was seen and what to do, in a sentence or two.
        measures: What was measured.
        lost: Share of the directions (effective rank of the unit embeddings) that the run once had and
            that is gone, 0 to 1: tells of a loss short of a collapse.
        returns: How often directions, or spread, were lost again after they had been won back: of the
            two the one that came and went more often.
        return_steps: Mean number of steps from one such loss to the next; 0 if there were none.
        from_start: Whether no look so far has found the encoder healthy.
        cause: What is wrong, with the evidence and what to look at first; ``None`` where nothing is.
    """

    state: CollapseState
    since_step: int
    steps_in_state: int
    alarm: bool
    reason: str
    measures: CollapseMeasures
    lost: float
    returns: int = 0
    return_steps: float = 0.0
    from_start: bool = False
    cause: Cause | None = None

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers under the tags of the dashboard."""
        return {
            "collapse/state": float(self.state),
            "collapse/steps_in_state": float(self.steps_in_state),
            "collapse/alarm": float(self.alarm),
            "collapse/lost": self.lost,
            "collapse/returns": float(self.returns),
            "collapse/return_steps": self.return_steps,
            "collapse/from_start": float(self.from_start),
        }


class CollapseAlarm:
    """Follows the state through a run and decides when it is an alarm.

    The first collapse may be the transient phase of a healthy run: it becomes an alarm when it has
    lasted ``patience_steps``. Once the run has recovered from a collapse, or has been healthy for
    ``patience_steps``, it gets no patience any more: the second look in a row that finds a collapse
    is an alarm. Moving between the two kinds of collapse does not start the count anew. The alarm
    ends when two looks in a row find the encoder healthy. Training images that repeat are an alarm at
    the second look in a row that finds them, whatever the embeddings are like; so is a shortcut of the loss
    of pairs (:mod:`jepa_monitor.monitor.pair_shortcut`), for as long as it lasts.

    Args:
        patience_steps: Training steps that the first collapse may last.

    Raises:
        TypeError: If ``patience_steps`` is no integer.
        ValueError: If it is less than 1.

    Example:
        >>> import torch
        >>> alarm = CollapseAlarm(patience_steps=100)
        >>> for step in (0, 50, 100):
        ...     reading = alarm.update(step, torch.ones(64, 32))
        >>> reading.state, reading.steps_in_state, reading.alarm
        (<CollapseState.COMPLETE: 2>, 100, True)
    """

    def __init__(self, patience_steps: int = 1000) -> None:
        self.patience_steps = check_positive_int(patience_steps, "patience_steps")
        self.reset()

    def reset(self) -> None:
        """Forget all readings."""
        self._state = CollapseState.HEALTHY
        self._step: int | None = None
        self._since = 0
        self._share, self._spread = NoisyMeasure(), NoisyMeasure()
        self._most_directions = 0.0
        self._phase: int | None = None  # where the collapse at hand began
        self._readings = 0  # in a row on the same side: healthy or collapsed
        self._confirmed = False  # whether the collapse at hand was seen often enough
        self._proven: str = ""  # why a collapse gets no patience
        self._from_start = True  # no look was healthy yet
        self._returns = Returns(), Returns()  # of directions, of spread
        self._fallen = Fallen()
        self._repeats = 0  # looks in a row that found the training images to repeat

    def update(
        self,
        step: int,
        embeddings: Tensor | CollapseMeasures,
        scalars: Mapping[str, float] | None = None,
    ) -> AlarmReading:
        """Take a look.

        Args:
            step: Training steps done; looks come in order. A second look at the same step replaces
                the state, but confirms nothing.
            embeddings: Embeddings of held-out images, (N, K), N ≥ 16, or their measures.
            scalars: What else the look has found, by tag, without prefix: evidence for the cause.

        Returns:
            State, alarm and why.

        Raises:
            ValueError: If the step is before the last one, there are fewer than 16 embeddings, or
                the shape is not (N, K). Nothing is changed then.
        """
        if self._step is not None and step < self._step:
            raise ValueError(
                f"`step` must not decrease: got {step} after {self._step}. Call reset() for "
                "another run."
            )
        measures = embeddings if isinstance(embeddings, tuple) else collapse_measures(embeddings)
        again = step == self._step
        spread = self._spread.update(measures.spread, again)
        share = self._share.update(measures.share, again)
        self._most_directions = max(self._most_directions, measures.directions)
        # A collapse begins where what the measures are at most is less than what they once were at least.
        # It ends where they themselves are more: doubt alone makes no encoder healthy.
        doubted = measures
        noisy = (spread, share) != (measures.spread, measures.share)
        if measures.directions and noisy and not self._state:
            doubted = measures._replace(spread=spread, directions=measures.possible**share)
        state = collapse_state(doubted, self._state, self._share.level, self._spread.level)
        if self._step is None or state != self._state:
            self._since = step
        was_collapsed, collapsed = self._state > 0, state > 0
        if self._step is None or collapsed != was_collapsed:
            self._readings = 1
        elif step > self._step:
            self._readings += 1
        self._state, self._step = state, step
        if collapsed:
            self._enter(step)
        else:
            self._recover(step)
            self._from_start = False
        self._returns[0].update(step, measures.directions / max(measures.possible, 1.0), again)
        self._returns[1].update(step, measures.spread, again)
        returns = max(self._returns, key=lambda each: each.count)
        known = dict(scalars or {})
        if "data/duplicates_low" in known and not (again and self._repeats):
            repeat = known["data/duplicates_low"] >= REPEATED_PAIRS
            self._repeats = self._repeats + 1 if repeat else 0
        alarm, why = self._verdict(step)
        reading = AlarmReading(
            state,
            self._since,
            step - self._since,
            alarm or self._repeats >= CONFIRMATIONS or bool(known.get("text/shortcut")),
            "",
            measures,
            lost=1 - measures.directions / self._most_directions if self._most_directions else 0.0,
            returns=returns.count,
            return_steps=returns.steps,
            from_start=self._from_start,
        )
        cause = find_cause({**_seen(measures), **known, **reading.scalars})
        fallen = self._fallen.update(known, again)
        if cause is not None and collapsed and fallen:
            cause = cause._replace(evidence=f"{cause.evidence} {fallen}")
        return reading._replace(reason=_sentence(measures, cause, why), cause=cause)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers and strings.
        """
        return {
            "state": int(self._state),
            "step": self._step,
            "since": self._since,
            "share": self._share.state_dict(),
            "spread": self._spread.state_dict(),
            "most_directions": self._most_directions,
            "phase": self._phase,
            "readings": self._readings,
            "confirmed": self._confirmed,
            "proven": self._proven,
            "from_start": self._from_start,
            "returns": [each.state_dict() for each in self._returns],
            "fallen": self._fallen.state_dict(),
            "repeats": self._repeats,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another alarm left off; the patience is this one's own.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._state = CollapseState(state_dict["state"])
        self._step = state_dict["step"]
        self._since = state_dict["since"]
        self._share.load_state_dict(state_dict["share"])
        self._spread.load_state_dict(state_dict["spread"])
        self._most_directions = state_dict["most_directions"]
        self._phase = state_dict["phase"]
        self._readings = state_dict["readings"]
        self._confirmed = state_dict["confirmed"]
        self._proven = state_dict["proven"]
        self._from_start = state_dict["from_start"]
        if isinstance(
            state_dict["returns"], list
        ):  # one of directions alone in checkpoints of before
            for each, saved in zip(self._returns, state_dict["returns"], strict=True):
                each.load_state_dict(saved)
        if "fallen" in state_dict:  # not in checkpoints of before
            self._fallen.load_state_dict(state_dict["fallen"])
        self._repeats = state_dict["repeats"]

    def _enter(self, step: int) -> None:
        if self._phase is None:
            self._phase = step
        if self._readings >= CONFIRMATIONS:
            self._confirmed = True

    def _recover(self, step: int) -> None:
        if self._phase is not None and self._readings >= CONFIRMATIONS:
            # Before there are enough looks, what falls and rises may be noise.
            if self._confirmed and self._share.looks >= LEAST_LOOKS:
                self._proven = "It had recovered from an earlier collapse."
            self._phase, self._confirmed = None, False
        if self._phase is None and step - self._since >= self.patience_steps and not self._proven:
            self._proven = f"Before, it was healthy for {self.patience_steps} steps and more."

    def _verdict(self, step: int) -> tuple[bool, str]:
        if self._phase is None or not self._confirmed:
            return False, ""
        lasted = step - self._phase
        if self._state == CollapseState.HEALTHY:
            on = bool(self._proven) or lasted >= self.patience_steps
            return on, "The next look will tell whether it has recovered." if on else ""
        if self._proven:
            return True, self._proven
        if lasted >= self.patience_steps:
            return True, (
                f"It has lasted {lasted} steps, longer than an early collapse phase may "
                f"({self.patience_steps})."
            )
        return False, (
            f"No alarm yet: for {lasted} steps of {self.patience_steps} this may be the early "
            "collapse phase, from which runs with an EMA target recover."
        )


def _seen(measures: CollapseMeasures) -> dict[str, float]:
    """Give the measures under the tags that stand for them, as far as there is anything finite."""
    if measures.nonfinite and not measures.directions:
        return {}
    return {
        "collapse/normalized_std": measures.spread,
        "collapse/effective_rank": measures.directions,
        "collapse/effective_rank_relative": measures.directions / measures.possible,
    }


def _sentence(seen: CollapseMeasures, cause: Cause | None, why: str) -> str:
    if cause is None:
        found = (
            f"The embeddings differ in about {seen.directions:.1f} directions of "
            f"{seen.possible:.0f} possible."
        )
        return f"{found} {why}".strip()
    return " ".join(
        part for part in (f"Cause: {cause.name}.", cause.evidence, why, cause.first) if part
    )
