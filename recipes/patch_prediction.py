"""Training by predicting hidden patches: in go images, out comes a loss under masks that epoch and batch decide."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from jepa_monitor.recipes.datasets import mixed_seed
from jepa_monitor.recipes.masking import Masks
from jepa_monitor.recipes.module import ScheduledModule


class PatchPrediction(ScheduledModule, ABC):
    """A method that hides patches of each image, by masks that depend on (seed, epoch, batch) alone."""

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks.

        Args:
            batch_size: Images B.
            generator: Source of all randomness, on the CPU.

        Returns:
            Masks on the CPU.
        """

    @abstractmethod
    def loss(self, images: Tensor, masks: Masks) -> Tensor:
        """How far predictions are from what is hidden.

        Args:
            images: Shape (B, C, H, W).
            masks: What is seen, and what is predicted.

        Returns:
            Scalar.
        """

    def masks(self, batch_size: int, *counters: int) -> Masks:
        """Draw the masks of a batch.

        Args:
            batch_size: Images in the batch.
            counters: What identifies the batch, mixed with the seed and the process's rank.

        Returns:
            Masks on the module's device.
        """
        seed = mixed_seed(self.hparams["seed"], self.global_rank, *counters)
        generator = torch.Generator().manual_seed(seed)
        masks = self.draw(batch_size, generator)
        return Masks(masks.context.to(self.device), masks.targets.to(self.device))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels); the labels are not looked at.

        Args:
            batch: Images (B, C, H, W) and labels (B,).
            batch_idx: Number of the batch in the epoch.

        Returns:
            Scalar loss.
        """
        images = batch[0]
        loss = self.loss(images, self.masks(len(images), 1 + self.current_epoch, batch_idx))
        return self.log_terms({"loss": loss})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of held-out images under masks that are the same in every epoch.

        Args:
            batch: Images (B, C, H, W) and labels (B,).
            batch_idx: Number of the batch.
        """
        images = batch[0]
        loss = self.loss(images, self.masks(len(images), 0, batch_idx))
        self.log("val/loss", loss, batch_size=len(images), sync_dist=True)
