"""Fixed sets of images: in goes any source of data, out comes one tensor, the same every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from jepa_monitor._checks import check_images
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.probes.finding import batch_images

__all__ = ["collect_images", "visit_images"]


def _own_loader(data: Any, count: int, shuffle_seed: int | None) -> Iterable[Any]:
    """Make a loader that shares nothing with the user's but the dataset and how it collates."""
    dataset, collate, size = data, None, 32
    if isinstance(data, DataLoader):
        dataset, collate = data.dataset, data.collate_fn
        size = data.batch_size or size
    if isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset):
        length = len(dataset)  # type: ignore[arg-type]  # map-style datasets have a length
        indices = list(range(min(count, length)))
        if shuffle_seed is not None:
            generator = torch.Generator().manual_seed(shuffle_seed)
            indices = torch.randperm(length, generator=generator)[:count].tolist()
        dataset = Subset(dataset, indices)
    elif not isinstance(dataset, IterableDataset):
        batches: Iterable[Any] = data
        return batches
    # A generator of its own: a loader's iterator draws from the global one otherwise.
    return DataLoader(
        dataset, min(size, count), collate_fn=collate, generator=torch.Generator().manual_seed(0)
    )


def _images_of(batch: Any, batch_to_images: Callable[[Any], Tensor] | None) -> Tensor:
    if batch_to_images is None:
        return batch_images(batch)
    try:
        return batch_to_images(batch)
    except Exception as error:
        raise ValueError(
            f"`batch_to_images` failed on a batch of type {type(batch).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _stored(images: Tensor, name: str) -> Tensor:
    return check_images(images, name).to("cpu", torch.float32, copy=True)


def visit_images(
    data: Any,
    count: int,
    visit: Callable[[Tensor], None],
    *,
    name: str,
    batch_to_images: Callable[[Any], Tensor] | None = None,
    shuffle_seed: int | None = None,
) -> None:
    """Show a fixed set of images to a function, batch by batch; see :func:`collect_images`.

    Args:
        data: A tensor (B, ...), a Dataset, a DataLoader, or an iterable of batches.
        count: Number of images to take at most.
        visit: Called with each batch: (b, ...), float32, on the CPU.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch; default :func:`batch_images`.
        shuffle_seed: Draws the images at random, instead of taking the first, where the source has
            a length.

    Raises:
        TypeError: If the data hold no floating-point images.
        ValueError: If there are no images, they hold NaN or infinity, or ``batch_to_images`` fails.
    """
    if isinstance(data, Tensor):
        visit(_stored(data[:count], name))
        return
    if isinstance(data, str | bytes) or not isinstance(data, Dataset | Iterable):
        raise TypeError(
            f"`{name}` must be a tensor, a Dataset, a DataLoader or an iterable of batches, "
            f"got {type(data).__name__}."
        )
    left = count
    # No module is evaluated here, but a transform may draw random numbers.
    with undisturbed((), torch.device("cpu")), torch.no_grad():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what transforms use
        torch.manual_seed(0)
        for batch in _own_loader(data, count, shuffle_seed):
            images = _stored(_images_of(batch, batch_to_images), name)[:left]
            visit(images)
            left -= len(images)
            if left <= 0:
                break
    if left == count:
        raise ValueError(f"`{name}` is empty: {type(data).__name__} yields no images.")


def collect_images(
    data: Any,
    count: int,
    *,
    name: str = "probe",
    batch_to_images: Callable[[Any], Tensor] | None = None,
    shuffle_seed: int | None = None,
) -> Tensor:
    """Take a fixed set of images from a source, without touching the source's own state.

    A dataset behind a DataLoader is read through a loader of its own (no workers, no shuffling,
    same collation), and random transforms see the same random numbers every time, so that two runs
    over the same data have the same images.

    Args:
        data: A tensor (B, ...), a Dataset, a DataLoader, or an iterable of batches.
        count: Number of images to take at most.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch; default :func:`batch_images`.
        shuffle_seed: Draws the images at random, instead of taking the first, where the source has
            a length.

    Returns:
        (N, ...), float32, on the CPU, N ≤ count.

    Raises:
        ValueError: If the images differ in shape. What :func:`visit_images` raises besides.
    """
    taken: list[Tensor] = []
    visit_images(
        data,
        count,
        taken.append,
        name=name,
        batch_to_images=batch_to_images,
        shuffle_seed=shuffle_seed,
    )
    shapes = {tuple(images.shape[1:]) for images in taken}
    if len(shapes) > 1:
        raise ValueError(f"`{name}` must hold images of one shape, got {sorted(shapes)}.")
    return torch.cat(taken)
