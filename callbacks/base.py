"""What callbacks that look at an encoder share: when to look, at what, and how to say it."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from jepa_monitor._checks import check_positive, check_positive_int
from jepa_monitor.callbacks.discovery import (
    EncoderSpec,
    find_encoder,
    find_training_data,
    find_validation_data,
    is_fitting,
)
from jepa_monitor.callbacks.logging import current_step, log_scalars
from jepa_monitor.encoders import Pool, check_pool, check_whole
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.probes.images import BatchToImages, check_batch_to_images

__all__ = ["EncoderCallback"]


class EncoderCallback(pl.Callback):
    """Looks at an encoder before the first step, every few steps or epochs, and in validate and test.

    A subclass says what to keep of the images (:meth:`prepare`), what to measure (:meth:`measure`)
    and, if it is more than scalars, how to write it (:meth:`write`). A look that fails is counted
    in ``monitor/failures`` and reported in one warning; training goes on. Arguments that cannot be
    right are an error before training: a ``TypeError`` or ``ValueError`` that names them.

    Args:
        encoder: A dotted path, a module, a function of the LightningModule, or ``None``.
        probe: Held-out images, or ``None`` for the Trainer's.
        every_n_epochs: Look after every so many epochs; 1 if neither cadence is given.
        every_n_steps: Look after every so many optimizer steps instead.
        pool: How outputs become (B, K).
        batch_to_images: Finds the images in a batch; one function, or one for each set.
        max_overhead: Largest share of the wall time to spend; a look that would exceed it is put
            off and counted in ``monitor/skipped``. The first and the last are always taken.
            ``None`` for no limit.
        name: Prefix of all tags, which makes room for more than one such callback in a Trainer.
        strict: Raise when a look fails, instead of warning once.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or both cadences are given.
    """

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        pool: Pool = "auto",
        batch_to_images: BatchToImages = None,
        max_overhead: float | None = None,
        name: str = "",
        strict: bool = False,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise ValueError(
                "`every_n_epochs` and `every_n_steps` exclude each other, got "
                f"{every_n_epochs} and {every_n_steps}: give one."
            )
        if every_n_steps is not None:
            check_positive_int(every_n_steps, "every_n_steps")
        if encoder is not None and not (isinstance(encoder, str) or callable(encoder)):
            raise TypeError(
                "`encoder` must be a dotted path, a module, a function of the LightningModule or "
                f"None, got {type(encoder).__name__}."
            )
        if max_overhead is not None and check_positive(max_overhead, "max_overhead") > 1:
            raise ValueError(f"`max_overhead` must be a share of at most 1, got {max_overhead}.")
        if not isinstance(name, str):
            raise TypeError(f"`name` must be a string, got {type(name).__name__}.")
        if not isinstance(strict, bool):
            raise TypeError(f"`strict` must be True or False, got {strict!r}.")
        self.encoder = encoder
        self.probe = probe
        self.max_overhead = max_overhead
        self.name = name
        self.strict = strict
        self.every_n_steps = every_n_steps
        self.every_n_epochs = check_positive_int(
            1 if every_n_epochs is None else every_n_epochs, "every_n_epochs"
        )
        self.pool = check_pool(pool)
        self.batch_to_images = check_batch_to_images(batch_to_images)
        self.history: list[dict[str, float]] = []
        self.failures = 0
        self.skipped = 0
        self._spent = self._cost = 0.0  # seconds: of all looks since training began, of the last
        self._started = time.perf_counter()
        self._last_step = -1
        self._put_off = False
        self._prepared = False

    @abstractmethod
    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Keep what is needed of the images; called once.

        Args:
            trainer: The Trainer.
            probe: The source of the images.
            shuffle_seed: How to draw them, if not the first ones.
        """

    @abstractmethod
    def measure(self, trainer: pl.Trainer, encoder: Any) -> Any:
        """Take a look.

        Args:
            trainer: The Trainer.
            encoder: What to look at.

        Returns:
            Something with ``scalars``, a dict of finite numbers by tag.
        """

    @property
    def prefix(self) -> str:
        """What all tags begin with."""
        return f"{self.name}/" if self.name else ""

    def write(
        self, trainer: pl.Trainer, scalars: dict[str, float], found: Any | None, x: int
    ) -> None:
        """Write what a look has found; called in the first process only.

        Args:
            trainer: The Trainer.
            scalars: Finite numbers by tag, prefix included.
            found: From :meth:`measure`; ``None`` if it failed.
            x: The x-coordinate.
        """
        log_scalars(trainer.loggers, scalars, x)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: Any | None) -> None:
        """React to a look; called in every process, also after a look that failed.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            found: From :meth:`measure`; ``None`` if it failed.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse to write under the tags of another callback.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            stage: What it is about to do.

        Raises:
            ValueError: If another callback of this kind has the same name.
        """
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, EncoderCallback) and other is not self and other.name == self.name:
                raise ValueError(
                    f"`name` must be different for each callback: {type(self).__name__} and "
                    f"{type(other).__name__} both have {self.name!r} and would write to the same "
                    "tags. Give one of them a name; it becomes the prefix of its tags."
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the encoder, so that a wrong path is an error before any training.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        name, encoder = find_encoder(pl_module, self.encoder)
        if self.encoder is None:
            rank_zero_info(
                f"{type(self).__name__} watches {type(pl_module).__name__}.{name} "
                f"({type(encoder).__name__}). Pass `encoder` to watch another module."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the probe and look at the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self._spent, self._started = 0.0, time.perf_counter()
        check_whole(find_encoder(pl_module, self.encoder)[1])
        self._prepare_if_readable(trainer)
        if trainer.global_step == 0:
            self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Look after every ``every_n_steps`` optimizer steps.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            *_: The batch and what the training step made of it.
        """
        steps = self.every_n_steps
        # With accumulated gradients the same step is seen more than once.
        if steps and trainer.global_step % steps == 0 and self._may_look(trainer):
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look after every ``every_n_epochs`` epochs.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self._epoch_is_due(trainer) and self._may_look(trainer):
            self._look(trainer, pl_module, current_step(trainer) - 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look in ``Trainer.validate``, and in ``fit`` when the epoch ends with a validation.

        Then the value belongs to the very weights that a checkpoint after validation saves.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if trainer.sanity_checking:
            return
        if not is_fitting(trainer):
            self._prepare_if_readable(trainer)
            self._look(trainer, pl_module)
        elif self._epoch_is_due(trainer) and trainer.is_last_batch and self._may_look(trainer):
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
        if self._put_off and trainer.global_step > self._last_step:
            self._look(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, one for each name."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            The history, the counts and the step of the last look.
        """
        return {
            "history": self.history,
            "failures": self.failures,
            "skipped": self.skipped,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.history = list(state_dict["history"])
        self.failures = state_dict["failures"]
        self.skipped = state_dict["skipped"]
        self._last_step = state_dict["last_step"]

    def _may_look(self, trainer: pl.Trainer) -> bool:
        """Say whether there is something new to see and time to look, the same in all processes."""
        if trainer.global_step <= self._last_step:
            return False
        fits = True
        if self.max_overhead is not None:
            elapsed = time.perf_counter() - self._started
            fits = self._spent + self._cost <= self.max_overhead * (elapsed + self._cost)
            fits = bool(trainer.strategy.broadcast(fits))
        self.skipped += not fits
        self._put_off = not fits
        return fits

    def _epoch_is_due(self, trainer: pl.Trainer) -> bool:
        return self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _prepare_if_readable(self, trainer: pl.Trainer) -> None:
        """Read the images before training, so that a wrong argument is an error at once."""
        try:
            self._prepare(trainer)
        except (TypeError, ValueError):
            raise
        except Exception:  # a disk or a server, perhaps: the next look tries again, and reports it
            if self.strict:
                raise

    def _prepare(self, trainer: pl.Trainer) -> None:
        if self._prepared:
            return
        probe, shuffle_seed = self.probe, None
        if probe is None:
            probe = Processes(trainer.world_size > 1).agree(lambda: find_validation_data(trainer))
        if probe is None:
            probe, shuffle_seed = find_training_data(trainer), 0
            if probe is None:
                raise ValueError(
                    "`probe` was not given, and the Trainer has neither validation nor training "
                    "data to take images from."
                )
            rank_zero_warn(
                f"{type(self).__name__} found no validation data, so it watches images of the "
                "training set, as its transforms augment them: they are not held out. Pass `probe` "
                "or validation data."
            )
        self.prepare(trainer, probe, shuffle_seed)
        self._prepared = True

    def _look(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, x: int | None = None
    ) -> None:
        self._last_step, self._put_off = trainer.global_step, False
        began, found = time.perf_counter(), None
        try:
            self._prepare(trainer)
            _, encoder = Processes(trainer.world_size > 1).agree(
                lambda: find_encoder(pl_module, self.encoder)
            )
            found = self.measure(trainer, encoder)
        except Exception as error:  # whatever it is, it must not end the training
            if self.strict:
                raise
            self._fail(trainer, error)
        now = time.perf_counter()
        self._cost = now - began
        self._spent += self._cost
        scalars = {} if found is None else dict(found.scalars)
        scalars["monitor/overhead"] = min(1.0, self._spent / max(now - self._started, 1e-9))
        scalars["monitor/failures"] = float(self.failures)
        scalars["monitor/skipped"] = float(self.skipped)
        scalars = {self.prefix + tag: value for tag, value in scalars.items()}
        if found is not None:
            self.history.append({"step": float(trainer.global_step), **scalars})
        if trainer.is_global_zero:
            try:
                self.write(trainer, scalars, found, current_step(trainer) if x is None else x)
            except Exception as error:  # a full disk or a logger's server
                if self.strict:
                    raise
                self._fail(trainer, error)
                scalars[f"{self.prefix}monitor/failures"] = float(self.failures)
        # LightningModule.log would make them visible to EarlyStopping and ModelCheckpoint only when
        # the loop at hand ends; here they are from now on, in every hook.
        trainer.callback_metrics.update(
            {tag: torch.tensor(value, device=pl_module.device) for tag, value in scalars.items()}
        )
        self.act(trainer, pl_module, found)

    def _fail(self, trainer: pl.Trainer, error: Exception) -> None:
        """Count what went wrong, and say it once."""
        self.failures += 1
        if self.failures == 1:
            rank_zero_warn(
                f"{type(self).__name__} could not evaluate at step {trainer.global_step}: "
                f"{type(error).__name__}: {error} Training goes on; further failures are only "
                "counted, in monitor/failures."
            )
