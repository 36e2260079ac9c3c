"""The collapse callback: cheap looks at the embeddings, and an alarm that can stop the run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor._settings import takes
from jepa_monitor.callbacks.discovery import EncoderSpec
from jepa_monitor.callbacks.paced import PacedCallback
from jepa_monitor.callbacks.settings import CallbackArguments, CallbackSettings
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.token_encoder import encoder_for
from jepa_monitor.insights.collapse import collapse_scalars
from jepa_monitor.jacobian.prepared import embed, fitting_threads
from jepa_monitor.monitor.alarm import MIN_SAMPLES
from jepa_monitor.monitor.watch import Evaluation
from jepa_monitor.probes.images import BatchToImages, collect_images

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CollapseCallback"]


@takes(CallbackSettings)
class CollapseCallback(PacedCallback):
    """Watches for a collapse of the embeddings during training, and warns, stops or calls.

    It costs one forward pass of ``max_samples`` images and the eigenvalues of their covariance a
    look, and leaves training exactly as it would be. The first look is before the first training
    step. A look that fails is counted in ``monitor/collapse_failures`` and reported in one warning; training
    goes on.

    Logged, to all loggers and for ``EarlyStopping`` and ``ModelCheckpoint`` to monitor:

    - ``collapse/state``: 0 healthy, 1 dimensional, 2 complete; ``collapse/steps_in_state`` since
      when; ``collapse/alarm``: 1 while somebody should look. See
      :class:`~jepa_monitor.monitor.alarm.CollapseAlarm`;
    - ``collapse/rankme``, ``/effective_rank``, ``/participation_ratio``, ``/stable_rank`` (NESum), each
      also relative to isotropic embeddings (``..._relative``); ``collapse/normalized_std``, ``/mean_cosine``,
      ``/uniformity``, ``/alpha_req``, ``/alpha_req_r2``;
    - ``monitor/collapse_seconds``, ``/collapse_overhead``, ``/collapse_failures``,
      ``/collapse_skipped``.

    Beside a :class:`~jepa_monitor.JepaScoreCallback` of the same name, encoder and probe it is the
    one that logs ``collapse/*`` and watches for an alarm; what either is told to do then is done.

    Args:
        encoder: What to watch: a dotted path in the LightningModule (``"teacher.backbone"``), a
            module, or a function of the LightningModule that returns an encoder. ``None`` takes the
            first submodule of a usual name, EMA targets first, and says which.
        probe: Held-out images: a tensor, a Dataset, a DataLoader. ``None`` takes the first images
            of the Trainer's validation data or, where there are none, a fixed sample of the
            training data, with a warning.
        every_n_steps: Look when so many optimizer steps have passed; default 50, and whenever
            another callback is about to act on one of these values.
        max_samples: How many images to embed.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        batch_to_images: Finds the images in a batch of the probe; default
            :func:`~jepa_monitor.probes.batch_images`.
        **settings: See :class:`~jepa_monitor.callbacks.settings.CallbackSettings`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example::

        from jepa_monitor.callbacks import CollapseCallback
        trainer = L.Trainer(callbacks=[CollapseCallback(on_collapse="stop")])
    """

    usual_steps = 50
    own_tags = "monitor/collapse_"

    def __init__(
        self,
        encoder: EncoderSpec = None,
        probe: Any = None,
        *,
        every_n_steps: int | None = None,
        max_samples: int = 512,
        pool: Pool = "auto",
        batch_to_images: BatchToImages = None,
        **settings: Unpack[CallbackArguments],
    ) -> None:
        super().__init__(
            encoder,
            probe,
            every_n_steps=every_n_steps,
            pool=pool,
            batch_to_images=batch_to_images,
            **settings,
        )
        self.max_samples = check_positive_int(max_samples, "max_samples")
        if max_samples < MIN_SAMPLES:
            raise ValueError(f"`max_samples` must be at least {MIN_SAMPLES}, got {max_samples}.")
        self.images: Tensor | None = None

    @property
    def wanted_images(self) -> int:
        """How many images to keep."""
        return self.max_samples

    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Read the images.

        Args:
            trainer: The Trainer.
            probe: The source of the images.
            shuffle_seed: How to draw them, if not the first ones.

        Raises:
            ValueError: If they are too few to tell a collapse.
        """
        (images,) = Processes(trainer.world_size > 1).same(
            lambda: (
                collect_images(
                    probe,
                    self.max_samples,
                    batch_to_images=self.batch_to_images,
                    shuffle_seed=shuffle_seed,
                ),
            )
        )
        if len(images) < MIN_SAMPLES:
            raise ValueError(
                f"`probe` must hold at least {MIN_SAMPLES} images, got {len(images)}: fewer do not "
                "tell whether the embeddings collapse."
            )
        self.images = images
        rank_zero_info(
            f"{type(self).__name__}: a look embeds {len(images)} images, forward passes only."
        )

    def measure(self, trainer: pl.Trainer, encoder: Any) -> Evaluation:
        """Embed the images.

        Args:
            trainer: The Trainer.
            encoder: What to look at.

        Returns:
            The signs of collapse.
        """
        started = time.perf_counter()
        assert self.images is not None
        processes = Processes(trainer.world_size > 1)
        encoder, pool = encoder_for(self.images, encoder, self.pool)
        embedder = Embedder(encoder, pool, processes=processes)
        device = embedder.device or torch.device("cpu")
        with fitting_threads(embedder, self.images, device, processes):
            (embeddings,) = processes.map(
                lambda part: (embedder.run(lambda: embed(embedder, part, device), device),),
                self.images,
            )
        scalars = collapse_scalars(embeddings)
        scalars["monitor/collapse_seconds"] = time.perf_counter() - started
        return Evaluation(scalars, embeddings)
