"""Data by name: in goes a path, out come images with keys and labels, and reasons for the bad ones."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from jepa_monitor.cli.folders import LISTS, list_folder, read_list
from jepa_monitor.cli.images import ArraySource, DatasetSource, FileSource, Source
from jepa_monitor.cli.shards import expand, list_shards
from jepa_monitor.cli.torchvision_sets import PREFIX, open_torchvision

__all__ = ["Source", "open_source"]


def open_source(data: Any, max_pixels: int, convert: bool = True, argument: str = "data") -> Source:
    """Find the images that a name stands for.

    Args:
        data: A folder; a list (``.txt`` with a path a line, ``.csv`` with the columns ``path`` and,
            optionally, ``label``, ``.jsonl`` with the same keys); ``FILE.npz`` or
            ``FILE.npz:SPLIT``; WebDataset shards (``FILE.tar``, with ``*`` or ``{000..009}``);
            ``torchvision/NAME:SPLIT``; a map-style data set; or what this function returned.
        max_pixels: Of an image.
        convert: See :func:`~jepa_monitor.cli.decoding.decode`.
        argument: What to call the data in errors.

    Returns:
        The images.

    Raises:
        TypeError: If the data are none of these.
        ValueError: If there is no such thing, or no image in it.
    """
    try:
        return _opened(data, max_pixels, convert)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(str(error).replace("`data`", f"`{argument}`")) from error


def _opened(data: Any, max_pixels: int, convert: bool) -> Source:
    if isinstance(data, Source):
        return data
    if not isinstance(data, str | os.PathLike):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise TypeError(
                "`data` must be a path or a map-style data set with a length, "
                f"got {type(data).__name__}."
            )
        source: Source = DatasetSource(data, type(data).__name__, max_pixels, convert)
    else:
        source = _named(os.fspath(data), max_pixels, convert)
    if len(source) == 0:
        ignored = f" ({source.ignored} files have no image's name)" if source.ignored else ""
        raise ValueError(f"`data`: there are no images in {source.name}{ignored}.")
    return source


def _named(data: str, max_pixels: int, convert: bool) -> Source:
    if data.startswith(PREFIX):
        return open_torchvision(data, max_pixels, convert)
    path, _, split = data.partition(".npz:")
    if split or data.endswith(".npz"):
        return _open_npz(Path(path if data.endswith(".npz") else path + ".npz"), split)
    place = Path(data)
    if place.is_dir():
        entries, ignored = list_folder(place)
    elif place.suffix in LISTS and place.is_file():
        entries, ignored = read_list(place), 0
    elif place.suffix == ".tar":
        entries, ignored = list_shards(_shards(data))
    else:
        exists = "is none of them" if place.exists() else "does not exist"
        raise ValueError(
            "`data` must be a folder, a list (.txt, .csv, .jsonl), an .npz or .tar file, or "
            f"torchvision/NAME:SPLIT; {data!r} {exists}."
        )
    return FileSource(data, entries, ignored, max_pixels, convert)


def _shards(data: str) -> list[str]:
    paths = [data] if Path(data).exists() else expand(data)
    if not any(Path(path).exists() for path in paths):
        raise ValueError(f"`data`: there is no file {data}.")
    return paths


def _open_npz(path: Path, split: str) -> ArraySource:
    if not path.is_file():
        raise ValueError(f"`data`: there is no file {path}.")
    names = [f"{split}_images", split] if split else ["images", "x", "X"]
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = list(archive)
            found = next((name for name in names if name in held), "")
            labels = found.replace("images", "labels") if "images" in found else f"{found}_labels"
            arrays = [archive[n] if n in held else None for n in (found, labels, "classes")]
    except (OSError, ValueError, TypeError, EOFError, MemoryError, BadZipFile, zlib.error) as error:
        raise ValueError(f"`data`: {path} cannot be read: {error}.") from error
    if not found:
        raise ValueError(
            f"`data`: {path} has no array {' or '.join(names)}, but {', '.join(held)}. Name one after "
            "a colon, FILE.npz:train for train_images and train_labels."
        )
    return ArraySource(f"{path.name}:{found}", *arrays)
