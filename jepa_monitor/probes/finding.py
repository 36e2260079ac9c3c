"""What is what in a batch: in goes whatever a loader yields, out come its images or its labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.encoders.texts import as_texts

__all__ = ["batch_images", "batch_labels", "batch_texts", "batch_views", "text_fields"]

# In the order of preference: the whole image before a view of it, large crops before small ones.
_IMAGE_KEYS = (
    "image", "images", "pixel_values", "pixel_values_videos", "input", "inputs", "x", "img", "imgs",
    "video", "videos", "audio", "views", "view", "global_views", "global_crops",
    "collated_global_crops", "crops", "data",
)  # fmt: skip
_VIEW_KEYS = ("views", "global_views", "global_crops", "crops")
_LABEL_KEYS = (
    "label", "labels", "target", "targets", "y", "class", "classes", "class_id", "cls",
    "fine_label", "category", "label_ids",
)  # fmt: skip


def _fields(batch: Any) -> Mapping[Any, Any] | None:
    """Give what has names in a batch, or ``None`` if nothing has."""
    if isinstance(batch, Mapping):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def _tensor(batch: Any) -> Tensor | None:
    """Give a tensor or an array of numbers as a tensor."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        return torch.from_numpy(batch)
    return None


def _first(
    batch: Any, keys: tuple[str, ...], fits: Callable[[Tensor], bool], *, named: bool = False
) -> Tensor | None:
    """Find the first fitting tensor, under known names before others."""
    tensor = _tensor(batch)
    if tensor is not None:
        return tensor if fits(tensor) else None
    fields = _fields(batch)
    if fields is None:
        parts = batch if isinstance(batch, list | tuple) else ()
        return next(_found(parts, keys, fits, named=named), None)
    known = (fields[key] for key in keys if key in fields)
    for found in _found(known, keys, fits, named=True):
        return found
    others = list(_found(fields.values(), keys, fits, named=named))
    # Inside of "views" whatever comes first will do. Elsewhere, which of two is meant is a guess.
    return others[0] if len(others) == 1 or (others and named) else None


def _found(
    parts: Iterable[Any],
    keys: tuple[str, ...],
    fits: Callable[[Tensor], bool],
    *,
    named: bool = False,
) -> Iterator[Tensor]:
    for part in parts:
        found = _first(part, keys, fits, named=named)
        if found is not None:
            yield found


def _describe(batch: Any, depth: int = 3) -> str:
    """Say what a batch is made of, for errors."""
    tensor = _tensor(batch)
    if tensor is not None:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    fields = _fields(batch)
    if fields is not None:
        inside = [f"{key}: {_describe(value, depth - 1)}" for key, value in fields.items()]
        brackets = "{}"
    elif isinstance(batch, list | tuple):
        inside = [_describe(part, depth - 1) for part in batch]
        brackets = "[]" if isinstance(batch, list) else "()"
    else:
        return type(batch).__name__
    if depth <= 0 and inside:
        return type(batch).__name__
    return f"{brackets[0]}{', '.join(inside[:6])}{', …' if len(inside) > 6 else ''}{brackets[1]}"


def batch_images(batch: Any) -> Tensor:
    """Find the images in a batch.

    They are the first floating-point tensor of two or more dimensions: the batch itself, the image
    of a pair, the first view of a list of them, what follows an index. In a dict or dataclass the
    names ``image``, ``images``, ``pixel_values``, ``input``, ``x``, ``img``, ``video``, ``audio``,
    ``views``, ``global_crops`` and the like come first; under other names there must be only one
    candidate.

    Args:
        batch: A tensor, or tuples, lists, dicts and dataclasses of them, however nested.

    Returns:
        The images, (B, ...). Where there are only tensors of integers, the first of three or more
        dimensions, which is most likely images before their conversion.

    Raises:
        TypeError: If no images are found, or more than one candidate under unknown names.

    Example:
        >>> import torch
        >>> from jepa_monitor.probes import batch_images
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch_images([torch.arange(4), views, torch.zeros(4)]).shape
        torch.Size([4, 3, 8, 8])
    """
    if isinstance(batch, Tensor):
        return batch
    for fits in (
        lambda tensor: tensor.is_floating_point() and tensor.ndim >= 2,
        lambda tensor: tensor.ndim >= 3 and tensor.dtype != torch.bool,
    ):
        found = _first(batch, _IMAGE_KEYS, fits)
        if found is not None:
            return found
    raise TypeError(
        f"no images found in a batch of type {type(batch).__name__}, {_describe(batch)}: neither "
        "a usual name nor a single floating-point tensor of two or more dimensions. Pass "
        "`batch_to_images`, a function that takes a batch and returns the images, (B, ...)."
    )


def text_fields(batch: Any) -> Mapping[Any, Any] | None:
    """Find what has the tokens of texts in a batch, or in an item of a data set.

    Args:
        batch: As for :func:`batch_images`.

    Returns:
        A dict with ``input_ids``; ``None`` where there is none, or where there are images too.
    """
    fields = _fields(batch)
    if fields is not None:
        if "input_ids" in fields:
            pictured = any(_tensor(fields[key]) is not None for key in _IMAGE_KEYS if key in fields)
            return None if pictured else fields
        parts = list(fields.values())
    else:
        parts = list(batch) if isinstance(batch, list | tuple) else []
    if any(_is_picture(part) for part in parts):
        return None
    nested = (text_fields(part) for part in parts if not isinstance(part, Tensor))
    return next((found for found in nested if found is not None), None)


def _is_picture(part: Any) -> bool:
    tensor = _tensor(part)
    return tensor is not None and tensor.ndim >= 3


def batch_texts(batch: Any, name: str = "batch") -> Tensor | None:
    """Find the texts in a batch: what has ``input_ids`` and is not beside images.

    Args:
        batch: As for :func:`batch_images`.
        name: What the texts are called in errors.

    Returns:
        (B, T, 2), int64, as of :func:`~jepa_monitor.encoders.texts.as_texts`, which raises what there
        is to be raised; ``None`` where there are none.

    Example:
        >>> import torch
        >>> from jepa_monitor.probes.finding import batch_texts
        >>> batch_texts({"input_ids": torch.tensor([[5, 3]]), "labels": torch.tensor([1])}).tolist()
        [[[5, 1], [3, 1]]]
    """
    fields = text_fields(batch)
    return None if fields is None else as_texts(fields, name)


def batch_views(batch: Any) -> tuple[Tensor, Tensor] | None:
    """Find two views of each image in a batch, where it says that it holds views.

    They are the first two tensors of one shape in a list inside of the batch, as in ``([a, b], label)``,
    or under a name such as ``views`` or ``global_crops``. Two tensors side by side in the batch itself
    may be an image and its mask, and are no views.

    Args:
        batch: As for :func:`batch_images`.

    Returns:
        Both views, (B, ...) each, or ``None`` where there are none, or none for certain.

    Example:
        >>> import torch
        >>> from jepa_monitor.probes.finding import batch_views
        >>> a, b, label = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), torch.arange(4)
        >>> batch_views([[a, b], label])[1] is b, batch_views([a, b, label])
        (True, None)
    """
    fields = _fields(batch)
    if fields is not None:
        named = [fields[key] for key in _VIEW_KEYS if key in fields]
    elif isinstance(batch, list | tuple):
        names = getattr(batch, "_fields", ())
        named = [getattr(batch, key) for key in _VIEW_KEYS if key in names]
        named = named or [part for part in batch if isinstance(part, list | tuple)]
    else:
        return None
    for inside in named:
        found = _two_alike(inside)
        if found is not None:
            return found
    # A batch of several loaders, or a list of batches that hold views themselves.
    nested = [batch_views(part) for part in named if not isinstance(part, Tensor)]
    return next((found for found in nested if found is not None), None)


def _two_alike(parts: Any) -> tuple[Tensor, Tensor] | None:
    """Find two batches of images of one shape, side by side."""
    fields = _fields(parts)
    if fields is None and not isinstance(parts, list | tuple):
        return None
    held = list(parts if fields is None else fields.values())
    images = []
    for part in held:
        fields = _fields(part)
        if fields is not None:  # each view in a dict of its own
            part = next((fields[key] for key in _IMAGE_KEYS if key in fields), None)
        tensor = _tensor(part)
        if tensor is not None and tensor.is_floating_point() and tensor.ndim >= 3:
            images.append(tensor)
    for position, first in enumerate(images):
        for second in images[position + 1 :]:
            if first.shape == second.shape:
                return first, second
    return None


def named_field(batch: Any, name: str) -> Any:
    """Find what has a name in a batch: in a dict, dataclass or named tuple, also inside of others.

    Args:
        batch: As for :func:`batch_images`.
        name: The name.

    Returns:
        What has it, the outermost first; ``None`` if nothing has.

    Example:
        >>> from jepa_monitor.probes.finding import named_field
        >>> named_field([[0.5, 0.7], {"patient": ["a", "b"]}], "patient")
        ['a', 'b']
    """
    fields = _fields(batch)
    if fields is None and isinstance(batch, tuple) and hasattr(batch, "_fields"):
        fields = dict(zip(batch._fields, batch, strict=True))
    if fields is not None and name in fields:
        return fields[name]
    parts = fields.values() if fields is not None else batch
    if not isinstance(batch, list | tuple) and fields is None:
        return None
    inside = (named_field(part, name) for part in parts if not isinstance(part, Tensor | str))
    return next((found for found in inside if found is not None), None)


def batch_labels(batch: Any) -> Tensor | None:
    """Find the classes of the images, or texts, in a batch.

    They are the first tensor of B integers, or (B, 1): in a dict or dataclass under ``label``,
    ``labels``, ``target``, ``targets``, ``y``, ``class`` and the like; in a tuple or list after the
    images, since what stands before them is an index.

    Args:
        batch: As for :func:`batch_images`.

    Returns:
        (B,), int64, or ``None`` where there are none.
    """
    fields = text_fields(batch)
    if fields is batch and fields is not None:  # lists are labels of tokens, or words
        batch = {key: value for key, value in fields.items() if not isinstance(value, list)}
    try:
        count = len(batch_images(batch)) if fields is None else len(fields["input_ids"])
    except TypeError:
        return None
    found = _labels(batch, count)
    return None if found is None else found.reshape(-1).long()


def _labels(batch: Any, count: int) -> Tensor | None:
    def fits(tensor: Tensor) -> bool:
        whole = not tensor.is_floating_point() and not tensor.is_complex()
        return whole and tuple(tensor.shape) in ((count,), (count, 1))

    if isinstance(batch, list | tuple):
        held = [_holds_images(part) for part in batch]
        start = held.index(True) if True in held else 0
        after = next(_found(batch[start + 1 :], _LABEL_KEYS, fits), None)
        # Views with labels of their own, and pairs within a batch of several parts.
        return _labels(batch[start], count) if after is None and batch else after
    fields = _fields(batch)
    if fields is None:
        return None
    known = next(_found((fields[key] for key in _LABEL_KEYS if key in fields), (), fits), None)
    if known is not None:
        return known
    nested = [value for key, value in fields.items() if key in _IMAGE_KEYS]
    return next((found for value in nested if (found := _labels(value, count)) is not None), None)


def _holds_images(part: Any) -> bool:
    if _tensor(part) is None and not isinstance(part, list | tuple) and _fields(part) is None:
        return False
    try:
        images = batch_images(part)
    except TypeError:
        return False
    return images.ndim >= 2 and (images.is_floating_point() or images.ndim >= 3)
