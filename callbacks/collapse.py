"""The collapse callback: cheap looks at the embeddings, and an alarm that can stop the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.alarm import MIN_SAMPLES, AlarmReading, CollapseAlarm, collapse_scalars
from jepa_monitor.callbacks.base import EncoderCallback
from jepa_monitor.callbacks.discovery import EncoderSpec
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.probes import collect_images
from jepa_monitor.score import embed

__all__ = ["CollapseCallback"]

OnCollapse = str | Callable[[pl.Trainer, pl.LightningModule, AlarmReading], Any]
_PATIENCE_SHARE = 0.1  # of the planned steps
_PATIENCE_ENDLESS = 1000  # steps, where no end is planned


@dataclass(frozen=True)
class _Look:
    scalars: dict[str, float]
    reading: AlarmReading


class CollapseCallback(EncoderCallback):
    """Watches for a collapse of the embeddings during training, and warns, stops or calls.

    It costs one forward pass of ``max_samples`` images and the eigenvalues of their covariance a
    look, and leaves training exactly as it would be. The first look is before the first training
    step. A look that fails is counted in ``monitor/failures`` and reported in one warning; training
    goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor:

    - ``collapse/state``: 0 healthy, 1 dimensional, 2 complete; ``collapse/steps_in_state`` since
      when; ``collapse/alarm``: 1 while somebody should look. See
      :class:`~jepa_monitor.alarm.CollapseAlarm`;
    - ``collapse/rankme``, ``/effective_rank``, ``/participation_ratio``, each also relative to
      isotropic embeddings (``..._relative``); ``collapse/normalized_std``, ``/mean_cosine``,
      ``/uniformity``, ``/alpha_req``, ``/alpha_req_r2``;
    - ``monitor/collapse_seconds``, ``monitor/failures``.

    Args:
        encoder: What to watch: a dotted path in the LightningModule (``"teacher.backbone"``), a
            module, or a function of the LightningModule that returns an encoder. ``None`` takes the
            first submodule of a usual name, EMA targets first, and says which.
        probe: Held-out images: a tensor, a Dataset, a DataLoader. ``None`` takes the first images
            of the Trainer's validation data or, where there are none, a fixed sample of the
            training data, with a warning.
        every_n_steps: Look after every so many optimizer steps.
        on_collapse: What an alarm does, once for each collapse: ``"warn"``; ``"stop"`` warns and
            ends the training after the step at hand; a function gets the Trainer, the
            LightningModule and the :class:`~jepa_monitor.alarm.AlarmReading`, in every process.
        patience_steps: Steps that a first, early collapse may last. Default: a tenth of the planned
            steps, or 1000 where no end is planned.
        max_samples: How many images to embed.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pool_output`.
        batch_to_images: Finds the images in a batch of the probe; default
            :func:`~jepa_monitor.probes.batch_images`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example::

        from jepa_monitor.callbacks import CollapseCallback
        trainer = L.Trainer(callbacks=[CollapseCallback(on_collapse="stop")])
    """

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        every_n_steps: int = 50,
        on_collapse: OnCollapse = "warn",
        patience_steps: int | None = None,
        max_samples: int = 512,
        pool: Pool = "auto",
        batch_to_images: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(
            encoder,
            probe,
            every_n_steps=check_positive_int(every_n_steps, "every_n_steps"),
            pool=pool,
            batch_to_images=batch_to_images,
        )
        if not callable(on_collapse):
            check_choice(on_collapse, "on_collapse", ("warn", "stop"))
        self.on_collapse = on_collapse
        if patience_steps is not None:
            check_positive_int(patience_steps, "patience_steps")
        self.patience_steps = patience_steps
        self.max_samples = check_positive_int(max_samples, "max_samples")
        if max_samples < MIN_SAMPLES:
            raise ValueError(f"`max_samples` must be at least {MIN_SAMPLES}, got {max_samples}.")
        self.alarm = CollapseAlarm(patience_steps or _PATIENCE_ENDLESS)
        self.images: Tensor | None = None
        self._told = False  # whether the collapse at hand has been reported

    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Read the images.

        Args:
            trainer: The Trainer.
            probe: The source of the images.
            shuffle_seed: How to draw them, if not the first ones.
        """
        self.images = collect_images(
            probe,
            self.max_samples,
            batch_to_images=self.batch_to_images,
            shuffle_seed=shuffle_seed,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the patience, read the probe and look at the model as training finds it.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
        """
        if self.patience_steps is None:
            planned = trainer.estimated_stepping_batches
            self.alarm.patience_steps = (
                max(1, math.ceil(_PATIENCE_SHARE * planned))
                if math.isfinite(planned)
                else _PATIENCE_ENDLESS
            )
        super().on_train_start(trainer, pl_module)

    def measure(self, trainer: pl.Trainer, encoder: Any) -> _Look:
        """Embed the images and read the alarm.

        Args:
            trainer: The Trainer.
            encoder: What to look at.

        Returns:
            The reading and its scalars.
        """
        started = time.perf_counter()
        assert self.images is not None
        images, embedder = self.images, Embedder(encoder, self.pool)
        device = embedder.device or torch.device("cpu")
        embeddings = embedder.run(lambda: embed(embedder, images, device), device)
        # A look outside of a run, or at a model of another run, is none of this alarm's story.
        alarm = self.alarm if trainer.training else CollapseAlarm(self.alarm.patience_steps)
        reading = alarm.update(trainer.global_step, embeddings)
        scalars = collapse_scalars(embeddings) | reading.scalars
        scalars["monitor/collapse_seconds"] = time.perf_counter() - started
        return _Look(scalars, reading)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: Any | None) -> None:
        """Warn, stop or call when an alarm begins.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            found: The look; ``None`` if it failed.
        """
        rings = bool(found and found.reading.alarm)
        begins, self._told = rings and not self._told, rings or (self._told and found is None)
        if self.on_collapse == "stop" and trainer.training:
            # Processes that look at different images may disagree.
            stop = trainer.strategy.reduce_boolean_decision(begins, all=False)
            trainer.should_stop = trainer.should_stop or stop
        if not begins or found is None:
            return
        if callable(self.on_collapse):
            self.on_collapse(trainer, pl_module, found.reading)
            return
        ending = " Training stops." if self.on_collapse == "stop" else ""
        rank_zero_warn(
            f"CollapseCallback at step {trainer.global_step}: {found.reading.reason}{ending}"
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
