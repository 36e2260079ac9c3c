"""The callback: in goes a Trainer at work, out come curves of what its encoder has learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.callbacks.discovery import (
    EncoderSpec,
    find_encoder,
    find_training_data,
    find_validation_data,
)
from jepa_monitor.callbacks.logging import current_step, log_report
from jepa_monitor.encoders import Pool, check_pool
from jepa_monitor.monitor import DensityMonitor
from jepa_monitor.options import ScoreOptions

__all__ = ["JepaScoreCallback"]


class JepaScoreCallback(pl.Callback):
    """Logs JEPA-SCORE and signs of collapse on held-out images during training.

    The first evaluation is before the first training step, then one after every epoch (or every
    ``every_n_steps`` steps), and one in ``Trainer.validate`` and ``Trainer.test``. Training itself
    is left exactly as it would be without the callback. An evaluation that fails is counted in
    ``monitor/failures`` and reported in one warning; training goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor:

    - ``jepa_score/mean``, ``/std``, ``/p05``, ``/p50``, ``/p95``: the scores, in nats;
    - ``jepa_score/clipped``: singular values below ``eps`` an image;
    - ``collapse/rankme``, ``collapse/normalized_std``: how many directions the embeddings use, and
      whether they differ at all;
    - ``monitor/seconds``, ``monitor/images``, ``monitor/nonfinite``, ``monitor/failures``.

    TensorBoard also gets the histogram ``jepa_score/scores`` and the sheet of the least and most
    likely images.

    Args:
        encoder: What to watch: a dotted path in the LightningModule (``"teacher.backbone"``), a
            module, or a function of the LightningModule that returns an encoder. ``None`` takes the
            first submodule of a usual name, EMA targets first (``target_encoder``, ``teacher``,
            ``encoder``, ``backbone``, ...), and says which.
        probe: Held-out images: a tensor, a Dataset, a DataLoader. ``None`` takes the first images
            of the Trainer's validation data or, where there are none, a fixed sample of the
            training data, with a warning.
        every_n_epochs: Evaluate after every so many epochs; default 1, unless ``every_n_steps`` is
            given.
        every_n_steps: Evaluate after every so many optimizer steps instead.
        max_probe_samples: How many images to score; each costs K backward passes.
        max_embedding_samples: How many images to embed for the measures of collapse.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.
        batch_to_images: Finds the images in a batch of the probe; default
            :func:`~jepa_monitor.probes.batch_images`.
        options: How to score.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or both cadences are given.

    Example::

        from jepa_monitor import JepaScoreCallback
        trainer = L.Trainer(callbacks=[JepaScoreCallback()])
    """

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_probe_samples: int = 64,
        max_embedding_samples: int = 512,
        pool: Pool = "auto",
        batch_to_images: Callable[[Any], Tensor] | None = None,
        options: ScoreOptions | None = None,
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
        self.encoder = encoder
        self.probe = probe
        self.every_n_steps = every_n_steps
        self.every_n_epochs = check_positive_int(
            1 if every_n_epochs is None else every_n_epochs, "every_n_epochs"
        )
        self.max_probe_samples = check_positive_int(max_probe_samples, "max_probe_samples")
        self.max_embedding_samples = check_positive_int(
            max_embedding_samples, "max_embedding_samples"
        )
        self.batch_to_images = batch_to_images
        self.pool = check_pool(pool)
        self.options = options or ScoreOptions()
        self.monitor: DensityMonitor | None = None
        self.history: list[dict[str, float]] = []
        self.failures = 0
        self._last_step = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the encoder, so that a wrong path is an error before any training.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        name, encoder = find_encoder(pl_module, self.encoder)
        if self.encoder is None:
            rank_zero_info(
                f"JepaScoreCallback watches {type(pl_module).__name__}.{name} "
                f"({type(encoder).__name__}). Pass `encoder` to watch another module."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the probe and evaluate the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self.monitor = self.monitor or self._build_monitor(trainer)
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Evaluate after every ``every_n_steps`` optimizer steps.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            *_: The batch and what the training step made of it.
        """
        steps = self.every_n_steps
        # With accumulated gradients the same step is seen more than once.
        if steps and trainer.global_step % steps == 0 and trainer.global_step > self._last_step:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after every ``every_n_epochs`` epochs.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self._epoch_is_due(trainer) and trainer.global_step > self._last_step:
            self._evaluate(trainer, pl_module, current_step(trainer) - 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``Trainer.validate``, and in ``fit`` when the epoch ends with a validation.

        Then the value belongs to the very weights that a checkpoint after validation saves.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self.monitor = self.monitor or self._build_monitor(trainer)
            self._evaluate(trainer, pl_module)
        elif self._epoch_is_due(trainer) and trainer.is_last_batch:
            self._evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate once in ``Trainer.test``.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        self.monitor = self.monitor or self._build_monitor(trainer)
        self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            The history, the failures and the step of the last evaluation.
        """
        return {
            "history": self.history,
            "failures": self.failures,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.history = list(state_dict["history"])
        self.failures = state_dict["failures"]
        self._last_step = state_dict["last_step"]

    def _epoch_is_due(self, trainer: pl.Trainer) -> bool:
        return self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _build_monitor(self, trainer: pl.Trainer) -> DensityMonitor:
        probe, shuffle_seed = self.probe, None
        if probe is None:
            probe = find_validation_data(trainer)
        if probe is None:
            probe, shuffle_seed = find_training_data(trainer), 0
            if probe is None:
                raise ValueError(
                    "`probe` was not given, and the Trainer has neither validation nor training "
                    "data to take images from."
                )
            rank_zero_warn(
                "JepaScoreCallback found no validation data, so it watches images of the training "
                "set, as its transforms augment them: they are not held out. Pass `probe` or "
                "validation data."
            )
        return DensityMonitor(
            probe,
            max_probe_samples=1
            if getattr(trainer, "fast_dev_run", False)
            else self.max_probe_samples,
            max_embedding_samples=self.max_embedding_samples,
            pool=self.pool,
            batch_to_images=self.batch_to_images,
            options=self.options,
            shuffle_seed=shuffle_seed,
        )

    def _evaluate(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, x: int | None = None
    ) -> None:
        assert self.monitor is not None
        self._last_step = trainer.global_step
        try:
            _, encoder = find_encoder(pl_module, self.encoder)
            report = self.monitor.evaluate(encoder)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the training
            self.failures += 1
            if self.failures == 1:
                rank_zero_warn(
                    f"JepaScoreCallback could not evaluate at step {trainer.global_step}: "
                    f"{type(error).__name__}: {error} Training goes on; further failures are only "
                    "counted, in monitor/failures."
                )
            scalars = {"monitor/failures": float(self.failures)}
        else:
            report.scalars["monitor/failures"] = float(self.failures)
            scalars = report.scalars
            self.history.append({"step": float(trainer.global_step), **scalars})
            if trainer.is_global_zero:
                log_report(trainer.loggers, report, current_step(trainer) if x is None else x)
        # LightningModule.log would make them visible to EarlyStopping and ModelCheckpoint only when
        # the loop at hand ends; here they are from now on, in every hook.
        trainer.callback_metrics.update(
            {tag: torch.tensor(value, device=pl_module.device) for tag, value in scalars.items()}
        )
