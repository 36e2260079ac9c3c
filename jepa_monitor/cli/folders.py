"""Image files by folder or list: in goes a path, out come entries with keys and labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_monitor.cli.formats import SUFFIXES, is_hidden
from jepa_monitor.cli.images import Entry

__all__ = ["LISTS", "list_folder", "printable", "read_list"]

LISTS = (".txt", ".csv", ".jsonl")


def printable(path: str, label: str | None = None) -> Entry:
    """Make an entry of a path that may not be text at all, which no table can hold.

    Args:
        path: As the system, a list or an archive gives it.
        label: Of the image.

    Returns:
        An entry whose key is text.
    """
    try:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which JSON can spell
        shown = path.encode("utf-8", "backslashreplace").decode()
    problem = None if shown == path else "its name is not UTF-8: rename it"
    return Entry(shown, path, label, problem)


def list_folder(root: Path) -> tuple[list[Entry], int]:
    """Find all images in a folder and its folders, in a fixed order.

    Links to folders outside are followed; one that leads back into the folder, or to what has been
    read, is a problem of its own. If all images lie in sub-folders, the first of these is the class.

    Args:
        root: The folder.

    Returns:
        The images, named by their path within the folder, and the number of other files; a hidden
        folder counts as one and is not looked into.
    """
    entries: list[Entry] = []
    ignored, home, seen = 0, os.path.realpath(root), set[str]()

    def visit(folder: str, prefix: str) -> None:
        nonlocal ignored
        try:
            inside = sorted(os.scandir(folder), key=lambda item: os.fsencode(item.name))
        except OSError as error:
            entries.append(printable(prefix)._replace(problem=f"cannot be read: {error.strerror}"))
            return
        for item in inside:
            key = prefix + item.name
            suffix = os.path.splitext(item.name)[1].lower()  # noqa: PTH122 - may not be text
            if is_hidden(item.name):  # .git, .thumbnails, and what other systems put beside a file
                ignored += 1
                continue
            try:
                is_folder = item.is_dir()
            except OSError as error:  # a link that leads to itself
                problem = f"cannot be opened: {error.strerror}"
                entries.append(printable(key)._replace(path=item.path, problem=problem))
                continue
            if is_folder:
                real = os.path.realpath(item.path)
                within = os.path.commonpath([home, real]) == home
                if item.is_symlink() and (within or real in seen):
                    reason = "links to a folder that is read elsewhere, or to one above it"
                    entries.append(printable(key)._replace(path=item.path, problem=reason))
                    continue
                seen.add(real)
                visit(item.path, key + "/")
            elif suffix in SUFFIXES:
                entries.append(printable(key)._replace(path=item.path))
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
            entry = printable(name, None if label in (None, "") else str(label))
            entries.append(entry._replace(path=os.path.join(path.parent, name)))  # noqa: PTH118
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise ValueError(f"`data`: the list {path} cannot be read: {error}.") from error
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"`data`: the list {path} names {twice!r} more than once.")
    return entries


def _lines(path: Path) -> Iterator[tuple[Any, Any]]:
    errors = "surrogateescape" if path.suffix == ".txt" else "strict"
    # A spreadsheet may begin with a byte order mark; only LF and CRLF end a line, names may hold
    # what else Unicode calls one.
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        if path.suffix == ".txt":
            lines = (line.removesuffix("\r") for line in file.read().split("\n"))
            yield from ((line, None) for line in lines if line)
        elif path.suffix == ".csv":
            yield from ((row.get("path"), row.get("label")) for row in csv.DictReader(file))
        else:
            rows = (json.loads(line) for line in file if line.strip())
            named = (row if isinstance(row, dict) else {} for row in rows)
            yield from ((row.get("path"), row.get("label")) for row in named)
