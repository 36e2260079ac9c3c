"""Callbacks with an alarm: in go readings of the state of collapse, out comes a reaction, once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.callbacks.base import EncoderCallback
from jepa_monitor.callbacks.discovery import is_fitting
from jepa_monitor.monitor.alarm import AlarmReading, CollapseAlarm, default_patience

__all__ = ["AlarmedCallback", "OnCollapse"]

OnCollapse = str | Callable[[pl.Trainer, pl.LightningModule, AlarmReading], Any]


class AlarmedCallback(EncoderCallback):
    """Reacts when an alarm begins.

    Args:
        *args: See :class:`~jepa_monitor.callbacks.base.EncoderCallback`.
        on_collapse: What an alarm does, once for each collapse: ``"warn"``; ``"stop"`` warns and
            ends the training after the step at hand; a function gets the Trainer, the
            LightningModule and the :class:`~jepa_monitor.monitor.alarm.AlarmReading`, in every process.
        patience_steps: Steps that a first, early collapse may last. Default: a tenth of the planned
            steps, and at least 1000 (:func:`~jepa_monitor.monitor.alarm.default_patience`).
        **kwargs: See :class:`~jepa_monitor.callbacks.base.EncoderCallback`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *args: Any,
        on_collapse: OnCollapse = "warn",
        patience_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not callable(on_collapse):
            check_choice(on_collapse, "on_collapse", ("warn", "stop"))
        self.on_collapse = on_collapse
        if patience_steps is not None:
            check_positive_int(patience_steps, "patience_steps")
        self.patience_steps = patience_steps
        self.alarm = CollapseAlarm(patience_steps or default_patience(math.inf))
        self._told = False  # whether the collapse at hand has been reported

    def read_alarm(self, trainer: pl.Trainer, embeddings: Tensor) -> AlarmReading:
        """Show embeddings to the alarm.

        Args:
            trainer: The Trainer.
            embeddings: (N, K), N ≥ 16.

        Returns:
            What it says.
        """
        # A look outside of a run, or at a model of another run, is none of this alarm's story.
        alarm = self.alarm if is_fitting(trainer) else CollapseAlarm(self.alarm.patience_steps)
        return alarm.update(trainer.global_step, embeddings)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the patience, read the probe and look at the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self.patience_steps is None:
            self.alarm.patience_steps = default_patience(trainer.estimated_stepping_batches)
        super().on_train_start(trainer, pl_module)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: Any | None) -> None:
        """Warn, stop or call when an alarm begins.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            found: The look, with its ``reading``; ``None`` if it failed.
        """
        reading = None if found is None else found.reading
        rings = reading is not None and reading.alarm
        begins, self._told = rings and not self._told, rings or (self._told and found is None)
        if self.on_collapse == "stop" and is_fitting(trainer):
            # Processes that look at different images may disagree.
            stop = trainer.strategy.reduce_boolean_decision(begins, all=False)
            trainer.should_stop = trainer.should_stop or stop
        if not begins or reading is None:
            return
        if callable(self.on_collapse):
            self.on_collapse(trainer, pl_module, reading)
            return
        ending = " Training stops." if self.on_collapse == "stop" else ""
        rank_zero_warn(
            f"{type(self).__name__} at step {trainer.global_step}: {reading.reason}{ending}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            The history, the failures, the step of the last look and the alarm.
        """
        return {**super().state_dict(), "alarm": self.alarm.state_dict(), "told": self._told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        super().load_state_dict(state_dict)
        self.alarm.load_state_dict(state_dict["alarm"])
        self._told = state_dict["told"]
