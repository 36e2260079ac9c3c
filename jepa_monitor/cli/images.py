"""Images that can be asked for one by one: files, members of archives, arrays, data sets."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import override

from jepa_monitor.cli.decoding import Decoded, decode, open_regular, pixels_limited, to_plain
from jepa_monitor.cli.errors import BadImage

__all__ = ["ArraySource", "DatasetSource", "Entry", "FileSource", "Source", "file_state"]


class Source(ABC):
    """Images that can be asked for one by one, in a fixed order.

    Args:
        name: What the data are called.
        ignored: Files of a folder that do not have the name of an image.
    """

    def __init__(self, name: str, ignored: int = 0) -> None:
        self.name, self.ignored = name, ignored

    @abstractmethod
    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Say what an image is called, differently for every image.

        Args:
            index: Which.

        Returns:
            A path or such.
        """
        return f"{self.name}[{index}]"

    @abstractmethod
    def label(self, index: int) -> str | None:
        """Say of what class an image is.

        Args:
            index: Which.

        Returns:
            The class, or ``None`` if not known.
        """

    @abstractmethod
    def load(self, index: int) -> tuple[Image.Image | Tensor, str]:
        """Read an image.

        Args:
            index: Which.

        Returns:
            An RGB image, or what a data set of tensors holds; and a note of what was converted.

        Raises:
            BadImage: If it cannot be read.
        """

    @abstractmethod
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
        super().__init__(name, ignored)
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
            stream = file if entry.member is None else io.BytesIO(_member(file, *entry.member))
            return decode(stream, self._max_pixels, self._convert)

    @override
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        path, state = "", None
        for entry in self._entries:
            if entry.path != path:  # an archive has thousands of images
                path, state = entry.path, file_state(entry.path)
            digest.update(repr((entry.key, entry.label, entry.member, state)).encode())
        return digest.hexdigest()


def file_state(path: str) -> tuple[int, int] | None:
    """Tell a file from itself at another time.

    Args:
        path: Where it is.

    Returns:
        Size and time of the last change; ``None`` if it cannot be found.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _member(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read a file in an archive, whole."""
    try:
        file.seek(offset)
        content = file.read(size)
    except (OSError, MemoryError) as error:
        raise BadImage(f"cannot be read: {type(error).__name__}: {error}") from error
    if not size:
        raise BadImage("is empty (0 bytes)")
    if len(content) < size:
        raise BadImage(f"is truncated: {len(content)} of {size} bytes")
    return content


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

    def __init__(self, name: str, images: Any, labels: Any = None, classes: Any = None) -> None:
        super().__init__(name)
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
        if labels is not None and classes is not None:
            numbers = np.issubdtype(labels.dtype, np.integer)
            if not numbers or (labels < 0).any() or (labels >= len(classes)).any():
                raise ValueError(
                    f"`data`: labels of {name} must be integers from 0 to {len(classes) - 1}, the "
                    "numbers of its classes."
                )
        self._images, self._labels, self._classes = images, labels, classes

    @override
    def __len__(self) -> int:
        return len(self._images)

    @override
    def label(self, index: int) -> str | None:
        return None if self._labels is None else _class_of(self._labels[index], self._classes)

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
        max_pixels: Of a Pillow image.
        convert: See :func:`~jepa_monitor.cli.decoding.decode`.
    """

    def __init__(self, dataset: Any, name: str, max_pixels: int, convert: bool) -> None:
        super().__init__(name)
        self._dataset, self._max_pixels, self._convert = dataset, max_pixels, convert
        self._classes = getattr(dataset, "classes", None)
        found = (getattr(dataset, name, None) for name in ("targets", "labels", "_labels"))
        self._labels = next((some for some in found if some is not None), None)

    @override
    def __len__(self) -> int:
        return len(self._dataset)

    @override
    def label(self, index: int) -> str | None:
        if self._labels is not None:
            return _class_of(self._labels[index], self._classes)
        try:
            item = self._dataset[index]
        except Exception:  # noqa: BLE001 - gone since it was scored, which is no reason to fail
            return None
        if isinstance(item, tuple | list) and len(item) > 1:
            return _class_of(item[1], self._classes)
        return None

    @override
    def load(self, index: int) -> tuple[Image.Image | Tensor, str]:
        try:
            with pixels_limited(self._max_pixels):
                item = self._dataset[index]
            image = item[0] if isinstance(item, tuple | list) else item
            if isinstance(image, Image.Image):
                return to_plain(image, self._max_pixels, self._convert)
        except BadImage:
            raise
        except Exception as error:  # of a file that cannot be read, or of anybody's code
            raise BadImage(f"cannot be read: {type(error).__name__}: {error}") from error
        return image, ""

    @override
    def fingerprint(self) -> str:
        # What a data set yields can be learned only by reading all of it.
        return f"{type(self._dataset).__name__} of {len(self)}"


def _class_of(label: Any, classes: Any) -> str | None:
    """Name a class; boxes, masks and lists of attributes are none."""
    if isinstance(label, Tensor | np.generic | np.ndarray):
        label = label.tolist()
    if isinstance(label, int) and classes is not None:
        name = classes[label]
        return str(name[0] if isinstance(name, tuple) else name)  # of several names of a class
    return str(label) if isinstance(label, str | int | float) else None
