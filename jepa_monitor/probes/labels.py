"""Images with their classes: in goes any source of data, out come fixed images and what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from jepa_monitor.probes.finding import batch_labels
from jepa_monitor.probes.groups import Groups, group_numbers
from jepa_monitor.probes.images import BatchToImages, collect_described

__all__ = [
    "Labels",
    "check_label_source",
    "collect_classes",
    "plausible_classes",
    "without_repeats",
]

# How the classes of images are found: by themselves, by a function of a batch, or not at all.
Labels = Tensor | Callable[[Any], Tensor] | str | None


def check_label_source(value: Any) -> Labels:
    """Return ``labels`` if it says how classes are found.

    Args:
        value: What the caller gave.

    Returns:
        The value.

    Raises:
        TypeError: If it is neither text, a tensor, a function nor ``None``.
        ValueError: If it is another text than ``"auto"``.
    """
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"`labels` must be 'auto', a tensor, a function or None, got {value!r}.")
    known = value is None or isinstance(value, str | Tensor) or callable(value)
    if not known:
        raise TypeError(
            f"`labels` must be 'auto', a tensor, a function or None, got {type(value).__name__}."
        )
    return value  # type: ignore[no-any-return]


def plausible_classes(labels: Tensor) -> Tensor | None:
    """Tell classes from other whole numbers that stand beside images.

    Args:
        labels: (N,), int64; below 0 for images without a class, as losses ignore them.

    Returns:
        The same, −1 where unknown; ``None`` for fewer than 2 classes, and where there are less than
        2 images for each of them on average, as for an index.
    """
    known = labels[labels >= 0]
    classes = len(torch.unique(known))
    if classes < 2 or 2 * classes > len(known):
        return None
    return labels.clamp_min(-1)


def without_repeats(labels: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Forget the classes of images that are, pixel by pixel, among others.

    Args:
        labels: (N,), int64.
        images: (N, ...).
        others: (M, ...).

    Returns:
        The labels, −1 for those images.
    """
    seen = {_digest(image) for image in others}
    repeated = torch.tensor([_digest(image) in seen for image in images])
    return torch.where(repeated, -1, labels)


def _digest(image: Tensor) -> bytes:
    if image.dtype == torch.int64:  # a text, without its padding
        image = image[image[:, 1] > 0]
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()


def collect_classes(
    data: Any,
    count: int,
    labels: Labels,
    *,
    name: str,
    batch_to_images: BatchToImages = None,
    shuffle_seed: int | None = None,
    groups: Groups = MappingProxyType({}),
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a fixed set of images, and their classes and groups where there are any, in one pass.

    Args:
        data: As for :func:`~jepa_monitor.probes.images.collect_images`.
        count: Number of images to take at most.
        labels: ``"auto"``, a function of a batch that must find them in the probe, or anything else
            for none.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch.
        shuffle_seed: Draws the images at random, instead of taking the first.
        groups: Functions of a batch by name, which must find the groups in the probe.

    Returns:
        The images, (N, ...), float32; their classes, (N,), int64, −1 where unknown; (0,) if there
        are none, or none that are plausible: where the labels themselves were asked for, as they are;
        and their groups, (N, G), int64, −1 where unknown.

    Raises:
        ValueError: If a function finds none, or not one for each image. What
            :func:`~jepa_monitor.probes.images.collect_images` raises besides.
    """
    wanted = labels == "auto" if isinstance(labels, str) else callable(labels)
    must = callable(labels) and name == "probe"

    def describe(batch: Any, images: int) -> dict[str, Tensor]:
        said = {}
        if wanted and (found := _labels_of(batch, images, labels, name, must)) is not None:
            said["labels"] = found
        for group, find in groups.items():
            try:
                said[f"group {group}"] = group_numbers(find(batch), images)
            except Exception as error:  # noqa: PERF203 - whatever a user's function raises
                if name == "probe":
                    raise ValueError(
                        f"`groups[{group!r}]` failed on a batch of type {type(batch).__name__} of "
                        f"`{name}`: {type(error).__name__}: {error}"
                    ) from error
        return said

    images, said = collect_described(
        data,
        count,
        describe,
        name=name,
        batch_to_images=batch_to_images,
        shuffle_seed=shuffle_seed,
    )
    found = said.get("labels")
    if found is not None and len(set(found.tolist())) == len(found):
        found = None
    if must and found is None:
        raise ValueError(
            "`labels` must name at least 2 classes, each of at least 2 probe images, got a "
            "different one for each image."
        )
    if found is not None and not must:
        found = plausible_classes(found)
    unknown = torch.full((len(images),), -1)
    columns = [said.get(f"group {group}", unknown) for group in groups]
    none = torch.empty(0, dtype=torch.int64)
    return (
        images,
        none if found is None else found,
        torch.stack(columns, 1) if columns else unknown[:, None][:, :0],
    )


def _labels_of(batch: Any, images: int, labels: Labels, name: str, must: bool) -> Tensor | None:
    """Find the labels of a batch; ``None`` if there are none, and need not be."""
    try:
        found = labels(batch) if callable(labels) else batch_labels(batch)
        if found is None:
            return None
        found = torch.as_tensor(found).detach().cpu()
        if found.shape != (images,):
            raise ValueError(
                f"they must be one for each image, {(images,)}, got shape {tuple(found.shape)}"
            )
        if found.is_floating_point() and bool((found != found.round()).any()):
            raise ValueError("they must be whole numbers, got fractions")
    except Exception as error:
        if not must:
            return None
        raise ValueError(
            f"`labels` failed on a batch of type {type(batch).__name__} of `{name}`: "
            f"{type(error).__name__}: {error}"
        ) from error
    return found.long()
