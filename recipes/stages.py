"""Runs of two stages: the second begins with the weights of the first and nothing else."""

from __future__ import annotations

import math
from typing import Any

from jepa_monitor.recipes.module import ScheduledModule


class TwoStageModule(ScheduledModule):
    """A module that follows a curriculum of two stages, if its ``first_epochs`` is above 0.

    Schedules and optimiser start again in the second stage. A subclass saves the hyperparameter
    ``first_epochs`` and takes its schedules from :meth:`within_stage`.
    """

    first_steps = 0

    def on_train_start(self) -> None:
        """Find the lengths of the schedules.

        Raises:
            ValueError: If the run ends with the first stage.
        """
        super().on_train_start()
        if epochs := self.hparams["first_epochs"]:
            batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            self.first_steps = epochs * math.ceil(batches)
            if self.first_steps >= self.total_steps:
                raise ValueError(
                    f"first_epochs={epochs} are {self.first_steps} of {self.total_steps} steps; "
                    "expected fewer, to leave some to the second stage."
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restart where the second stage begins, and seed what the networks draw.

        Args:
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and 0 < self.current_epoch == self.hparams["first_epochs"]:
            self.restart()

    def restart(self) -> None:
        """Keep the weights only, as a new run from a checkpoint would."""
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def within_stage(self, step: int) -> tuple[int, int]:
        """Count steps from the beginning of their stage.

        Args:
            step: Optimiser steps done before, of the whole run.

        Returns:
            Steps done before in this stage, and the length of the schedules in it: in the first, of
            the whole run, which its schedules would last.
        """
        if step >= self.first_steps:  # of the second stage, which is all without a curriculum
            return step - self.first_steps, self.total_steps - self.first_steps
        return step, self.total_steps
