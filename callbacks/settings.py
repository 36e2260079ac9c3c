"""When a callback acts: one frozen record that all callbacks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import lightning.pytorch as pl

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.monitor.alarm import AlarmReading
from jepa_monitor.monitor.watch import check_overhead

__all__ = ["CallbackArguments", "CallbackSettings", "OnCollapse"]

OnCollapse = str | Callable[[pl.Trainer, pl.LightningModule, AlarmReading], Any]


class CallbackArguments(TypedDict, total=False):
    """The keyword arguments that become :class:`CallbackSettings`, for type checkers."""

    on_collapse: OnCollapse
    patience_steps: int | None
    max_overhead: float | None
    name: str
    strict: bool


@dataclass(frozen=True)
class CallbackSettings:
    """What a callback does about what it sees, and how much time it may take.

    Args:
        on_collapse: What an alarm does, once for each collapse: ``"warn"``; ``"stop"`` warns and
            ends the training after the step at hand; a function gets the Trainer, the
            LightningModule and the :class:`~jepa_monitor.monitor.alarm.AlarmReading`, in every
            process.
        patience_steps: Steps that a first, early collapse may last. Default: a tenth of the planned
            steps, and at least 1000 (:func:`~jepa_monitor.monitor.alarm.default_patience`).
        max_overhead: Largest share of the wall time to spend, once a first minute of looks has been
            spent; a look that would exceed it is put off and counted in ``monitor/skipped``. The
            first and the last are always taken, and those that another callback waits for. ``None``
            for no limit.
        name: Prefix of all tags, which makes room for more than one such callback in a Trainer.
        strict: Raise when a look fails, or an insight of it, instead of warning once.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    on_collapse: OnCollapse = "warn"
    patience_steps: int | None = None
    max_overhead: float | None = None
    name: str = ""
    strict: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"`name` must be a string, got {type(self.name).__name__}.")
        if not isinstance(self.strict, bool):
            raise TypeError(f"`strict` must be True or False, got {self.strict!r}.")
        if not callable(self.on_collapse):
            check_choice(self.on_collapse, "on_collapse", ("warn", "stop"))
        if self.patience_steps is not None:
            check_positive_int(self.patience_steps, "patience_steps")
        check_overhead(self.max_overhead)
