"""Decode one image: in goes a file that nobody vouches for, out comes 8-bit RGB or a reason why not.

An image whose pixels have one meaning only is converted and the conversion is noted; one that would
have to be guessed at, or that is dangerous to decode, is refused.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = [
    "SUFFIXES",
    "BadImage",
    "Decoded",
    "decode",
    "open_image",
    "open_regular",
    "pixels_limited",
    "to_plain",
]

# Only formats that are decoded in-process by a library that is fuzzed: EPS, say, runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".jpx",
        ".avif",
    ]
)
_MOST_UNEQUAL = 50  # sides; a resize of the shorter side would make the longer one enormous


class BadImage(Exception):  # noqa: N818 - not a fault of the program
    """An image that cannot be scored; the message is the reason."""


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata; and the size is checked here
        try:
            with open_image(stream) as image:
                return to_plain(image, max_pixels, convert)
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            raise BadImage(f"is no image in any of the formats {', '.join(_FORMATS)}") from error
        except Image.DecompressionBombError as error:
            raise BadImage(f"decompression bomb: {error}") from error
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
    return Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])


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
    notes = _container_notes(image)
    image.load()
    plain, conversion = _to_rgb(image)
    notes += conversion
    if notes and not convert:
        raise BadImage(f"is not plain 8-bit RGB or grey: {'; '.join(notes)}")
    return Decoded(plain, "; ".join(notes))


@contextmanager
def pixels_limited(max_pixels: int) -> Iterator[None]:
    """Have Pillow refuse images that are too large, whoever opens them.

    Args:
        max_pixels: Of an image.

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
        return _from_deep(image), ["16 bits reduced to 8"]
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


def _from_deep(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise BadImage(f"its {values.dtype} samples have no known range")
    reduced = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    return Image.fromarray(reduced).convert("RGB")
