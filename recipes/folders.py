"""Images in a folder, of any number of channels, with or without classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jepa_monitor.recipes.datasets import Labelled

UNKNOWN = -1  # the label of an image without a class
MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "HSV", "LAB", "YCbCr")  # those with bytes
SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def read_image(path: Path, mode: str) -> Tensor:
    """Read one image.

    Args:
        path: A file that Pillow reads, or a NumPy file of bytes, (H, W) or (H, W, C) with any C.
        mode: Pillow's mode to convert to; NumPy files are taken as they are.

    Returns:
        Bytes, shape (C, H, W).

    Raises:
        ValueError: If a NumPy file holds something else.
    """
    if path.suffix.lower() == ".npy":
        pixels: np.ndarray[Any, Any] = np.load(path)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ValueError(
                f"{str(path)!r} holds {pixels.dtype} of shape {pixels.shape}; expected uint8 of "
                "shape (H, W) or (H, W, C)."
            )
    else:
        with Image.open(path) as image:
            pixels = np.array(image.convert(mode))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))


class FolderImages(Dataset["tuple[Tensor, int]"]):
    """Images in a folder and all its subfolders, sorted by path.

    The class of an image is the number of its first-level subfolder. Where images lie in the folder
    itself, there are no classes at all, and every label is ``UNKNOWN``.

    Args:
        root: The folder.
        mode: Pillow's mode to convert to: ``L`` for grey, ``RGB``, ``RGBA``, ...

    Raises:
        ValueError: If there is no such mode, no such folder, or no image in it.
    """

    def __init__(self, root: Path, mode: str = "RGB") -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}.")
        if not root.is_dir():
            raise ValueError(f"{str(root)!r} is no folder.")
        self.mode = mode
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ValueError(f"{str(root)!r} holds no image ({', '.join(sorted(SUFFIXES))}).")
        parents = [file.relative_to(root).parts[:-1] for file in self.files]
        self.classes = sorted({parts[0] for parts in parents}) if all(parents) else []
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = [number[parts[0]] if self.classes else UNKNOWN for parts in parents]

    @property
    def channels(self) -> int:
        """Channels of the first image; all must have as many."""
        return read_image(self.files[0], self.mode).shape[0]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.files[index], self.mode), self.labels[index]


def split_folder(root: Path, mode: str = "RGB") -> tuple[Labelled, Labelled]:
    """Tell training from held-out images: by the folders ``train`` and ``val``, or 4:1.

    Args:
        root: The folder.
        mode: See :class:`FolderImages`.

    Returns:
        Images to train on, and held-out ones, always the same.

    Raises:
        ValueError: If there is no such folder, or nothing in it.
    """
    if (root / "train").is_dir() and (root / "val").is_dir():
        return FolderImages(root / "train", mode), FolderImages(root / "val", mode)
    whole = FolderImages(root, mode)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = max(len(whole) // 5, 1)
    return Subset(whole, order[held_out:]), Subset(whole, order[:held_out])


def channel_statistics(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel over all pixels.

    Args:
        images: Bytes, shape (C, H, W) each, of any size.

    Returns:
        Two tensors of shape (C,), of pixels in [0, 1]; deviations at least 0.001.
    """
    pixels = torch.cat([image.flatten(1) for image in images], dim=1).double() / 255
    return pixels.mean(1).float(), pixels.std(1).clamp_min(1e-3).float()
