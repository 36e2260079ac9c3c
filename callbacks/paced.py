"""When a callback looks: before training, every so many steps or epochs, and when others wait for it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from jepa_monitor._checks import check_positive_int
from jepa_monitor.callbacks.averaging import averaged_encoder, find_averaging
from jepa_monitor.callbacks.base import EncoderCallback
from jepa_monitor.callbacks.discovery import is_fitting
from jepa_monitor.callbacks.logging import current_step
from jepa_monitor.callbacks.readers import Reader, find_readers
from jepa_monitor.encoders import check_whole
from jepa_monitor.monitor.alarm import default_patience

__all__ = ["PacedCallback"]


class PacedCallback(EncoderCallback):
    """Looks before the first step, every few steps or epochs, and in validate and test.

    Args:
        *args: See :class:`~jepa_monitor.callbacks.base.EncoderCallback`.
        every_n_epochs: Look after every so many epochs.
        every_n_steps: Look when so many optimizer steps have passed instead. If neither is given,
            looks are taken at the usual pace, and whenever another callback is about to act on one
            of the values.
        **kwargs: See :class:`~jepa_monitor.callbacks.base.EncoderCallback`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or both cadences are given.
    """

    usual_steps: int | None = None  # between looks; ``None`` for one an epoch

    def __init__(
        self,
        *args: Any,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise ValueError(
                "`every_n_epochs` and `every_n_steps` exclude each other, got "
                f"{every_n_epochs} and {every_n_steps}: give one."
            )
        if every_n_steps is not None:
            check_positive_int(every_n_steps, "every_n_steps")
        # A cadence of our own choice gives way to whoever acts on our values; the user's does not.
        self._chosen = every_n_epochs is not None or every_n_steps is not None
        self.every_n_steps = every_n_steps if self._chosen else self.usual_steps
        self.every_n_epochs = check_positive_int(
            1 if every_n_epochs is None else every_n_epochs, "every_n_epochs"
        )
        self._readers: list[Reader] = []
        self.watched = ""  # the encoder of the latest fit, in words
        super().__init__(*args, **kwargs)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the encoder, so that a wrong path is an error before any training.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        launcher = type(getattr(trainer.strategy, "launcher", None))
        if any(kind.__name__ == "_MultiProcessingLauncher" for kind in launcher.__mro__):
            rank_zero_warn(
                f"The strategy starts processes of its own (spawn or fork) and {type(self).__name__} "
                "works in these: in the process that called `fit` its `history` and counts stay "
                "empty. Read the logger or a checkpoint, or use the strategy 'ddp'."
            )
        name, encoder = averaged_encoder(trainer, pl_module, self.encoder)
        averaging = find_averaging(trainer)
        self.watched = f"{type(pl_module).__name__}.{name} ({type(encoder).__name__})"
        if self.encoder is None or averaging is not None:
            whose = f", with the weights that {type(averaging).__name__} averages"
            hint = " Pass `encoder` to watch another module." if self.encoder is None else ""
            rank_zero_info(
                f"{type(self).__name__} watches {self.watched}"
                f"{'' if averaging is None else whose}.{hint}"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the probe and look at the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        story = self._story
        story.start()
        if self.patience_steps is None:
            story.alarm.patience_steps = default_patience(trainer.estimated_stepping_batches)
        check_whole(averaged_encoder(trainer, pl_module, self.encoder)[1])
        self._prepare_if_readable(trainer)
        if story.history:
            # Whoever reads them before the next look finds what there was when the run broke off.
            self._publish(trainer, pl_module, story.history[-1])
        else:
            self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Look when ``every_n_steps`` optimizer steps have passed.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            *_: The batch and what the training step made of it.
        """
        self._look_if(trainer, pl_module, "step", self._story.is_due(trainer.global_step))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look after every ``every_n_epochs`` epochs.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        due = self._epoch_is_due(trainer)
        self._look_if(trainer, pl_module, "epoch", due, current_step(trainer) - 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look in ``Trainer.validate``, and in ``fit`` when the epoch ends with a validation.

        Then the value belongs to the very weights that a checkpoint after validation saves.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if trainer.sanity_checking:
            return
        if is_fitting(trainer):
            ends = trainer.is_last_batch or trainer.fit_loop.epoch_loop.done
            self._look_if(trainer, pl_module, "validation", ends and self._epoch_is_due(trainer))
        else:
            self._prepare_if_readable(trainer)
            self._look(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look once in ``Trainer.test``.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self._prepare_if_readable(trainer)
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the final weights, if that was put off.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self._story.owes(trainer.global_step):
            self._look(trainer, pl_module)

    def _epoch_is_due(self, trainer: pl.Trainer) -> bool:
        return self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _look_if(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        moment: str,
        due: bool,
        x: int | None = None,
    ) -> None:
        """Look if it is due and there is time, or if somebody is about to act on our values."""
        step, story = trainer.global_step, self._story
        read = any(reader.reads(trainer, moment) for reader in self._readers)
        awaited = read and (due or not self._chosen) and story.is_news(step)
        if awaited or (due and story.has_time(step)):
            self._look(trainer, pl_module, x)

    def _publish(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, scalars: dict[str, float]
    ) -> None:
        """Show values to others, and find out who acts on them, now that the tags are known."""
        super()._publish(trainer, pl_module, scalars)
        if self._readers or not is_fitting(trainer):
            return
        self._readers = find_readers(trainer, scalars)
        if not self._chosen:
            return
        cadence = (self.every_n_steps, None if self.every_n_steps else self.every_n_epochs)
        for reader in self._readers:
            if not reader.keeps_up(trainer, *cadence):
                self._story.say(
                    f"{reader.who} acts on {reader.tag} more often than {type(self).__name__} "
                    f"measures it, and takes an old value for a new one then. Leave out "
                    "`every_n_steps` and `every_n_epochs`, and it is measured whenever it is read; "
                    f"or have {reader.who} read less often."
                )
