"""Batches of any source: in goes a data set, a loader or an iterable, out come its batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from jepa_monitor.probes.finding import batch_images, batch_labels, text_fields

__all__ = [
    "Source",
    "draw_batches",
    "has_indices",
    "is_inert",
    "is_map_style",
    "may_share_images",
]

_BATCH = 32  # where the source does not say


@dataclass(frozen=True)
class Source:
    """Data, and what is known of where they come from.

    Args:
        data: A tensor (N, ...), a Dataset, a DataLoader, or an iterable of batches.
        yields_batches: Whether the items of what is no DataLoader are batches, as they are where
            such an object serves as a loader; ``None`` to find out from the first one.
        transfer: What happens to a batch between its loader and the model, such as normalisation on
            the device; called in this process.
        only_apart: Rather raise :class:`~jepa_monitor.probes.apart.Unread` than read in this
            process, where data with a state of their own would move.
        for_training: Whether images come as training sees them, changed at random. Classes are then not
            learned from them: what was trained to overlook the changes would beat what was not.
    """

    data: Any
    yields_batches: bool | None = None
    transfer: Callable[[Any], Any] | None = None
    only_apart: bool = False
    for_training: bool = False


def is_map_style(data: Any) -> bool:
    """Tell a data set whose items have indices, of PyTorch or of another library.

    Args:
        data: Anything.

    Returns:
        Whether it has a length and items, and is neither a tensor nor a plain container.
    """
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    plain = isinstance(data, Tensor | DataLoader | list | tuple | dict | str | bytes)
    return not plain and all(hasattr(type(data), name) for name in ("__getitem__", "__len__"))


def has_indices(data: Any) -> bool:
    """Tell what is read item by item from what is read from its beginning on.

    Args:
        data: As for :class:`Source`.

    Returns:
        Whether it is a map-style data set, or a loader of one.
    """
    if isinstance(data, DataLoader):
        return not isinstance(data.dataset, IterableDataset)
    return is_map_style(data)


def is_inert(data: Any) -> bool:
    """Say whether reading surely changes nothing: tensors, and PyTorch's own data sets of tensors.

    Args:
        data: As for :class:`Source`.

    Returns:
        Whether it may be read in any process.
    """
    if isinstance(data, list | tuple):  # of batches
        return True
    if type(data) is DataLoader:
        known = type(data.sampler) in (SequentialSampler, RandomSampler, DistributedSampler)
        return known and data.collate_fn is default_collate and is_inert(data.dataset)
    if type(data) is ConcatDataset:
        return all(is_inert(part) for part in data.datasets)
    return type(data) is TensorDataset or (type(data) is Subset and is_inert(data.dataset))


def may_share_images(first: Any, second: Any) -> bool:
    """Say whether two sources draw from one data set, and not from parts of it that are apart.

    Args:
        first: As for :class:`Source`, or one.
        second: Likewise.

    Returns:
        Whether an image of one may be an image of the other. Two objects that read the same files
        are not found out.
    """
    one, other = _dataset(first), _dataset(second)
    if type(one) is Subset and type(other) is Subset and one.dataset is other.dataset:
        return not set(one.indices).isdisjoint(other.indices)
    return _whole(one) is _whole(other)


def _dataset(data: Any) -> Any:
    data = data.data if isinstance(data, Source) else data
    return data.dataset if isinstance(data, DataLoader) else data


def _whole(data: Any) -> Any:
    while isinstance(data, Subset):
        data = data.dataset
    return data


def draw_batches(source: Source, count: int, shuffle_seed: int | None = None) -> Iterator[Any]:
    """Draw batches from a source in an order that is the same every time.

    A loader's data set is read through a loader of this function's own: without workers, with the
    same batches and the same collate function. Where its sampler is one of PyTorch's that only puts
    the whole data set into an order, the images come in the order of the data set or of
    ``shuffle_seed``; another one says which images the loader has, so it is asked.

    Args:
        source: Where from.
        count: Number of images after which no more are needed.
        shuffle_seed: Draws the images at random, instead of taking the first, where the source has
            a length.

    Yields:
        Batches, as the source's own loader would collate them.
    """
    data = source.data
    if isinstance(data, DataLoader):
        yield from _of_loader(data, count, shuffle_seed)
    elif isinstance(data, IterableDataset) or not is_map_style(data):
        yield from _of_iterable(data, count, source.yields_batches)
    else:
        order = _order(None, data, shuffle_seed)
        batched = source.yields_batches or (len(order) > 0 and _is_batch(data[order[0]]))
        size = None if batched else min(_BATCH, count)
        collate = None if batched else collate_items
        yield from _loader(data, batch_size=size, sampler=order, collate_fn=collate)


def _loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    # A generator of its own: a loader's iterator draws from the global one otherwise.
    return DataLoader(dataset, generator=torch.Generator().manual_seed(0), **options)


def _of_loader(loader: DataLoader[Any], count: int, seed: int | None) -> Iterable[Any]:
    dataset, collate = loader.dataset, loader.collate_fn
    size = loader.batch_size  # None: the data set makes the batches, or a batch sampler does
    if size is not None:
        size = min(size, count)
    if isinstance(dataset, IterableDataset):
        return _loader(dataset, batch_size=size, collate_fn=collate)
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return _loader(dataset, batch_sampler=loader.batch_sampler, collate_fn=collate)
    if size is None and loader.batch_sampler is not None:
        size = min(loader.batch_sampler.batch_size, count)
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    order = _order(sampler, dataset, seed)
    return _loader(dataset, batch_size=size, sampler=order, collate_fn=collate)


def _order(sampler: Any, dataset: Any, seed: int | None) -> list[Any]:
    """Say which items of a map-style data set to read, and in which order."""
    kinds = (SequentialSampler, RandomSampler, DistributedSampler, type(None))
    whole = type(sampler) in kinds and not getattr(sampler, "replacement", False)
    if whole:
        order: list[Any] = list(range(len(dataset)))
    else:
        length = len(dataset) if hasattr(dataset, "__len__") else 2**20
        order = list(itertools.islice(sampler, length))  # some never end
        if not any(isinstance(index, list) for index in order):
            order = list(dict.fromkeys(order))  # drawn with replacement
    if seed is None:
        return order
    generator = torch.Generator().manual_seed(seed)
    return [order[place] for place in torch.randperm(len(order), generator=generator).tolist()]


def _of_iterable(data: Iterable[Any], count: int, batched: bool | None) -> Iterator[Any]:
    items = iter(data)
    if not isinstance(data, IterableDataset):
        batched = True
    if batched is None:
        first = next(items, None)
        if first is None:
            return
        batched, items = _is_batch(first, lone=True), itertools.chain([first], items)
    while batch := list(itertools.islice(items, 1 if batched else min(_BATCH, count))):
        yield batch[0] if batched else collate_items(batch)


def collate_items(items: list[Any]) -> Any:
    """Make a batch of items, of texts without padding them.

    Args:
        items: Of a data set.

    Returns:
        What PyTorch's own function makes of them; of texts, which may differ in length, lists of ids
        and of what goes with them, and labels.
    """
    first = items[0]
    if text_fields(first) is None:
        return default_collate(items)
    if isinstance(first, Mapping):
        return {key: _column([item[key] for item in items]) for key in first}
    return [collate_items(list(parts)) for parts in zip(*items, strict=True)]


def _column(values: list[Any]) -> Any:
    """Stack numbers; what may differ in length stays a list."""
    single = all(
        isinstance(value, int | float) or getattr(value, "ndim", 1) == 0 for value in values
    )
    return default_collate(values) if single else values


def _is_batch(item: Any, lone: bool = False) -> bool:
    """Say whether an item of a data set is a batch itself."""
    # It is if it has a label for each of its images. Images alone, (N, C, H, W), may also be one
    # video; they are a batch in a stream, where batching is a stage like others, if C is a number
    # of colours.
    fields = text_fields(item)
    if fields is not None:
        ids = fields["input_ids"]
        return len(ids) > 0 and not isinstance(ids[0], int) and torch.as_tensor(ids[0]).ndim > 0
    try:
        images = batch_images(item)
    except TypeError:
        return False
    if images.ndim == 3 and len(images) <= 4:  # (C, H, W) and, perhaps, a class for each channel
        return False
    colours = images.ndim == 4 and images.shape[1] in (1, 3)
    return batch_labels(item) is not None or (lone and colours)
