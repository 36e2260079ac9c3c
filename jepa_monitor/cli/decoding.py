"""Decode one image: in goes a file that nobody vouches for, out comes 8-bit RGB or a reason why not.

An image whose pixels have one meaning only is converted and the conversion is noted; one that would
have to be guessed at, or that is dangerous to decode, is refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.formats import FORMATS, kind_of

__all__ = [
    "Decoded",
    "decode",
    "open_image",
    "open_regular",
    "pixels_limited",
    "to_plain",
]

_DNG_VERSION, _SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 50706, 254, 258, 262, 339
_HEAD = 132  # bytes that tell a format
_STDERR = 2  # the file descriptor, which C knows
_MOST_UNEQUAL = 50  # sides; a resize of the shorter side would make the longer one enormous


class Decoded(NamedTuple):
    """An image, and what was done to it.

    Args:
        image: 8 bits a channel, mode RGB.
        note: Conversions, empty if there were none.
    """

    image: Image.Image
    note: str


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file that must be an ordinary one; a pipe would be waited for without end.

    Args:
        path: Where it is.

    Returns:
        The open file.

    Raises:
        BadImage: If it is none, is empty or cannot be opened.
    """
    try:
        # Opened without blocking first and looked at then, so that nothing can change in between.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadImage(f"cannot be opened: {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadImage("is no ordinary file")
    if status.st_size == 0:
        os.close(descriptor)
        raise BadImage("is empty (0 bytes)")
    return os.fdopen(descriptor, "rb")


def decode(stream: BinaryIO, max_pixels: int, convert: bool = True) -> Decoded:
    """Decode an image.

    Args:
        stream: The file.
        max_pixels: More are refused before any is decoded.
        convert: Whether images that are not plain 8-bit RGB or grey are converted, with a note, or
            refused.

    Returns:
        The image and a note.

    Raises:
        BadImage: If it cannot or must not be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            with pixels_limited(None), open_image(stream) as image:  # before any is decoded, here
                return to_plain(image, max_pixels, convert)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        stream.seek(0)
        kind = kind_of(stream.read(_HEAD))
        hint = f"; it is {kind}: convert it to one of them" if kind else ""
        raise BadImage(f"is no image in any of the formats {', '.join(FORMATS)}{hint}") from error
    except MemoryError as error:
        raise BadImage("does not fit into memory") from error
    except Exception as error:  # decoders raise whatever they like on broken files
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}") from error


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image of a format that is safe to decode, without decoding it.

    Args:
        stream: The file.

    Returns:
        The image.
    """
    Image.init()
    return Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])


def to_plain(image: Image.Image, max_pixels: int, convert: bool = True) -> Decoded:
    """Make 8-bit RGB of an image that has been opened.

    Args:
        image: Of any mode.
        max_pixels: More are refused.
        convert: See :func:`decode`.

    Returns:
        The image and a note.

    Raises:
        BadImage: If it cannot or must not be converted.
    """
    _check_size(image, max_pixels)
    _check_whole(image)
    notes = _container_notes(image)
    notes += _load(image)
    plain, conversion = _to_rgb(image)
    notes += conversion
    if notes and not convert:
        raise BadImage(f"is not plain 8-bit RGB or grey: {'; '.join(notes)}")
    return Decoded(plain, "; ".join(notes))


@contextmanager
def pixels_limited(max_pixels: int | None) -> Iterator[None]:
    """Have Pillow refuse images that are too large, whoever opens them, and no others.

    Args:
        max_pixels: Of an image, in place of Pillow's own limit; ``None`` refuses none.

    Yields:
        Nothing.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"decompression bomb: {width}x{height} pixels, of {max_pixels} allowed")
    if max(width, height) > _MOST_UNEQUAL * min(width, height):
        raise BadImage(f"{width}x{height} pixels: one side is over {_MOST_UNEQUAL} times the other")


def _check_whole(image: Image.Image) -> None:
    """Refuse what holds the image that is meant in a form that Pillow does not read."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & 1:
        raise BadImage("its first image is a preview, as in camera raw: convert it")


def _load(image: Image.Image) -> list[str]:
    """Decode the pixels, and return what the decoder had to say."""
    if image.format != "TIFF":
        image.load()
        return []
    said: list[str] = []
    try:
        with _overheard(said):
            image.load()
    except Exception as error:
        raise BadImage(f"cannot be decoded: {'; '.join([str(error), *said])}") from error
    return [f"libtiff: {'; '.join(said)}"] if said else []


@contextmanager
def _overheard(said: list[str]) -> Iterator[None]:
    """Catch what libtiff writes to standard error, past Python and without the name of the file."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # a service may have none
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            file.seek(0)
            said += file.read().decode("utf-8", "replace").split("\n")[:-1]


def _container_notes(image: Image.Image) -> list[str]:
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("first of several frames")
    if any(";16" in str(tile) for tile in getattr(image, "tile", ())) and not image.mode.startswith(
        "I"
    ):
        notes.append("16 bits a channel reduced to 8")
    return notes


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    mode, notes = image.mode, []
    if mode in ("RGB", "L"):
        if "transparency" not in image.info:
            return image.convert("RGB"), []
    elif mode.startswith(("I", "F")):
        return _from_deep(image)
    elif mode in ("P", "PA"):
        notes.append("palette")
    elif mode == "1":
        notes.append("1 bit a pixel")
    elif mode not in ("RGBA", "LA"):  # CMYK, YCbCr, LAB, HSV: Pillow's formulas, no colour profile
        notes.append(f"{mode} without its colour profile")
    if not image.has_transparency_data:
        return image.convert("RGB"), notes
    clear = image.convert("RGBA")
    if clear.getchannel("A").getextrema() == (255, 255):
        return clear.convert("RGB"), notes
    # The colours under transparent pixels are arbitrary: nobody has ever seen them.
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, clear).convert("RGB"), [*notes, "transparency on white"]


def _from_deep(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Reduce grey of more than 8 bits, by the range that its file declares."""
    values = np.asarray(image)
    bits, white = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits, white = tags[_BITS][0], tags.get(_PHOTOMETRIC) == 0
        if bits > 16 or tags.get(_SAMPLE_FORMAT, (1,))[0] != 1:
            raise BadImage(f"its {bits}-bit {values.dtype} samples have no known range")
    most = 2**bits - 1
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > most:
        raise BadImage(f"its {values.dtype} samples have no known range")
    notes = [f"{bits} bits reduced to 8"]
    clear = image.info.get("transparency")
    light = values.astype(np.float64) / most
    if isinstance(clear, int):
        light = np.where(values == clear, 1.0, light)
        notes.append("transparency on white")
    reduced = np.round(255 * (1 - light if white else light)).astype(np.uint8)
    return Image.fromarray(reduced).convert("RGB"), notes
