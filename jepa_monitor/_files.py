"""Files that are whole or not there: in go bytes, out comes a file that no crash can halve."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_place", "write_atomically", "write_bytes"]

_PREFIX = ".unfinished-"


def check_place(path: Path, argument: str) -> None:
    """Refuse a place that cannot be written to, before there is anything to write.

    Args:
        path: Of a file to be.
        argument: Name of the argument.

    Raises:
        ValueError: If it is a folder, or no file can be made beside it.
    """
    if path.is_dir():
        raise ValueError(f"`{argument}` must be a file, but {str(path)!r} is a folder.")
    folder = next(place for place in path.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}`: nothing can be written to {str(folder)!r}: {error.strerror}."
        ) from error


def write_atomically(
    path: Path, write: Callable[[Path], None], scratch: Path | None = None
) -> None:
    """Let a function write a file elsewhere, bring it to the disk, then move it to its place.

    Args:
        path: Where the file shall be; its folder is made.
        write: Writes a file at the path that it is given.
        scratch: Folder on the same disk in which to write, where a crash may leave a half file;
            default: that of ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=_PREFIX, suffix=path.suffix, dir=scratch or path.parent
    )
    os.close(descriptor)
    try:
        write(Path(name))
        with Path(name).open("rb+") as file:
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())  # mkstemp's files are for the owner alone
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, scratch: Path | None = None) -> None:
    """Write some bytes as :func:`write_atomically`.

    Args:
        path: Where.
        content: What.
        scratch: See :func:`write_atomically`.
    """

    def write(place: Path) -> None:
        place.write_bytes(content)

    write_atomically(path, write, scratch)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
