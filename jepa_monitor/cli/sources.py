"""Data by name: in goes a path, out come images with keys and labels, and reasons for the bad ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import override

from jepa_monitor.cli.decoding import SUFFIXES, BadImage, Decoded, decode, open_regular

__all__ = ["ArraySource", "DatasetSource", "FileSource", "Source", "open_source"]

_LISTS = (".txt", ".csv", ".jsonl")


class Source(Protocol):
    """Images that can be asked for one by one, in a fixed order.

    Attributes:
        name: What the data are called.
        ignored: Files of a folder that do not have the name of an image.
    """

    name: str
    ignored: int

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Say what an image is called, differently for every image.

        Args:
            index: Which.

        Returns:
            A path or such.
        """

    def label(self, index: int) -> str | None:
        """Say of what class an image is.

        Args:
            index: Which.

        Returns:
            The class, or ``None`` if not known.
        """

    def load(self, index: int) -> tuple[Image.Image | Tensor, str]:
        """Read an image.

        Args:
            index: Which.

        Returns:
            An RGB image, or what a data set of tensors holds; and a note of what was converted.

        Raises:
            BadImage: If it cannot be read.
        """

    def fingerprint(self) -> str:
        """Identify the data: changed by any other set of images, or changed file.

        Returns:
            A hash.
        """


class Entry(NamedTuple):
    """A file of images.

    Args:
        key: Its name in the table.
        path: Where it is.
        label: Its class.
        problem: Why it cannot be read, if that is known beforehand.
        member: Where in the file the image lies, (offset, size), if it is an archive.
    """

    key: str
    path: str
    label: str | None
    problem: str | None = None
    member: tuple[int, int] | None = None


class FileSource(Source):
    """Image files.

    Args:
        name: What the data are called.
        entries: The files.
        ignored: How many files were left out for their names.
        max_pixels: Of an image.
        convert: See :func:`~jepa_monitor.cli.decoding.decode`.
    """

    def __init__(
        self, name: str, entries: list[Entry], ignored: int, max_pixels: int, convert: bool
    ) -> None:
        self.name, self.ignored = name, ignored
        self._entries, self._max_pixels, self._convert = entries, max_pixels, convert

    @override
    def __len__(self) -> int:
        return len(self._entries)

    @override
    def key(self, index: int) -> str:
        return self._entries[index].key

    @override
    def label(self, index: int) -> str | None:
        return self._entries[index].label

    @override
    def load(self, index: int) -> Decoded:
        entry = self._entries[index]
        if entry.problem is not None:
            raise BadImage(entry.problem)
        with open_regular(entry.path) as file:
            if entry.member is None:
                return decode(file, self._max_pixels, self._convert)
            offset, size = entry.member
            file.seek(offset)
            content = file.read(size)
        if not content:
            raise BadImage("is empty (0 bytes)")
        return decode(io.BytesIO(content), self._max_pixels, self._convert)

    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for entry in self._entries:
            try:
                status = Path(entry.path).stat()
                state = (status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):
                state = None
            digest.update(repr((entry.key, entry.label, entry.member, state)).encode())
        return digest.hexdigest()


class ArraySource(Source):
    """Images in an array.

    Args:
        name: What the data are called.
        images: uint8, (N, H, W) or (N, H, W, C) with C = 1, 3.
        labels: (N,), or ``None``.
        classes: Names of integer labels.

    Raises:
        ValueError: If an array is of another kind or shape.
    """

    ignored = 0

    def __init__(self, name: str, images: Any, labels: Any = None, classes: Any = None) -> None:
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        colour = images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (images.ndim == 3 or colour):
            raise ValueError(
                f"`data`: {name} must hold uint8 images of shape (N, H, W) or (N, H, W, C) with "
                f"C = 1 or 3, got {images.dtype} of shape {images.shape}."
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(
                f"`data`: {name} holds {len(images)} images, but labels of shape {labels.shape}."
            )
        self.name, self._images, self._labels, self._classes = name, images, labels, classes

    @override
    def __len__(self) -> int:
        return len(self._images)

    @override
    def key(self, index: int) -> str:
        return f"{self.name}[{index}]"

    @override
    def label(self, index: int) -> str | None:
        if self._labels is None:
            return None
        label = self._labels[index]
        return str(label if self._classes is None else self._classes[int(label)])

    @override
    def load(self, index: int) -> Decoded:
        return Decoded(Image.fromarray(self._images[index]).convert("RGB"), "")

    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.name, self._images.shape)).encode())
        digest.update(np.ascontiguousarray(self._images).data)
        if self._labels is not None:
            digest.update(repr(self._labels.tolist()).encode())
        return digest.hexdigest()


class DatasetSource(Source):
    """A map-style data set of images, or of (image, label, …).

    Args:
        dataset: Its images are tensors as the encoder takes them, or Pillow images.
        name: What the data are called.
    """

    ignored = 0

    def __init__(self, dataset: Any, name: str = "dataset") -> None:
        self.name, self._dataset = name, dataset
        self._classes = getattr(dataset, "classes", None)

    @override
    def __len__(self) -> int:
        return len(self._dataset)

    @override
    def key(self, index: int) -> str:
        return f"{self.name}[{index}]"

    @override
    def label(self, index: int) -> str | None:
        targets = getattr(self._dataset, "targets", None)
        if targets is None:
            item = self._dataset[index]
            if not isinstance(item, tuple | list) or len(item) < 2:
                return None
            label = item[1]
        else:
            label = targets[index]
        number = label.item() if isinstance(label, Tensor | np.generic) else label
        named = self._classes is not None and isinstance(number, int)
        return str(self._classes[number]) if named and self._classes else str(number)

    @override
    def load(self, index: int) -> tuple[Image.Image | Tensor, str]:
        item = self._dataset[index]
        image = item[0] if isinstance(item, tuple | list) else item
        return (image.convert("RGB") if isinstance(image, Image.Image) else image), ""

    @override
    def fingerprint(self) -> str:
        # What a data set yields can be learned only by reading all of it.
        return f"{type(self._dataset).__name__} of {len(self)}"


def open_source(data: Any, max_pixels: int, convert: bool = True) -> Source:
    """Find the images that a name stands for.

    Args:
        data: A folder; a list (``.txt`` with a path a line, ``.csv`` with the columns ``path`` and,
            optionally, ``label``, ``.jsonl`` with the same keys); ``FILE.npz`` or
            ``FILE.npz:SPLIT``; or a map-style data set.
        max_pixels: Of an image.
        convert: See :func:`~jepa_monitor.cli.decoding.decode`.

    Returns:
        The images.

    Raises:
        TypeError: If the data are none of these.
        ValueError: If there is no such thing, or no image in it.
    """
    if not isinstance(data, str | os.PathLike):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise TypeError(
                "`data` must be a path or a map-style data set with a length, "
                f"got {type(data).__name__}."
            )
        source: Source = DatasetSource(data, type(data).__name__)
    else:
        source = _named(os.fspath(data), max_pixels, convert)
    if len(source) == 0:
        ignored = f" ({source.ignored} files have no image's name)" if source.ignored else ""
        raise ValueError(f"`data`: there are no images in {source.name}{ignored}.")
    return source


def _named(data: str, max_pixels: int, convert: bool) -> Source:
    path, _, split = data.partition(".npz:")
    if split or data.endswith(".npz"):
        return _open_npz(Path(path if data.endswith(".npz") else path + ".npz"), split)
    place = Path(data)
    if place.is_dir():
        entries, ignored = list_folder(place)
    elif place.suffix in _LISTS and place.is_file():
        entries, ignored = read_list(place), 0
    else:
        exists = "is neither of them" if place.exists() else "does not exist"
        raise ValueError(
            "`data` must be a folder, a list (.txt, .csv, .jsonl) or an .npz file; "
            f"{data!r} {exists}."
        )
    return FileSource(data, entries, ignored, max_pixels, convert)


def _printable(path: str, label: str | None = None) -> Entry:
    """Make an entry of a path that may not be text at all, which no table can hold."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    problem = None if shown == path else "its name is not UTF-8: rename it"
    return Entry(shown, path, label, problem)


def list_folder(root: Path) -> tuple[list[Entry], int]:
    """Find all images in a folder and its folders, in a fixed order.

    Links to folders outside are followed; one that leads back into the folder, or to what has been
    read, is a problem of its own. If all images lie in sub-folders, the first of these is the class.

    Args:
        root: The folder.

    Returns:
        The images, named by their path within the folder, and the number of other files.
    """
    entries: list[Entry] = []
    ignored, home, seen = 0, os.path.realpath(root), set[str]()

    def visit(folder: str, prefix: str) -> None:
        nonlocal ignored
        try:
            inside = sorted(os.scandir(folder), key=lambda item: os.fsencode(item.name))
        except OSError as error:
            entries.append(_printable(prefix)._replace(problem=f"cannot be read: {error.strerror}"))
            return
        for item in inside:
            key = prefix + item.name
            suffix = os.path.splitext(item.name)[1].lower()  # noqa: PTH122 - may not be text
            try:
                is_folder = item.is_dir()
            except OSError as error:  # a link that leads to itself
                problem = f"cannot be opened: {error.strerror}"
                entries.append(_printable(key)._replace(path=item.path, problem=problem))
                continue
            if is_folder:
                real = os.path.realpath(item.path)
                within = os.path.commonpath([home, real]) == home
                if item.is_symlink() and (within or real in seen):
                    reason = "links to a folder that is read elsewhere, or to one above it"
                    entries.append(_printable(key)._replace(path=item.path, problem=reason))
                    continue
                seen.add(real)
                visit(item.path, key + "/")
            elif suffix in SUFFIXES and not item.name.startswith("."):
                entries.append(_printable(key)._replace(path=item.path))
            else:
                ignored += 1

    visit(os.fspath(root), "")
    classed = all("/" in entry.key for entry in entries)
    if classed:
        entries = [entry._replace(label=entry.key.split("/", 1)[0]) for entry in entries]
    return entries, ignored


def read_list(path: Path) -> list[Entry]:
    """Read a list of images.

    Args:
        path: ``.txt``, ``.csv`` or ``.jsonl``; relative paths start from its folder.

    Returns:
        The images, named as in the list.

    Raises:
        ValueError: If the list cannot be read, has no column ``path``, or names a file twice.
    """
    entries: list[Entry] = []
    try:
        for number, (name, label) in enumerate(_lines(path), 1):
            if not isinstance(name, str) or not name:
                raise ValueError(f"`data`: entry {number} of {path} has no `path`.")
            entry = _printable(name, None if label in (None, "") else str(label))
            entries.append(entry._replace(path=os.path.join(path.parent, name)))  # noqa: PTH118
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`data`: the list {path} cannot be read: {error}.") from error
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"`data`: the list {path} names {twice!r} more than once.")
    return entries


def _lines(path: Path) -> Iterator[tuple[Any, Any]]:
    errors = "surrogateescape" if path.suffix == ".txt" else "strict"
    with path.open(encoding="utf-8", errors=errors, newline="") as file:
        if path.suffix == ".txt":
            yield from ((line, None) for line in file.read().splitlines() if line)
        elif path.suffix == ".csv":
            yield from ((row.get("path"), row.get("label")) for row in csv.DictReader(file))
        else:
            rows = (json.loads(line) for line in file if line.strip())
            yield from ((row.get("path"), row.get("label")) for row in rows)


def _open_npz(path: Path, split: str) -> ArraySource:
    if not path.is_file():
        raise ValueError(f"`data`: there is no file {path}.")
    with np.load(path, allow_pickle=False) as archive:
        names = [f"{split}_images", split] if split else ["images", "x", "X"]
        found = next((name for name in names if name in archive), None)
        if found is None:
            raise ValueError(
                f"`data`: {path} has no array {' or '.join(names)}, but {', '.join(archive)}. Name "
                "one after a colon, FILE.npz:train for train_images and train_labels."
            )
        labels = found.replace("images", "labels") if "images" in found else f"{found}_labels"
        return ArraySource(
            f"{path.name}:{found}", archive[found], archive.get(labels), archive.get("classes")
        )
