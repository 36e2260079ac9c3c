"""Groups of images (patients, scanners, scenes): in goes a batch, out comes the number of each one's group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.probes.finding import named_field

__all__ = ["GroupSource", "Groups", "check_groups", "group_numbers"]

# A name in the batches, several, or a function for each.
GroupSource: TypeAlias = "str | Iterable[str] | Mapping[str, Callable[[Any], Any]] | None"
Groups: TypeAlias = "Mapping[str, Callable[[Any], Any]]"


def check_groups(value: GroupSource) -> Groups:
    """Turn ``groups`` into a function of a batch for each name.

    Args:
        value: What the caller gave.

    Returns:
        Functions by name, in the order given; none for ``None``.

    Raises:
        TypeError: If it is neither a name, names, a dict of functions nor ``None``.
        ValueError: If a name is empty, holds a ``/``, which parts tags, or is there twice.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        found = dict(value)
        for name, function in found.items():
            if not callable(function):
                raise TypeError(
                    f"`groups[{name!r}]` must be callable, got {type(function).__name__}."
                )
    else:
        known = isinstance(value, Iterable) and not isinstance(value, bytes | Tensor)
        names: list[Any] = [value] if isinstance(value, str) else list(value) if known else [None]
        if any(not isinstance(name, str) for name in names):
            raise TypeError(
                "`groups` must be a name in the batches, several names, a dict of functions or None, "
                f"got {value!r}."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"`groups` must name each group once, got {names}.")
        found = {name: partial(_in_batch, name=name) for name in names}
    for name in found:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"`groups` must have names without '/', got {name!r}.")
    return found


def group_numbers(values: Any, count: int) -> Tensor:
    """Number the groups of a batch's images, the same group by the same number wherever it occurs.

    Args:
        values: One for each image: whole numbers, in a tensor, an array or a list, or texts. Below 0,
            and ``None``, where the group is unknown.
        count: How many images there are.

    Returns:
        (count,), int64: numbers as they are, texts by 63 bits of their hash, −1 where unknown.

    Raises:
        TypeError: If a value is neither a whole number nor a text.
        ValueError: If there are not as many values as images, or numbers with fractions.
    """
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"they must be one for each image, got {type(values).__name__}")
    listed = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in values]
    if len(listed) != count:
        raise ValueError(f"they must be one for each of {count} images, got {len(listed)}")
    return torch.tensor([_number(each) for each in listed], dtype=torch.int64)


def _number(value: Any) -> int:
    if value is None:
        return -1
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    if isinstance(value, float) and value != int(value):
        raise ValueError(f"they must be whole numbers or texts, got {value}")
    if isinstance(value, Tensor):
        value = value.item()
    if not isinstance(value, int | float | np.integer):
        raise TypeError(f"they must be whole numbers or texts, got {type(value).__name__}")
    return max(-1, int(value))


def _in_batch(batch: Any, name: str) -> Any:
    found = named_field(batch, name)
    if found is None:
        raise LookupError(f"nothing in the batch has the name {name!r}")
    return found
