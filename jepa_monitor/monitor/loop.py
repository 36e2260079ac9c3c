"""Watch a run in a plain loop: in go an encoder and the steps done, out comes a look when it is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.monitor.watch import Evaluation, Look, Watch, check_overhead

if TYPE_CHECKING:
    from jepa_monitor.monitor.monitor import DensityMonitor

__all__ = ["DensityWatch", "evaluate_density"]


def evaluate_density(watch: Watch, monitor: DensityMonitor, encoder: Any) -> Evaluation:
    """Have a monitor evaluate an encoder, and the watch remember what later looks compare with.

    Args:
        watch: The story of the run.
        monitor: What evaluates.
        encoder: What to look at.

    Returns:
        What was found.
    """
    monitor.memory = watch.memory.setdefault("monitor", {})
    report = monitor.evaluate(encoder)
    return Evaluation(report.scalars, report.probe.embeddings, report)


class DensityWatch(Watch):
    """Watches an encoder in a training loop of your own; made by :meth:`DensityMonitor.watch`.

    Args:
        monitor: What evaluates.
        every_n_steps: Look when so many steps have passed.
        max_overhead: See :class:`Watch`.
        patience_steps: See :class:`Watch`.
        strict: See :class:`Watch`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        monitor: DensityMonitor,
        *,
        every_n_steps: int = 1,
        max_overhead: float | None = 0.05,
        patience_steps: int | None = None,
        strict: bool = False,
    ) -> None:
        check_positive_int(every_n_steps, "every_n_steps")
        if patience_steps is not None:
            check_positive_int(patience_steps, "patience_steps")
        if not isinstance(strict, bool):
            raise TypeError(f"`strict` must be True or False, got {strict!r}.")
        super().__init__(
            "DensityMonitor",
            every_n_steps=every_n_steps,
            max_overhead=check_overhead(max_overhead),
            patience_steps=patience_steps,
            strict=strict,
            processes=Processes(monitor.distributed),
            batch_to_images=monitor.batch_to_images,
        )
        self.monitor = monitor

    def __call__(self, encoder: Any, step: int, *, last: bool = False) -> Look:
        """Look if it is time: at the first call, and when ``every_n_steps`` steps have passed.

        What goes wrong is one warning and a count, ``monitor/failures``; with ``strict`` it is
        raised. An alarm is a warning, once for each collapse.

        Args:
            encoder: What to look at.
            step: Training steps done, which must not decrease.
            last: Whether these are the final weights, which are looked at in any case.

        Returns:
            The look. If none was due it is false and has no scalars.
        """
        look = self.ask(lambda: encoder, step, last=last)
        if look.began is not None:
            self.say(f"{self.who} at step {step}: {look.began.reason}")
        return look

    def ask(self, find: Callable[[], Any], step: int, *, last: bool = False) -> Look:
        """Look if it is time, and leave it to the caller to react to an alarm.

        Args:
            find: Finds the encoder; that it fails is a failure of the look.
            step: Training steps done, which must not decrease.
            last: Whether these are the final weights.

        Returns:
            The look.
        """
        due = self.is_due(step)
        if self.last_step < 0:
            self.start()
        elif not (due and self.has_time(step)) and not (last and self.is_news(step)):
            return Look(step)
        return self.look(step, lambda: evaluate_density(self, self.monitor, find()))
