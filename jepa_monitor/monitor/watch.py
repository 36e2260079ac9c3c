"""Watch a run: in go steps and looks at its encoder, out come scalars, warnings and a decision.

What a callback and a plain loop share: when to look, what to do when a look fails, when an alarm begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jepa_monitor._checks import check_positive
from jepa_monitor._warnings import warn
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.monitor.advice import Advisor
from jepa_monitor.monitor.alarm import (
    MIN_SAMPLES,
    CollapseAlarm,
    default_patience,
)
from jepa_monitor.monitor.outcome import Evaluation, Look, Reading
from jepa_monitor.monitor.training_images import TrainingImages
from jepa_monitor.probes.images import BatchToImages

__all__ = ["Evaluation", "Look", "Reading", "Watch", "check_overhead"]

FREE_SECONDS = 60.0  # of looks, before their share of the wall time counts
_INVERTED_LOOKS = 2  # in a row, before it is said


def _seconds() -> float:
    return time.perf_counter()


def check_overhead(value: Any) -> float | None:
    """Return ``max_overhead`` if it is a share or ``None``.

    Args:
        value: What the caller gave.

    Returns:
        The value.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0 and at most 1.
    """
    if value is None:
        return None
    if check_positive(value, "max_overhead") > 1:
        raise ValueError(f"`max_overhead` must be a share of at most 1, got {value}.")
    return float(value)


class Watch:
    """The story of one run: when it was looked at, what was found, what failed, what was said.

    Args:
        who: Who speaks in warnings.
        every_n_steps: Look when so many steps have passed; ``None`` if something else decides.
        max_overhead: Largest share of the wall time to spend, once a first minute of looks has been
            spent; ``None`` for no limit.
        patience_steps: Steps that a first, early collapse may last.
        strict: Raise when a look fails, instead of warning once.
        prefix: Of all tags.
        own_tags: What the tags about the looks themselves begin with, after it.
        processes: Those that look together.
        batch_to_images: Finds the images in a training batch; ``None`` for the usual places.

    Attributes:
        history: The scalars of all looks that succeeded, each with its ``step``.
        failures: How many looks, or their logging, have failed.
        skipped: How many looks were put off since they would have taken too much time.
        alarm: The alarm, with its memory.
        advisor: What compares the looks, with its memory.
        last_step: The step of the last look; −1 before the first one.
        memory: Whatever else the run is to remember when it is resumed: plain numbers and tensors.
    """

    def __init__(
        self,
        who: str,
        *,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        patience_steps: int | None = None,
        strict: bool = False,
        prefix: str = "",
        own_tags: str = "monitor/",
        processes: Processes | None = None,
        batch_to_images: BatchToImages = None,
    ) -> None:
        self.who = who
        self.every_n_steps = every_n_steps
        self.max_overhead = max_overhead
        self.strict = strict
        self.prefix = prefix
        self.tags = prefix + own_tags
        self.processes = processes or Processes(False)
        self.alarm = CollapseAlarm(patience_steps or default_patience(float("inf")))
        self.advisor = Advisor()
        self.history: list[dict[str, float]] = []
        self.failures = 0
        self.skipped = 0
        self.last_step = -1
        self.memory: dict[str, Any] = {}
        self._training: TrainingImages | None = TrainingImages(batch_to_images)
        self._asked = 0  # the step at which the cadence was last asked for
        self._decided = -1  # the step for which the time was last decided on
        self._put_off = False
        self._told = False  # whether the collapse at hand has been reported
        self._inverted = 0  # looks in a row with a score that is inverted
        self.start()

    def start(self) -> None:
        """Start the clock, when training begins or goes on."""
        self._spent = self._cost = 0.0  # seconds: of all looks since then, of the last one
        self._started = _seconds()

    def is_due(self, step: int) -> bool:
        """Say whether a multiple of ``every_n_steps`` has been passed since the last call.

        Args:
            step: Training steps done. With several optimizers, they come in strides.

        Returns:
            Whether it is time, by the cadence.
        """
        if self.every_n_steps is None:
            return False
        passed = step // self.every_n_steps > self._asked // self.every_n_steps
        self._asked = max(step, self._asked)
        return passed

    def is_news(self, step: int) -> bool:
        """Say whether there is something that the last look has not seen.

        Args:
            step: Training steps done.

        Returns:
            Whether there is.
        """
        return step > self.last_step

    def has_time(self, step: int) -> bool:
        """Say whether a look may be taken, the same in all processes; each step is decided on once.

        Args:
            step: Training steps done.

        Returns:
            Whether there is something new to see and time to look.
        """
        if not self.is_news(step) or step <= self._decided:
            return False
        self._decided = step
        fits = True
        if self.max_overhead is not None:
            elapsed = _seconds() - self._started
            allowed = max(FREE_SECONDS, self.max_overhead * (elapsed + self._cost))
            mine = self._spent + self._cost <= allowed
            fits = self.processes.gather(lambda: mine)[0]
        self.skipped += not fits
        self._put_off = not fits
        return fits

    def owes(self, step: int) -> bool:
        """Say whether the last look that was due has been put off; the final weights deserve it.

        Args:
            step: Training steps done.

        Returns:
            Whether it has.
        """
        return self._put_off and self.is_news(step)

    def see(self, batch: Any) -> None:
        """Let a training batch pass, so that the next look tells whether training images repeat.

        Of a few batches between two looks the thumbnails of a few images are kept. It leaves no
        trace and never raises unless ``strict``; call it with every batch, or not at all.

        Args:
            batch: As the training step gets it.
        """
        if self._training is None:
            return
        try:
            self._training.see(batch)
        except Exception as error:  # whatever a batch is made of
            if self.strict:
                raise
            self._training = None
            self.say(
                f"{self.who} cannot tell whether the training images repeat: "
                f"{type(error).__name__}: {error}"
            )

    def look(self, step: int, evaluate: Callable[[], Evaluation]) -> Look:
        """Look, whatever happens; every process must call it when the others do.

        Args:
            step: Training steps done.
            evaluate: Takes the look.

        Returns:
            What was found. Of a look that failed, the scalars of the monitor itself.
        """
        self.last_step, self._put_off, self._asked = step, False, max(step, self._asked)
        began, advised = _seconds(), dict[str, float]()
        found: Evaluation | None = None
        reading: Reading | None = None
        seen = self._seen()
        try:
            found = evaluate()
            reading = found.reading
            if len(found.embeddings):  # nobody else follows the same embeddings
                found = found._replace(scalars={**found.scalars, **seen})
            if len(found.embeddings) >= MIN_SAMPLES:
                reading = self.alarm.update(step, found.embeddings, found.scalars)
            advised = self.advisor.update(step, found.scalars)
        except Exception as error:  # whatever it is, it must not end the training
            if self.strict:
                raise
            self.fail(step, error)
            found, reading = None, None
        now = _seconds()
        self._cost = now - began
        self._spent += self._cost
        scalars = {} if found is None else dict(found.scalars)
        scalars |= {} if reading is None else reading.scalars
        scalars |= advised
        self._check_polarity(step, scalars)
        scalars = {self.prefix + tag: value for tag, value in scalars.items()}
        scalars[f"{self.tags}overhead"] = min(1.0, self._spent / max(now - self._started, 1e-9))
        scalars |= self.counts()
        if found is not None:
            self.history.append({"step": float(step), **scalars})
        return Look(step, scalars, True, found, reading, self._begins(reading, found is None))

    def counts(self) -> dict[str, float]:
        """Count what went wrong.

        Returns:
            Failures and skipped looks by tag.
        """
        return {
            f"{self.tags}failures": float(self.failures),
            f"{self.tags}skipped": float(self.skipped),
        }

    def fail(self, step: int, error: Exception) -> None:
        """Count what went wrong, and say it once.

        Args:
            step: Training steps done.
            error: What happened.
        """
        self.failures += 1
        if self.failures == 1:
            self.say(
                f"{self.who} could not evaluate at step {step}: {type(error).__name__}: {error} "
                f"Training goes on; further failures are only counted, in {self.tags}failures."
            )

    def say(self, message: str) -> None:
        """Warn, in the first process only.

        Args:
            message: What to say.
        """
        if self.processes.rank == 0:
            warn(message)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers and strings.
        """
        return {
            "history": self.history,
            "failures": self.failures,
            "skipped": self.skipped,
            "last_step": self.last_step,
            "memory": self.memory,
            "asked": self._asked,
            "decided": self._decided,
            "put_off": self._put_off,
            "told": self._told,
            "inverted": self._inverted,
            "alarm": self.alarm.state_dict(),
            "advice": self.advisor.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another one left off; cadence, limit and patience are this one's own.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.history = list(state_dict["history"])
        self.failures = state_dict["failures"]
        self.skipped = state_dict["skipped"]
        self.last_step = state_dict["last_step"]
        self.memory = dict(state_dict["memory"])
        self._asked = state_dict["asked"]
        self._decided = state_dict["decided"]
        self._put_off = state_dict["put_off"]
        self._told = state_dict["told"]
        self._inverted = state_dict["inverted"]
        self.alarm.load_state_dict(state_dict["alarm"])
        self.advisor.load_state_dict(state_dict["advice"])

    def _seen(self) -> dict[str, float]:
        """Say how varied the training images since the last look were: where they were least so."""

        def mine() -> dict[str, float]:
            if self._training is None:
                return {}
            try:
                return self._training.scalars()
            finally:
                self._training.forget()

        seen = self.processes.gather(mine)
        return max(seen, key=lambda found: found.get("data/duplicates", -1.0))

    def _begins(self, reading: Reading | None, failed: bool) -> Reading | None:
        """Find out whether an alarm begins, in any process: what they see may differ."""
        mine = reading if reading is not None and reading.alarm else None
        ringing = [found for found in self.processes.gather(lambda: mine) if found is not None]
        begins = bool(ringing) and not self._told
        self._told = bool(ringing) or (self._told and failed)
        if begins:
            self.memory["cause"] = ringing[0].reason  # for the page of the run
        return ringing[0] if begins else None

    def _check_polarity(self, step: int, scalars: dict[str, float]) -> None:
        """Say once if the score is inverted, by more than chance and for more than one look."""
        highest = scalars.get("density/polarity_high")
        if highest is None or self._inverted >= _INVERTED_LOOKS:
            return
        self._inverted = self._inverted + 1 if highest < 0.5 else 0
        if self._inverted == _INVERTED_LOOKS:
            self.say(
                f"JEPA-SCORE is inverted at step {step}, as it was at the look before: images score "
                "lower than corrupted versions of themselves (density/polarity "
                f"{scalars['density/polarity']:.2f}, at most {highest:.2f} with 95 % confidence). "
                "Early in training this is common; while it lasts, a high score does not mean a "
                "likely image. Compare log_density/* and outliers/*, which do not rest on the "
                "Jacobian alone."
            )
