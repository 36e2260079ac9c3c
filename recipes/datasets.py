"""Labelled images as data sets: in go arrays, out come tensors, drawn by seed, epoch and index alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler
from torchvision.transforms import v2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer
    from torch import Tensor

    from jepa_monitor.recipes.views import MultiCrop, Views

# A pair of (images, labels): uint8 images of shape (N, C, H, W) and integer labels of shape (N,).
Arrays: TypeAlias = "tuple[Tensor, Tensor]"
Labelled: TypeAlias = "Dataset[tuple[Tensor, int]]"

NOT_SET_UP = "This data module is empty until its `setup()` is called."


def processes(trainer: Trainer | None) -> tuple[int, int]:
    """Say how many processes share the data.

    Args:
        trainer: Lightning's, or None in a loop of one's own.

    Returns:
        Their number, and which of them this one is.
    """
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


def mixed_seed(*parts: int) -> int:
    """Mix counters (seed, epoch, index, …) into one seed without correlations between neighbours.

    Args:
        parts: Non-negative integers.

    Returns:
        An integer in [0, 2⁶⁴), the same on every machine.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def normalisation(mean: list[float], std: list[float]) -> list[v2.Transform]:
    """Turn bytes into the numbers that an encoder sees.

    Args:
        mean: Of each channel, in [0, 1].
        std: Likewise.

    Returns:
        Transforms to apply one after the other.
    """
    # Bytes until the end; scaling to [0, 1] and normalising are one step.
    scaled = [(255 * torch.tensor(numbers)).tolist() for numbers in (mean, std)]
    return [v2.ToDtype(torch.float32), v2.Normalize(*scaled)]


def resize_and_normalise(
    image_size: int, mean: list[float], std: list[float]
) -> list[v2.Transform]:
    """Turn an image of bytes into what the encoder sees of it in evaluation.

    Args:
        image_size: Side in pixels to which the image is resized.
        mean: Of each channel, in [0, 1].
        std: Likewise.

    Returns:
        Transforms to apply one after the other.
    """
    resize = v2.Resize((image_size, image_size), antialias=True)
    return [resize, *normalisation(mean, std)]


class ArrayImages(Dataset["tuple[Tensor, int]"]):
    """Images that lie in memory.

    Args:
        images: uint8 tensor of shape (N, C, H, W).
        labels: Integer tensor of shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def in_memory(images: Labelled) -> Tensor:
    """Read all images of a data set whose images have one size.

    Args:
        images: Data set of (image (C, H, W), label).

    Returns:
        Shape (N, C, H, W).
    """
    return torch.stack([images[i][0] for i in range(len(images))])  # type: ignore[arg-type]


class PlainImages(Dataset["tuple[Tensor, int]"]):
    """Images of another data set, always transformed in the same way.

    Args:
        images: Data set of (image, label).
        transform: Deterministic function of the image.
    """

    def __init__(self, images: Labelled, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image).as_subclass(torch.Tensor), label


class TrainImages(Dataset["tuple[Tensor | Views, int]"]):
    """Images of another data set, augmented at random but reproducibly.

    Args:
        images: Data set of (image, label).
        transform: Function of the image that draws views from PyTorch's global generator.
        seed: Seed that is mixed with the epoch and the index of the image.
    """

    def __init__(self, images: Labelled, transform: MultiCrop, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | Views, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, label = self.images[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            views = self.transform(image)
        single = len(views.global_crops) == 1 and not views.local_crops
        return (views.global_crops[0] if single else views), label


class EpochSampler(DistributedSampler[Any]):
    """Shuffle by ``(seed, epoch)`` and hand ``(epoch, index)`` to ``TrainImages``."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Go through this process's share of the images.

        Yields:
            Pairs of (epoch, index).
        """
        for index in super().__iter__():
            yield self.epoch, index
