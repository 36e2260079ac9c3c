"""Formats of images: in goes a name or a few bytes, out comes whether it is an image and of what kind."""

from __future__ import annotations

__all__ = ["FORMATS", "SUFFIXES", "is_hidden", "kind_of"]

# Only formats that are decoded in-process by a library that is fuzzed: EPS, say, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

_READABLE = """
    jpg jpeg jpe jfif mpo png apng webp bmp dib gif tif tiff ppm pgm pbm pnm pfm jp2 j2k jpc jpf jpx j2c
    avif avifs
"""
# Images too, of formats that are not read here: a file so called must not vanish without a word.
_OTHERS = """
    heic heif hif jxl jxr wdp psd psb xcf kra svg svgz eps ico cur icns tga dds pcx dcx qoi sgi ras xbm xpm
    exr fits fit fts dcm dicom wmf emf bpg flif
    cr2 cr3 nef nrw arw srf sr2 dng orf rw2 raf pef srw 3fr iiq x3f
"""
SUFFIXES = frozenset(f".{suffix}" for suffix in (_READABLE + _OTHERS).split())

_MARKS = (  # what a file has at which byte
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypheim", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypcrx ", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"IIU\0", "camera raw"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"<svg", "SVG"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"\0\0\1\0", "a Windows icon"),
)


def kind_of(head: bytes) -> str | None:
    """Tell a format that is not read here, for people to know what to convert.

    Args:
        head: The first bytes of a file, 132 or more.

    Returns:
        Its name; ``None`` if it is none of those that people commonly have.
    """
    return next((name for at, mark, name in _MARKS if head[at:].startswith(mark)), None)


def is_hidden(path: str) -> bool:
    """Tell whether a file, or a folder on the way to it, is hidden by its name.

    Args:
        path: Within a folder or an archive, with ``/``.

    Returns:
        Whether a part of it begins with a dot (``./`` and ``../`` do not count).
    """
    return any(part.startswith(".") and part.strip(".") for part in path.split("/"))
