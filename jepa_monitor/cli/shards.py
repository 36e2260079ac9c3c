"""WebDataset shards: in go tar files, out come entries that say where in them each image lies.

The shards are read with ``tarfile``, not with the ``webdataset`` library, which streams them: a run
that is to go on where it was, or to read some images evenly spread, needs each image by its number.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from jepa_monitor.cli.decoding import open_regular
from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.folders import printable
from jepa_monitor.cli.formats import SUFFIXES, is_hidden
from jepa_monitor.cli.images import Entry

__all__ = ["expand", "list_shards"]

_BLOCK = 512  # bytes, of a tar file
_PART = 2**20  # bytes, to be looked through at a time
_LARGEST_LABEL = 2**20  # bytes; a label is a line, but other things can be in its file


def expand(pattern: str) -> list[str]:
    """Write out braces as a shell does, ``{000..009}`` or ``{a,b}``, and find what ``*`` stands for.

    Args:
        pattern: A path.

    Returns:
        Paths; those that braces name need not exist.
    """
    braces = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if braces is None:
        if not re.search("[*?[]", pattern):
            return [pattern]
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - of any folder
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        low, high = ends.groups()
        inside = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    else:
        inside = braces[1].split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for each in inside for path in expand(f"{before}{each}{after}")]


def list_shards(paths: list[str]) -> tuple[list[Entry], int]:
    """Find all images in tar files.

    Members ``KEY.jpg``, ``KEY.cls`` and ``KEY.json`` belong together: the class is what ``.cls``
    holds, or else under ``label`` or ``cls`` in ``.json``. Nothing is unpacked.

    Args:
        paths: The files.

    Returns:
        The images, named by file and member, and the number of other members. What cannot be read is
        an entry too, with the reason.
    """
    folder = os.path.commonpath([Path(path).absolute().parent for path in paths])
    entries: list[Entry] = []
    ignored = 0
    for path in paths:
        name = Path(os.path.relpath(path, folder)).as_posix()
        try:
            with open_regular(path) as file:
                shard = _Shard(path, name, file)
                shard.read()
        except BadImage as error:
            entries.append(printable(name)._replace(path=path, problem=str(error)))
            continue
        entries += shard.labelled()
        ignored += shard.ignored
    return entries, ignored


class _Shard:
    """What is in a tar file.

    Args:
        path: Where it is.
        name: What it is called.
        file: It, open.
    """

    def __init__(self, path: str, name: str, file: BinaryIO) -> None:
        self._path, self._name, self._file = path, name, file
        self._size = os.fstat(file.fileno()).st_size
        self._found: list[tuple[str, Entry]] = []
        self._labels: dict[tuple[str, str], str] = {}
        self._names: set[str] = set()
        self.ignored = 0

    def read(self) -> None:
        """Go through all members, as far as they can be read."""
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined] # it would keep millions
                    self._add(member)
                self._file.seek(archive.offset)
            if self._file.read(_BLOCK) != bytes(_BLOCK):
                self._fail("is damaged or cut off: it has no end mark, images may be missing")
            elif any(part.strip(b"\0") for part in iter(lambda: self._file.read(_PART), b"")):
                self._fail("holds more after its end mark, which is not read")
        except tarfile.ReadError as error:
            self._fail(f"is no uncompressed tar archive, or is cut off: {error}")
        except Exception as error:  # noqa: BLE001 - its headers can hold anything
            self._fail(f"cannot be read any further: {type(error).__name__}: {error}")

    def labelled(self) -> list[Entry]:
        """Bring images and labels together.

        Returns:
            The images, in their order.
        """
        return [
            entry._replace(label=self._labels.get((key, "cls"), self._labels.get((key, "json"))))
            for key, entry in self._found
        ]

    def _fail(self, problem: str) -> None:
        entry = printable(self._name)
        self._found.append(("", entry._replace(path=self._path, problem=problem)))

    def _add(self, member: tarfile.TarInfo) -> None:
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")  # as WebDataset does: a.left.jpg is an image of a
        key, suffix = f"{folder}/{stem}", os.path.splitext(name)[1].lower()  # noqa: PTH122
        hidden = is_hidden(member.name)
        if member.isdir():
            return
        if kind in ("cls", "json") and not hidden and member.isreg():
            self._add_label(member, key, kind)
        elif suffix in SUFFIXES and not hidden:
            entry = printable(f"{self._name}/{member.name}")
            problem = entry.problem or self._problem(member)
            if member.name in self._names:
                problem = "another member of the archive has the same name"
                entry = entry._replace(key=f"{entry.key} (at byte {member.offset})")
            self._names.add(member.name)
            place = (member.offset_data, member.size)
            entry = entry._replace(path=self._path, problem=problem, member=place)
            self._found.append((key, entry))
        else:
            self.ignored += 1

    def _problem(self, member: tarfile.TarInfo) -> str | None:
        """Say why a member cannot be an image."""
        if member.name.startswith("/") or ".." in member.name.split("/"):
            return "its name leads out of the archive"
        if not member.isreg() or member.issparse():
            return "is no ordinary file"
        if member.offset_data + member.size > self._size:
            return f"is truncated: {self._size - member.offset_data} of {member.size} bytes"
        return None

    def _add_label(self, member: tarfile.TarInfo, key: str, kind: str) -> None:
        try:
            if member.size > _LARGEST_LABEL:
                raise ValueError(f"{member.size} bytes")
            self._file.seek(member.offset_data)
            text = self._file.read(member.size).decode()
            if kind == "json":
                content = json.loads(text)
                label = (
                    content.get("label", content.get("cls")) if isinstance(content, dict) else None
                )
            else:
                label = text.strip()
        except (ValueError, RecursionError) as error:
            entry = printable(f"{self._name}/{member.name}")
            problem = f"the label cannot be read: {error}"
            self._found.append(("", entry._replace(path=self._path, problem=problem)))
            return
        if label not in (None, ""):
            self._labels[key, kind] = str(label)
