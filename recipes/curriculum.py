"""Two stages of data, easy images first: noise, denoised copies, and which images an epoch sees.

The curricula of FastDINOv2 (arXiv 2507.03779: small images, then large ones with noise on a patch) and
of training on noisy data (arXiv 2505.12191: denoised images, then noisy ones) are made of these parts.
``ImageDataModule`` puts them together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from jepa_monitor.recipes.datasets import NOT_SET_UP

if TYPE_CHECKING:
    from jepa_monitor.recipes.data import ImageDataModule
    from jepa_monitor.recipes.datasets import Labelled, TrainImages
    from jepa_monitor.recipes.views import Views

NOISES = ("gaussian", "shot", "speckle")


def parse_level(text: str, name: str, kinds: tuple[str, ...]) -> tuple[str, float]:
    """Read ``KIND:LEVEL``.

    Args:
        text: What the user gave.
        name: Name of the argument.
        kinds: What is allowed before the colon.

    Returns:
        The kind and its level.

    Raises:
        ValueError: If the kind is another or the level is not a positive number.
    """
    kind, _, number = text.partition(":")
    try:
        level = float(number)
    except ValueError:
        level = math.nan
    if kind not in kinds or not 0 < level < math.inf:
        expected = ", ".join(f"{kind}:LEVEL" for kind in kinds)
        raise ValueError(f"`{name}` must be one of {expected} with a positive LEVEL, got {text!r}.")
    return kind, level


def add_noise(image: Tensor, kind: str, level: float, rng: np.random.Generator) -> Tensor:
    """Add noise to an image, clip it to the range and round it, as a camera would.

    With pixels x in [0, 1]: ``gaussian`` x + level/255 · n with normal n, ``shot``
    Poisson(level · x) / level, ``speckle`` x + level · x · n.

    Args:
        image: Bytes of any shape.
        kind: One of ``NOISES``.
        level: Its strength; for ``shot`` the photons of a white pixel, so that less is worse.
        rng: Source of all randomness.

    Returns:
        Bytes of the same shape.
    """
    pixels = image.numpy() / 255
    if kind == "shot":
        noisy = rng.poisson(level * pixels) / level
    else:
        scale = level / 255 if kind == "gaussian" else level * pixels
        noisy = pixels + scale * rng.standard_normal(pixels.shape)
    return torch.from_numpy(np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8))


class NoisyImages(Dataset["tuple[Tensor, int]"]):
    """Images of another data set with noise that is the same at every visit and in every run.

    Args:
        images: Data set of (image of bytes, label).
        noise: ``KIND:LEVEL``, see ``add_noise``.
        split: Number of the data set, so that training and held-out images differ in their noise.
    """

    def __init__(self, images: Labelled, noise: str, split: int) -> None:
        self.images, self.split = images, split
        self.kind, self.level = parse_level(noise, "noise", NOISES)

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        rng = np.random.default_rng((self.split, index))
        return add_noise(image, self.kind, self.level, rng), label


class DenoisedImages(Dataset["tuple[Tensor, int]"]):
    """Images of another data set, smoothed: a denoiser that needs no training.

    Args:
        images: Data set of (image of bytes, label).
        sigma: Standard deviation of the Gaussian in pixels.
    """

    def __init__(self, images: Labelled, sigma: float) -> None:
        self.images, self.sigma = images, sigma

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        side = 2 * math.ceil(3 * self.sigma) + 1
        return v2.functional.gaussian_blur(image, [side, side], [self.sigma, self.sigma]), label


class PairedImages(Dataset["tuple[Tensor, int]"]):
    """Each image stacked on its copy in another data set, so that both are augmented alike.

    Args:
        images: Data set of (image (C, H, W), label).
        copies: The same images in the same order, denoised for instance.
    """

    def __init__(self, images: Labelled, copies: Labelled) -> None:
        self.images, self.copies = images, copies

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return torch.stack([image, self.copies[index][0]]), label


class StagedImages(Dataset["tuple[Tensor | Views, int]"]):
    """Training images of two stages: the epoch decides which.

    Args:
        first: Of the epochs before ``first_epochs``.
        second: Of those after, and of those who name no epoch.
        first_epochs: Epochs of the first stage.
    """

    def __init__(self, first: TrainImages, second: TrainImages, first_epochs: int) -> None:
        self.first, self.second, self.first_epochs = first, second, first_epochs

    def __len__(self) -> int:
        return len(self.second)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor | Views, int]:
        early = isinstance(key, tuple) and key[0] < self.first_epochs
        return (self.first if early else self.second)[key]


class SecondStage(Dataset["tuple[Tensor | Views, int]"]):
    """Training images as the second stage begins with them, once the data module has been set up.

    Args:
        data: The data module.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data

    @property
    def _images(self) -> TrainImages | StagedImages:
        if self.data.train_set is None:
            raise RuntimeError(NOT_SET_UP)
        return self.data.train_set

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor | Views, int]:
        return self._images[self.data.first_epochs, index]


def check_copies(images: Labelled, copies: Labelled) -> None:
    """Check that two data sets hold the same images in the same order, as far as can be told.

    Args:
        images: One.
        copies: The other.

    Raises:
        ValueError: If their lengths, or the shapes or labels of some images, differ.
    """
    count, other = len(images), len(copies)  # type: ignore[arg-type]
    if count != other:
        raise ValueError(f"`denoised` has {other} training images, the data set {count}.")
    for index in np.linspace(0, count - 1, min(count, 20)).astype(int).tolist():
        (image, label), (copy, copied_label) = images[index], copies[index]
        if image.shape != copy.shape or label != copied_label:
            raise ValueError(
                f"`denoised`: image {index} has shape {tuple(copy.shape)} and label "
                f"{copied_label}, in the data set {tuple(image.shape)} and {label}; expected "
                "copies in the same order."
            )
