"""Data sets of torchvision by name: in goes ``torchvision/NAME:SPLIT@ROOT``, out come its images."""

from __future__ import annotations

import hashlib
import inspect
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import datasets
from typing_extensions import override

from jepa_monitor.cli.decoding import open_image, open_regular
from jepa_monitor.cli.errors import UnreachableError, first_line, is_of_the_network
from jepa_monitor.cli.images import DatasetSource, file_state

__all__ = ["PREFIX", "download_torchvision", "open_torchvision"]

PREFIX = "torchvision/"
_ROOT = "data"  # as the recipes'
_SIDES = {"train": True, "test": False}


class _TorchvisionSource(DatasetSource):
    """A data set that has been built a moment ago: what it holds tells what it yields."""

    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        _add(digest, vars(self._dataset))
        return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Add arrays by content, paths by the state of their files."""
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Mapping):
        for pair in value.items():
            _add(digest, pair)
    elif isinstance(value, list | tuple | set | np.ndarray):
        for each in sorted(value, key=repr) if isinstance(value, set) else value:
            _add(digest, each)
    elif isinstance(value, str | Path):
        digest.update(
            repr((str(value), file_state(str(value)) if _is_file(value) else None)).encode()
        )
    elif isinstance(value, int | float | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a text that is no path
        return False


def open_torchvision(name: str, max_pixels: int, convert: bool) -> DatasetSource:
    """Open a data set whose files are there.

    Args:
        name: ``torchvision/NAME``, ``:SPLIT`` if it has several, and ``@ROOT`` if its files are not
            in ``data``.
        max_pixels: Of an image.
        convert: See :func:`~jepa_monitor.cli.decoding.decode`.

    Returns:
        The images.

    Raises:
        ValueError: If there is no such data set, or it cannot be opened.
    """
    dataset = _build(name, download=False)
    if getattr(dataset, "loader", None) is datasets.folder.default_loader:
        dataset.loader = _load  # or it would be converted, and clipped, before anyone can note it
    return _TorchvisionSource(dataset, name, max_pixels, convert)


def _load(path: Any) -> Image.Image:
    with open_regular(path) as file:
        return open_image(io.BytesIO(file.read()))


def download_torchvision(*names: Any) -> None:
    """Download the data sets of torchvision that are not there.

    Args:
        names: What data were asked for as; others are left alone.

    Raises:
        UnreachableError: If one cannot be downloaded.
        ValueError: If there is no such data set.
    """
    for name in names:
        if isinstance(name, str) and name.startswith(PREFIX):
            _build(name, download=True)


def _build(name: str, download: bool) -> Any:
    match = re.fullmatch(PREFIX + r"(\w+)(?::([^@]+))?(?:@(.+))?", name)
    if match is None:
        raise ValueError(f"`data` must be torchvision/NAME[:SPLIT][@ROOT], got {name!r}.")
    kind, split, root = match.groups()
    cls = getattr(datasets, kind, None)
    if not (inspect.isclass(cls) and issubclass(cls, datasets.VisionDataset)):
        raise ValueError(f"`data`: torchvision has no data set {kind!r}.")
    accepted = _parameters(cls)
    options: dict[str, Any] = _split_options(name, split, accepted)
    if "root" in accepted:
        options["root"] = root or _ROOT
    if "download" in accepted:
        options["download"] = download
    try:
        return cls(**options)
    except Exception as error:  # each of them has its own
        if download and (is_of_the_network(error) or "downloading" in str(error)):
            raise UnreachableError(
                f"`data`: {name!r} cannot be fetched: {first_line(error)}"
            ) from error
        missing = isinstance(error, RuntimeError | OSError) and not download
        hint = " Set `download` to fetch it." if missing and "download" in accepted else ""
        raise ValueError(f"`data`: {name!r} cannot be opened: {error}{hint}") from error


def _parameters(cls: type[Any]) -> set[str]:
    """Find what a class can be built with, in its bases too as far as it hands arguments on."""
    names: set[str] = set()
    for base in cls.__mro__:
        if (build := vars(base).get("__init__")) is not None:
            parameters = inspect.signature(build).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def _split_options(name: str, split: str | None, accepted: set[str]) -> dict[str, Any]:
    argument = next((key for key in ("split", "image_set", "train") if key in accepted), None)
    if argument is None:
        if split is not None:
            raise ValueError(f"`data`: {name!r} names a split, but this data set has none.")
        return {}
    if split is None:
        raise ValueError(f"`data`: {name!r} has several splits: name one, as in {name}:test.")
    if argument != "train":
        return {argument: split}
    if split not in _SIDES:
        raise ValueError(f"`data`: the splits of {name!r} are train and test.")
    return {"train": _SIDES[split]}
