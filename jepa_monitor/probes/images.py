"""Fixed sets of images: in goes any source of data, out comes one tensor, the same every time."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor._checks import check_images
from jepa_monitor._warnings import warn
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.encoders.texts import as_texts, is_texts, join_texts
from jepa_monitor.probes.apart import Unread, can_read_apart, read_apart
from jepa_monitor.probes.finding import batch_images, batch_texts
from jepa_monitor.probes.sources import Source, draw_batches, has_indices, is_inert, is_map_style

__all__ = [
    "BatchToImages",
    "check_batch_to_images",
    "collect_described",
    "collect_images",
    "find_images",
    "visit_images",
]

# One function for all sets, or one for each of them.
BatchToImages: TypeAlias = Callable[[Any], Tensor] | Mapping[str, Callable[[Any], Tensor]] | None
_SETS = ("probe", "reference", "ood")
_Found: TypeAlias = "tuple[Tensor, dict[str, Tensor]]"


def check_batch_to_images(value: Any) -> BatchToImages:
    """Return ``batch_to_images`` if it is a function, a dict of functions by set, or ``None``.

    Args:
        value: What the caller gave.

    Returns:
        The value.

    Raises:
        TypeError: If it is neither.
        ValueError: If it names a set that does not exist.
    """
    if value is None or (callable(value) and not isinstance(value, Mapping)):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            "`batch_to_images` must be callable, or a dict of functions for "
            f"{', '.join(_SETS)}, got {type(value).__name__}."
        )
    for name, function in value.items():
        if name not in _SETS:
            raise ValueError(
                f"`batch_to_images` may have the keys {', '.join(_SETS)}, got {name!r}."
            )
        if not callable(function):
            raise TypeError(
                f"`batch_to_images[{name!r}]` must be callable, got {type(function).__name__}."
            )
    return value


def find_images(batch: Any, batch_to_images: BatchToImages, name: str) -> Tensor:
    """Find the images in a batch, and name the set in errors.

    Args:
        batch: As its loader yields it.
        batch_to_images: The user's; see :func:`check_batch_to_images`.
        name: Of the set: ``probe``, ``reference``, ``ood['name']``.

    Returns:
        (B, ...), float32, on the CPU; of texts (B, T, 2), int64.

    Raises:
        TypeError: If there are none, or none of floating-point numbers.
        ValueError: If they hold NaN or infinity, or ``batch_to_images`` fails.
    """
    if isinstance(batch_to_images, Mapping):
        batch_to_images = batch_to_images.get(name.partition("[")[0])
    if batch_to_images is None:
        texts = batch if is_texts(batch) else batch_texts(batch, name)
        if texts is not None:
            return texts.to("cpu", copy=True)
        try:
            images = batch_images(batch)
        except TypeError as error:
            raise TypeError(f"`{name}`: {error}") from None
    else:
        try:
            found: Any = batch_to_images(batch)
        except Exception as error:
            raise ValueError(
                f"`batch_to_images` failed on a batch of type {type(batch).__name__} of `{name}`: "
                f"{type(error).__name__}: {error}"
            ) from error
        if is_texts(found) or isinstance(found, Mapping):
            return as_texts(found, name).to("cpu", copy=True)
        images = found
    return check_images(images, name).to("cpu", torch.float32, copy=True)


def visit_images(
    data: Any,
    count: int,
    visit: Callable[[Tensor], None],
    *,
    name: str,
    batch_to_images: BatchToImages = None,
    shuffle_seed: int | None = None,
) -> None:
    """Show a fixed set of images to a function, batch by batch; see :func:`collect_images`.

    Args:
        data: A tensor (B, ...), a Dataset, a DataLoader, an iterable of batches, or a
            :class:`~jepa_monitor.probes.sources.Source` of one of these.
        count: Number of images to take at most.
        visit: Called with each batch: (b, ...), float32, on the CPU.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch; default
            :func:`~jepa_monitor.probes.batch_images`.
        shuffle_seed: Draws the images at random, instead of taking the first, where the source has
            a length.

    Raises:
        TypeError: If the data hold no floating-point images.
        ValueError: If there are no images, they hold NaN or infinity, or ``batch_to_images`` fails.
    """
    find = functools.partial(find_images, batch_to_images=batch_to_images, name=name)
    _read(data, count, name, lambda batch: (find(batch), {}), lambda i, _: visit(i), shuffle_seed)


def collect_images(
    data: Any,
    count: int,
    *,
    name: str = "probe",
    batch_to_images: BatchToImages = None,
    shuffle_seed: int | None = None,
) -> Tensor:
    """Take a fixed set of images from a source, without touching the source's own state.

    A dataset behind a DataLoader is read through a loader of its own (no workers, same collation),
    and random transforms see the same random numbers every time, so that two runs over the same data
    have the same images. On Linux reading happens in a fork of the process, from which nothing comes
    back but the images: counters, random generators and positions in files stay where they were.
    Elsewhere data with a state of their own move.

    Args:
        data: A tensor (B, ...), a Dataset, a DataLoader, an iterable of batches, or a
            :class:`~jepa_monitor.probes.sources.Source` of one of these.
        count: Number of images to take at most.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch; default
            :func:`~jepa_monitor.probes.batch_images`.
        shuffle_seed: Draws the images at random, instead of taking the first, where the source has
            a length.

    Returns:
        (N, ...), float32, on the CPU, N ≤ count; of texts (N, T, 2), int64.

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
    return _joined(taken, name)


def collect_described(
    data: Any,
    count: int,
    describe: Callable[[Any, int], dict[str, Tensor]],
    *,
    name: str = "probe",
    batch_to_images: BatchToImages = None,
    shuffle_seed: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a fixed set of images, and what else their batches say of each, in one pass.

    Args:
        data: As for :func:`collect_images`.
        count: Number of images to take at most.
        describe: Takes a batch and its number of images b, returns tensors (b,) by name.
        name: What the set is called in errors.
        batch_to_images: Finds the images in a batch.
        shuffle_seed: Draws the images at random, instead of taking the first.

    Returns:
        The images, (N, ...), float32, and (N,) by those names that every batch has.

    Raises:
        ValueError: What :func:`collect_images` and ``describe`` raise.
    """

    def find(batch: Any) -> _Found:
        images = find_images(batch, batch_to_images, name)
        return images, describe(batch, len(images))

    taken: list[_Found] = []
    _read(data, count, name, find, lambda *found: taken.append(found), shuffle_seed)
    images = _joined([images for images, _ in taken], name)
    shared = [key for key in taken[0][1] if all(key in said for _, said in taken)]
    return images, {key: torch.cat([said[key] for _, said in taken]) for key in shared}


def _joined(taken: list[Tensor], name: str) -> Tensor:
    if all(is_texts(texts) for texts in taken):
        return join_texts(taken)
    shapes = {tuple(images.shape[1:]) for images in taken}
    if len(shapes) > 1:
        raise ValueError(f"`{name}` must hold images of one shape, got {sorted(shapes)}.")
    return torch.cat(taken)


def _read(
    data: Any,
    count: int,
    name: str,
    find: Callable[[Any], _Found],
    take: Callable[[Tensor, dict[str, Tensor]], None],
    shuffle_seed: int | None,
) -> None:
    """Read images, and what belongs to them, until there are enough."""
    source = data if isinstance(data, Source) else Source(data)
    if isinstance(source.data, Mapping) and "input_ids" in source.data:
        source = replace(source, data=[source.data])  # a tokenizer's answer is one batch
    data, left, batches = source.data, count, 0
    if isinstance(data, Tensor):
        take(*find(data[:count]))
        return
    known = isinstance(data, Dataset | DataLoader | Iterable) or is_map_style(data)
    if isinstance(data, str | bytes) or not known:
        raise TypeError(
            f"`{name}` must be a tensor, a Dataset, a DataLoader or an iterable of batches, "
            f"got {type(data).__name__}."
        )

    def draw() -> Generator[Any, None, None]:
        missing = count
        for batch in _isolated(source, count, shuffle_seed):
            if source.transfer is not None:  # to the device, which is this process's alone
                yield batch
                continue
            images, said = find(batch)
            yield images[:missing], _first(said, missing)
            missing -= len(images)
            if missing <= 0:
                return

    def deliver(items: Iterable[Any]) -> None:
        nonlocal left, batches
        for item in items:
            images, said = item if source.transfer is None else find(source.transfer(item))
            take(images[:left], _first(said, left))
            batches += 1
            left -= len(images)
            if left <= 0:
                return

    failure: Unread | None = None
    apart = can_read_apart() and not is_inert(data)
    if apart:
        try:
            with contextlib.closing(read_apart(draw)) as items:
                deliver(items)
        except Unread as error:
            failure = error
    elif not is_inert(data) and not has_indices(data):
        failure = Unread("this system cannot read it in a process of its own")
    if failure is not None and source.only_apart:
        failure.name = name
        raise failure
    if failure is not None or not apart:
        with contextlib.closing(draw()) as items:
            try:
                deliver(itertools.islice(items, batches, None))
            except Unread as error:
                if not source.only_apart:
                    raise (error.__cause__ or error) from None
                error.name = name
                raise
    if failure is not None and apart:
        warn(
            f"`{name}` was read in this process, since one of its own failed ({failure}). If reading "
            "moves a counter, a generator or a position of the data, training goes on from there."
        )
    if left == count:
        raise ValueError(f"`{name}` is empty: {type(data).__name__} yields no images.")


def _first(said: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {key: values[:count] for key, values in said.items()}


def _isolated(source: Source, count: int, shuffle_seed: int | None) -> Iterator[Any]:
    """Draw batches under random states of their own, and tell the source's errors from others."""
    # No module is evaluated here, but a transform may draw random numbers.
    with undisturbed((), torch.device("cpu")), torch.no_grad():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what transforms use
        torch.manual_seed(0)
        batches = draw_batches(source, count, shuffle_seed)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                raise Unread(f"{type(error).__name__}: {error}") from error
            yield batch
