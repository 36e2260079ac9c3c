"""Has the encoder collapsed? In go embeddings as training goes on, out come a state and an alarm.

Three states: the embeddings differ in many directions (*healthy*), they differ in few
(*dimensional* collapse), they hardly differ (*complete* collapse). Both measures behind them are
relative, so no threshold depends on the method, the width or the scale of the embeddings:

- the *spread*, :func:`~jepa_monitor.functional.collapse.normalized_std`: 1 for directions that
  cancel, 0 for one direction;
- the *share of directions*: log of the effective rank of the embeddings scaled to unit length,
  over the same of isotropic embeddings of equal N and K. A cloud in r of K directions has about
  log r / log K.

How much a healthy encoder has of either depends on the architecture and the data (few classes
leave few directions), so both also count against the highest that the run itself has had. Half of
the share is the square root of what the directions once were.

A state is no alarm yet. Runs with an EMA target may pass through a collapse phase early on and
recover (https://openreview.net/forum?id=SdOYmP67a2): :class:`CollapseAlarm` waits for a stated
patience, and loses it when a collapse returns.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.collapse import effective_rank, normalized_std
from jepa_monitor.functional.isotropic import isotropic_baseline

__all__ = [
    "AlarmReading",
    "CollapseAlarm",
    "CollapseMeasures",
    "CollapseState",
    "collapse_measures",
    "collapse_state",
    "default_patience",
]

# Each state is entered below the first value and left above the second. `benchmarks/collapse_zoo.py`
# chose them on seeds of its own; `docs/collapse.md` shows how far healthy runs stay away.
COMPLETE_SPREAD = (0.07, 0.10)
DIMENSIONAL_SHARE = (0.20, 0.25)
LOST_SPREAD = (0.20, 0.30)  # of the highest spread of the run
LOST_SHARE = (0.50, 0.60)  # of the highest share of the run
MIN_SAMPLES = 16  # under so few embeddings a handful of directions looks like all there could be
CONFIRMATIONS = 2  # readings in a row that begin or end a collapse for the alarm


class CollapseState(IntEnum):
    """What the embeddings are like; ordered by how much is lost."""

    HEALTHY = 0
    DIMENSIONAL = 1
    COMPLETE = 2


class CollapseMeasures(NamedTuple):
    """What the state is read from.

    Attributes:
        spread: Normalised standard deviation, 0 to about 1; 0 if constant.
        directions: Effective rank of the unit embeddings' covariance; 0 if constant.
        possible: The same for isotropic embeddings of equal N and K.
        samples: Number N of finite embeddings that were measured.
        nonfinite: Embeddings with NaN or infinity, which were left out.
    """

    spread: float
    directions: float
    possible: float
    samples: int
    nonfinite: int

    @property
    def share(self) -> float:
        """log(directions) / log(possible), 0 to about 1; 0 if constant."""
        if self.directions <= 1:
            # One of one possible direction is all there is; a width of 1 has no dimensional state.
            return 1.0 if self.directions > 0 and self.possible <= 1 else 0.0
        return math.log(self.directions) / math.log(max(self.possible, 1 + 1e-9))


def collapse_measures(embeddings: Tensor) -> CollapseMeasures:
    """Measure what :func:`collapse_state` decides by.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 16.

    Returns:
        The measures, of the finite rows. Constant embeddings (up to rounding in their own dtype),
        zeros and rows of which fewer than 16 or fewer than half are finite have no spread and no
        direction.

    Raises:
        ValueError: If there are fewer than 16 embeddings: no state can be told from them, least of
            all the healthy one. Or if the shape is not (N, K).

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(32), -torch.eye(32)])
        >>> measures = collapse_measures(z)
        >>> round(measures.spread, 2), round(measures.directions), round(measures.possible)
        (1.01, 32, 25)
    """
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"`embeddings` must have shape (N, K), got {tuple(embeddings.shape)}.")
    if len(embeddings) < MIN_SAMPLES:
        raise ValueError(
            f"`embeddings` must have at least {MIN_SAMPLES} rows to tell a state of collapse, got "
            f"{len(embeddings)}. Give more held-out images."
        )
    finite = embeddings[torch.isfinite(embeddings).all(dim=1)]
    count, width = finite.shape
    nonfinite = len(embeddings) - count
    possible = isotropic_baseline(max(count - 1, 1), width).effective_rank
    enough = count >= MIN_SAMPLES and count >= nonfinite
    if not enough or effective_rank(finite) == 0:
        return CollapseMeasures(0.0, 0.0, possible, count, nonfinite)
    unit = unit_rows(finite.double())
    return CollapseMeasures(
        spread=normalized_std(unit).item(),
        directions=effective_rank(unit).item(),
        possible=possible,
        samples=count,
        nonfinite=nonfinite,
    )


def collapse_state(
    embeddings: Tensor | CollapseMeasures,
    previous: CollapseState = CollapseState.HEALTHY,
    highest_share: float = 0.0,
    highest_spread: float = 0.0,
) -> CollapseState:
    """Tell a healthy encoder from a collapsed one, and which way it has collapsed.

    Complete below a spread of 0.07 (a mean cosine of about 0.995) or a fifth of the run's highest;
    otherwise dimensional below a share of directions of 0.20 (3 of 256) or half of the run's
    highest. To leave a state, 0.10 and three tenths, or 0.25 and six tenths, must be passed.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 16, or their measures.
        previous: The state before, for the hysteresis.
        highest_share: The run's highest share of directions so far; 0 to look at these embeddings
            alone.
        highest_spread: The run's highest spread so far; likewise.

    Returns:
        The state. Constant embeddings, zeros, and embeddings most of which are not finite are
        COMPLETE.

    Raises:
        ValueError: If there are fewer than 16 embeddings, or the shape is not (N, K).

    Example:
        >>> import torch
        >>> z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        >>> collapse_state(z), collapse_state(z[:, :2] @ z[:2]), collapse_state(z + 100)
        (<CollapseState.HEALTHY: 0>, <CollapseState.DIMENSIONAL: 1>, <CollapseState.COMPLETE: 2>)
    """
    measures = embeddings if isinstance(embeddings, tuple) else collapse_measures(embeddings)
    complete = previous == CollapseState.COMPLETE
    if measures.spread < max(COMPLETE_SPREAD[complete], LOST_SPREAD[complete] * highest_spread):
        return CollapseState.COMPLETE
    collapsed = previous != CollapseState.HEALTHY
    if measures.share < max(DIMENSIONAL_SHARE[collapsed], LOST_SHARE[collapsed] * highest_share):
        return CollapseState.DIMENSIONAL
    return CollapseState.HEALTHY


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
        measures: What the state was read from.
    """

    state: CollapseState
    since_step: int
    steps_in_state: int
    alarm: bool
    reason: str
    measures: CollapseMeasures

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers under the tags of the dashboard."""
        return {
            "collapse/state": float(self.state),
            "collapse/steps_in_state": float(self.steps_in_state),
            "collapse/alarm": float(self.alarm),
        }


class CollapseAlarm:
    """Follows the state through a run and decides when it is an alarm.

    The first collapse may be the transient phase of a healthy run: it becomes an alarm when it has
    lasted ``patience_steps``. Once the run has recovered from a collapse, or has been healthy for
    ``patience_steps``, it gets no patience any more: the second look in a row that finds a collapse
    is an alarm. Moving between the two kinds of collapse does not start the count anew. The alarm
    ends when two looks in a row find the encoder healthy.

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
        self._highest_share = 0.0
        self._highest_spread = 0.0
        self._phase: int | None = None  # where the collapse at hand began
        self._readings = 0  # in a row on the same side: healthy or collapsed
        self._confirmed = False  # whether the collapse at hand was seen often enough
        self._proven: str = ""  # why a collapse gets no patience

    def update(self, step: int, embeddings: Tensor | CollapseMeasures) -> AlarmReading:
        """Take a look.

        Args:
            step: Training steps done; looks come in order. A second look at the same step replaces
                the state, but confirms nothing.
            embeddings: Embeddings of held-out images, (N, K), N ≥ 16, or their measures.

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
        self._highest_share = max(self._highest_share, measures.share)
        self._highest_spread = max(self._highest_spread, measures.spread)
        state = collapse_state(measures, self._state, self._highest_share, self._highest_spread)
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
        alarm, why = self._verdict(step)
        return AlarmReading(
            state, self._since, step - self._since, alarm, _sentence(state, measures, why), measures
        )

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers and strings.
        """
        return {
            "state": int(self._state),
            "step": self._step,
            "since": self._since,
            "highest_share": self._highest_share,
            "highest_spread": self._highest_spread,
            "phase": self._phase,
            "readings": self._readings,
            "confirmed": self._confirmed,
            "proven": self._proven,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another alarm left off; the patience is this one's own.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._state = CollapseState(state_dict["state"])
        self._step = state_dict["step"]
        self._since = state_dict["since"]
        self._highest_share = state_dict["highest_share"]
        self._highest_spread = state_dict["highest_spread"]
        self._phase = state_dict["phase"]
        self._readings = state_dict["readings"]
        self._confirmed = state_dict["confirmed"]
        self._proven = state_dict["proven"]

    def _enter(self, step: int) -> None:
        if self._phase is None:
            self._phase = step
        if self._readings >= CONFIRMATIONS:
            self._confirmed = True

    def _recover(self, step: int) -> None:
        if self._phase is not None and self._readings >= CONFIRMATIONS:
            if self._confirmed:
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


_ADVICE = {
    CollapseState.HEALTHY: "",
    CollapseState.DIMENSIONAL: (
        "Check what decorrelates the dimensions (covariance term, SIGReg weight, centring or "
        "sharpening), whether the task is too easy (masking, augmentation), and the data loader."
    ),
    CollapseState.COMPLETE: (
        "Check what keeps the embeddings apart (stop-gradient, predictor, EMA momentum, variance "
        "term, centring) and lower the learning rate."
    ),
}


def _sentence(state: CollapseState, seen: CollapseMeasures, why: str) -> str:
    if seen.nonfinite and not seen.directions:
        found = (
            f"{seen.nonfinite} of {seen.nonfinite + seen.samples} embeddings hold NaN or infinity"
        )
    elif state == CollapseState.COMPLETE:
        found = f"The embeddings point nearly the same way: normalised std {seen.spread:.2g} of 1"
    else:
        few = "only " if state else ""
        found = (
            f"The embeddings differ in {few}about {seen.directions:.1f} directions of "
            f"{seen.possible:.0f} possible"
        )
    kind = {0: "", 1: " (dimensional collapse)", 2: " (complete collapse)"}[state]
    return " ".join(part for part in (f"{found}{kind}.", why, _ADVICE[state]) if part)
