"""Where a callback's images come from: in goes a Trainer, out come sources that it does not disturb."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_monitor.callbacks.discovery import (
    find_training_data,
    find_validation_data,
    first_of,
    is_fitting,
)
from jepa_monitor.callbacks.passing import PassingImages
from jepa_monitor.callbacks.transfer import batch_transfer
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.probes.apart import Unread
from jepa_monitor.probes.images import BatchToImages, find_images
from jepa_monitor.probes.sources import Source, may_share_images

__all__ = ["ReadingCallback"]


class ReadingCallback(pl.Callback):
    """Reads images once, before the first look, and leaves what the Trainer draws from as it was.

    What cannot be read beside training without moving it is taken from the batches that training
    draws, as they pass; until there are enough of them there is nothing to look at.
    """

    probe: Any
    batch_to_images: BatchToImages
    strict: bool

    def __init__(self) -> None:
        self.forget_images()

    def forget_images(self) -> None:
        """Read anew before the next look: another run may have other data."""
        self._prepared = False
        self._passing: dict[str, PassingImages] = {}
        self._told = False  # that the reference was not found in a batch

    @property
    @abstractmethod
    def wanted_images(self) -> int:
        """How many images of each set to keep."""

    @abstractmethod
    def prepare(self, trainer: pl.Trainer, probe: Any, shuffle_seed: int | None) -> None:
        """Keep what is needed of the images; called once.

        Args:
            trainer: The Trainer.
            probe: The source of the images.
            shuffle_seed: How to draw them, if not the first ones.
        """

    def given_source(self, trainer: pl.Trainer, data: Any) -> Any:
        """Treat data of the user's as the Trainer would treat validation data.

        Args:
            trainer: The Trainer.
            data: From an argument.

        Returns:
            A tensor as it is, since it is what the encoder takes; anything else with the
            batch-transfer hooks of the module.
        """
        if data is None or isinstance(data, Tensor):
            return data
        source = data if isinstance(data, Source) else Source(data)
        own = is_fitting(trainer) and may_share_images(source, find_training_data(trainer))
        return dataclasses.replace(
            source,
            transfer=batch_transfer(trainer, "validate"),
            for_training=source.for_training or own,
        )

    def training_source(self, trainer: pl.Trainer) -> Any:
        """Find the training data.

        Args:
            trainer: The Trainer.

        Returns:
            Their source, images that have passed, or ``None`` where there are none, or none yet.
        """
        if "reference" in self._passing:
            return self._passing["reference"].images
        data = find_training_data(trainer) if is_fitting(trainer) else None
        return None if data is None else self._drawn(trainer, data, "train")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let a batch pass.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            batch: As the training step gets it.
            batch_idx: Its number.
        """
        batch = first_of(batch, trainer.train_dataloader)
        if self._passing:
            self._see("train", batch, first=batch_idx == 0, last=trainer.is_last_batch)
        self.see_training(batch)

    def see_training(self, batch: Any) -> None:
        """Take note of a training batch that passes; here of none.

        Args:
            batch: Of the first loader, if there are several.
        """

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let a batch pass.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            batch: As the validation step gets it.
            batch_idx: Its number.
            dataloader_idx: The number of its loader.
        """
        if self._passing and dataloader_idx == 0 and is_fitting(trainer):
            limits = trainer.num_val_batches
            count = limits[0] if isinstance(limits, list) and limits else float("inf")
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            last = batch_idx + 1 >= count or progress.is_last_batch
            self._see("validate", batch, first=batch_idx == 0, last=last)

    def _see(self, stage: str, batch: Any, *, first: bool, last: bool) -> None:
        """Take images of a batch; once a set is complete, what there is of it is read."""
        for name, passing in self._passing.items():
            if passing.see(stage, batch, first=first, last=last):
                self._prepared = False
            if passing.failure is not None and name == "reference" and not self._told:
                self._told = True
                rank_zero_warn(f"{type(self).__name__} goes without a reference: {passing.failure}")

    def is_waiting(self) -> bool:
        """Say whether there is nothing to look at yet.

        Returns:
            Whether the probe is to come from batches of which not enough have passed.
        """
        probe = self._passing.get("probe")
        return probe is not None and probe.images is None and probe.failure is None

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
        while not self._prepared and not self.is_waiting():
            probe, shuffle_seed, stage = self._find_probe(trainer)
            try:
                self.prepare(trainer, probe, shuffle_seed)
                self._prepared = True
            except Unread as error:
                self._let_pass(error, "train" if error.name == "reference" else stage)

    def _find_probe(self, trainer: pl.Trainer) -> tuple[Any, int | None, str]:
        """Find the probe, how to draw it, and the loop that its batches pass through."""
        if "probe" in self._passing:
            passing = self._passing["probe"]
            if passing.failure is not None:
                raise passing.failure
            return passing.images, None, passing.stage
        if self.probe is not None:
            return self.given_source(trainer, self.probe), None, "validate"
        data = Processes(trainer.world_size > 1).agree(lambda: find_validation_data(trainer))
        if data is not None:
            stage = "test" if trainer.testing else "validate"
            return self._drawn(trainer, data, stage), None, stage
        source = self.training_source(trainer)
        if source is None:
            raise ValueError(
                "`probe` was not given, and the Trainer has neither validation nor training data "
                "to take images from."
            )
        rank_zero_warn(
            f"{type(self).__name__} found no validation data, so it watches images of the training "
            "set, as its transforms augment them: they are not held out. Pass `probe` or "
            "validation data."
        )
        return source, 0, "train"

    def _drawn(self, trainer: pl.Trainer, data: Any, stage: str) -> Source:
        """Treat data that the Trainer itself draws from."""
        # Outside of `fit`, or where no validation runs, nobody else draws from them.
        alone = stage != "train" and trainer.val_dataloaders is None
        moves = is_fitting(trainer) and not alone
        return Source(
            data,
            yields_batches=None if isinstance(data, DataLoader) else True,
            transfer=batch_transfer(trainer, stage),
            only_apart=moves and trainer.world_size == 1,
            for_training=stage == "train",
        )

    def _let_pass(self, error: Unread, stage: str) -> None:
        """Take from now on from passing batches what could not be read beside training."""
        count, ways = self.wanted_images, self.batch_to_images

        def passing(name: str, skip: int = 0) -> PassingImages:
            return PassingImages(
                stage, count, lambda batch: find_images(batch, ways, name), skip=skip
            )

        self._passing[error.name] = passing(error.name)
        if error.name == "probe" and stage == "train":  # the same data serve as a reference
            self._passing["reference"] = passing("reference", skip=count)
        rank_zero_warn(
            f"{type(self).__name__} cannot read the {error.name} without touching the data that "
            f"training draws from ({error}). It takes images from the {stage} batches as they "
            f"pass: there is no {error.name} before {count} images, or one pass, have gone by."
        )
