"""What the tests of the command line share: a folder of images, an encoder, and its float64 scores."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.sources import Source

SIDE = 6


class Small(nn.Module):
    """A smooth encoder of 3 x 6 x 6 images, K = 8."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(3 * SIDE**2, 16, generator=generator) / 10)
        self.second = nn.Parameter(torch.randn(16, 8, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.first) @ self.second


def transform(image: Image.Image) -> Tensor:
    resized = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(resized), torch.float32, scale=True)


def encoder() -> tuple[nn.Module, object]:
    return Small(), transform


def failed() -> tuple[nn.Module, object]:
    """An encoder whose training has ended in NaN."""
    small = Small()
    small.second.data[0, 0] = torch.nan
    return small, transform


def make_folder(root: pathlib.Path, count: int = 20, classes: tuple[str, ...] = ("a", "b")) -> None:
    generator = np.random.default_rng(0)
    for i in range(count):
        folder = root / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def attempt(source: Source, index: int) -> object:
    """Load an image, or say why it cannot be."""
    try:
        return source.load(index)
    except BadImage as error:
        return str(error)
