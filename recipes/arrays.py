"""Files and names → arrays of labelled images, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jepa_monitor.recipes.textures import draw_textures

if TYPE_CHECKING:
    from pathlib import Path

    from jepa_monitor.recipes.datasets import Arrays


def load_digits() -> tuple[Arrays, Arrays]:
    """Load scikit-learn's 8×8 digits (UCI, 1797 images), split 4:1 in equal shares of every class.

    Returns:
        Training images (1437, 1, 8, 8) with labels and held-out images (360, 1, 8, 8) with labels.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return as_arrays(parts[0], parts[2], "train"), as_arrays(parts[1], parts[3], "test")


def load_textures(size: int) -> tuple[Arrays, Arrays]:
    """Draw the ten kinds of texture of :mod:`jepa_monitor.recipes.textures`, always the same ones.

    Args:
        size: Side of the images in pixels.

    Returns:
        Training images (1600, 1, size, size) with kinds and held-out images (1000, 1, size, size) with kinds.
    """
    train, test = draw_textures(1600, size, seed=0), draw_textures(1000, size, seed=1)
    return as_arrays(*train, "train"), as_arrays(*test, "test")


def load_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Load images from a NumPy archive with the four arrays that ``ImageDataModule`` names.

    Args:
        path: The ``.npz`` file.

    Returns:
        Training (images, labels) and held-out (images, labels); images uint8 (N, C, H, W).

    Raises:
        ValueError: If there is no such file, or an array is missing or has another kind or shape.
    """
    if not path.is_file():
        raise ValueError(f"name='npz:{path}': there is no such file.")
    with np.load(path) as archive:
        keys = ("train_images", "train_labels", "test_images", "test_labels")
        if missing := [key for key in keys if key not in archive]:
            raise ValueError(f"name='npz:{path}': arrays {missing} are missing; expected {keys}.")
        return (
            as_arrays(archive["train_images"], archive["train_labels"], "train_images"),
            as_arrays(archive["test_images"], archive["test_labels"], "test_images"),
        )


def as_arrays(images: np.ndarray[Any, Any], labels: Any, name: str) -> Arrays:
    """Turn images with channels last into tensors with channels first, and check them.

    Args:
        images: uint8 array of shape (N, H, W) or (N, H, W, C).
        labels: N integers.
        name: What to call the array in an error.

    Returns:
        uint8 images of shape (N, C, H, W) and int64 labels of shape (N,).

    Raises:
        ValueError: If the kind or the shape is another.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name}: got {images.dtype} of shape {images.shape}; "
            "expected uint8 of shape (N, H, W) or (N, H, W, C)."
        )
    targets = torch.as_tensor(np.asarray(labels)).long()
    if targets.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: got {len(images)} images but labels of shape {tuple(targets.shape)}."
        )
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()), targets
