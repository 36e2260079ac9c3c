"""Who acts on our values, and when: EarlyStopping, ModelCheckpoint and schedulers on plateaus."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

__all__ = ["Reader", "find_readers"]

# `trainer.callback_metrics` keeps a value until the next one comes, and each of these takes what it
# finds there for a new measurement.


@dataclass(frozen=True)
class Reader:
    """Something that reads a tag at certain moments of ``fit``.

    Args:
        who: Its name.
        tag: What it reads.
        moment: ``"step"``, after a training step; ``"validation"``, after a validation;
            ``"epoch"``, after an epoch.
        every: It reads every so many steps or epochs; 0 if that depends on the clock.
    """

    who: str
    tag: str
    moment: str
    every: int = 1

    def reads(self, trainer: pl.Trainer, moment: str) -> bool:
        """Say whether it is about to read.

        Args:
            trainer: The Trainer.
            moment: Which moment this is.

        Returns:
            Whether it reads now, or may.
        """
        if moment != self.moment or self.every == 0:
            return False
        if moment == "step":
            return bool(trainer.global_step % self.every == 0)
        return (trainer.current_epoch + 1) % self.every == 0

    def keeps_up(
        self, trainer: pl.Trainer, every_n_steps: int | None, every_n_epochs: int | None
    ) -> bool:
        """Say whether it finds a new value whenever it reads.

        Args:
            trainer: The Trainer.
            every_n_steps: Looks are taken every so many steps, or
            every_n_epochs: every so many epochs.

        Returns:
            Whether each of its moments is one of these.
        """
        if self.every == 0:
            return False
        if every_n_steps is not None:
            return every_n_steps == 1 or self._steps_between(trainer) % every_n_steps == 0
        if every_n_epochs is None or self.moment == "step":
            return False
        if self.moment == "validation":
            # Only the validation that ends an epoch comes with a look.
            validates, batch = trainer.check_val_every_n_epoch, trainer.val_check_batch
            if validates is None or batch is None or batch < trainer.num_training_batches:
                return False
            return math.lcm(self.every, validates) % every_n_epochs == 0
        return self.every % every_n_epochs == 0

    def _steps_between(self, trainer: pl.Trainer) -> int:
        """Count the steps between two readings; 1 if they cannot be counted."""
        if self.moment == "step":
            return self.every
        batches, check = trainer.num_training_batches, trainer.val_check_batch
        if not trainer.lightning_module.automatic_optimization or not math.isfinite(batches):
            return 1
        an_epoch = -(-int(batches) // trainer.accumulate_grad_batches)
        if self.moment == "epoch" or (check is not None and check >= batches):
            return an_epoch * self.every
        if check is None or check % trainer.accumulate_grad_batches:
            return 1
        return math.gcd(int(check) // trainer.accumulate_grad_batches, an_epoch)


def _of_stopping(callback: Any) -> list[tuple[str, int]]:
    return [("epoch" if callback._check_on_train_epoch_end else "validation", 1)]


def _of_checkpoint(callback: Any, trainer: pl.Trainer) -> list[tuple[str, int]]:
    moments = []
    if callback.save_top_k == 0:
        return []
    if callback._train_time_interval is not None:
        moments.append(("step", 0))
    if callback._every_n_train_steps >= 1:
        moments.append(("step", callback._every_n_train_steps))
    if callback._every_n_epochs >= 1:
        at_epoch = callback._should_save_on_train_epoch_end(trainer)
        moments.append(("epoch" if at_epoch else "validation", callback._every_n_epochs))
    return moments


def _of_callback(callback: Any, trainer: pl.Trainer) -> list[tuple[str, int]]:
    try:
        if hasattr(callback, "_check_on_train_epoch_end"):
            return _of_stopping(callback)
        if hasattr(callback, "_every_n_train_steps"):
            return _of_checkpoint(callback, trainer)
    except AttributeError:  # of another version of Lightning
        pass
    return [("epoch", 1), ("validation", 1)]  # somebody's own: where most of them read


def find_readers(trainer: pl.Trainer, tags: Collection[str]) -> list[Reader]:
    """Find out who acts on our values.

    Args:
        trainer: In ``fit``.
        tags: Those that we write.

    Returns:
        Who reads them, and when.
    """
    found = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        tag = getattr(callback, "monitor", None)
        if isinstance(tag, str) and tag in tags:
            for moment, every in _of_callback(callback, trainer):
                found.append(Reader(type(callback).__name__, tag, moment, every))
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor in tags:
            who = type(config.scheduler).__name__
            found.append(Reader(who, str(config.monitor), config.interval, config.frequency))
    if not trainer.enable_validation:
        return [reader for reader in found if reader.moment != "validation"]
    return found
