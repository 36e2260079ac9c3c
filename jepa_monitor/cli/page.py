"""The page: in goes a table of images and numbers, out comes HTML that needs nothing else."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from jepa_monitor._checks import check_positive_int
from jepa_monitor._files import write_bytes
from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.leverage import Maps
from jepa_monitor.cli.settings import Settings
from jepa_monitor.cli.sources import Source, open_source
from jepa_monitor.cli.tables import info_of, side_file
from jepa_monitor.monitor.pages import fill_page

__all__ = ["Limits", "Words", "numbers_of", "ordered", "write_page"]

_SIDE = 96  # pixels of a thumbnail
_ROWS = 20_000  # more make a browser slow
_DIGITS = 6
_DOTS = 500  # outliers of a class that its line shows, the least likely first
_FILES = 1000  # of a list of files, which the table or its side file has in full


class Words(NamedTuple):
    """What a page says, apart from its table.

    Args:
        title: Its heading.
        about: What was scored by what.
        facts: Pairs of a name and what to say.
        hint: How to read the numbers.
        ends: What the lowest and the highest images of a class are.
        axes: The numbers that the scatter plot shows first, across and up.
    """

    title: str
    about: str
    facts: list[tuple[str, str]]
    hint: str
    ends: tuple[str, str]
    axes: tuple[str, str]


class Limits(NamedTuple):
    """How much a page holds.

    Args:
        thumbnails: How many images at most are shown as pictures.
        classes: How many classes at most have a row of their own, the largest first.
        images: How many images of each class are shown at either end.
    """

    thumbnails: int = 2000
    classes: int = 30
    images: int = 8

    def checked(self) -> Limits:
        """Refuse a limit that is none.

        Returns:
            The same.
        """
        for name, number in self._asdict().items():
            check_positive_int(number, name)
        return self


def write_page(
    place: Path,
    table: pa.Table,
    rank_by: str,
    numbers: Sequence[str],
    order: Sequence[int],
    words: Words,
    limits: Limits,
    scores: str,
    data: str | None,
    maps: Maps | None = None,
) -> Path:
    """Write a page of any table of images.

    Args:
        place: Where.
        table: ``path``, perhaps ``label``, ``outlier``, ``quantile`` and ``note``, and numbers. What
            is known of its run tells where the images are.
        rank_by: The number to sort by.
        numbers: Names of the columns that can be sorted and plotted.
        order: Rows, those most worth a look first: they come first where not all can be shown.
        words: What the page says.
        limits: How much it holds.
        scores: Path of the table of scores; images are looked for beside it too.
        data: The images, if they have moved.
        maps: On which pixels the scores of some rest.

    Returns:
        The path.

    Raises:
        ValueError: If there are no such ``data``.
    """
    values = numbers_of(table, rank_by)
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
    groups = _largest(labels, limits.classes)
    ends = {name: _ends(members, values, limits.images) for name, members in groups.items()}
    pictured = [i for sheet in ends.values() for end in sheet for i in end]
    maps = maps or Maps([])
    pictured += [pair["row"] for pair in maps.pairs]
    odd, flagged = _outliers(table), _flagged(table)
    kept = list(range(len(table)))
    if len(table) > _ROWS:  # all outliers, for they can be saved as a list
        kept = sorted({*pictured, *odd, *flagged, *list(order)[:_ROWS]})
    new = {old: position for position, old in enumerate(kept)}
    wanted = list(dict.fromkeys([*pictured, *odd, *flagged, *order]))[: limits.thumbnails]
    made, missing = _thumbnails(table, scores, data, wanted)
    notes = [
        missing,
        len(kept) < len(table)
        and f"The page holds {len(kept)} of {len(table)} images, all outliers among them.",
        not missing
        and len(wanted) < len(kept)
        and f"Pictures of {len(wanted)} of them (--thumbnails).",
        len(groups) < len(set(labels))
        and f"Rows of their own for the {len(groups)} largest of {len(set(labels))} classes.",
        maps.note,
    ]
    content = {
        **words._asdict(),
        "rank_by": rank_by,
        "numbers": list(numbers),
        "total": len(table),
        "columns": _columns(table, numbers, labels, kept),
        "thumbs": [made.get(row) for row in kept],
        "classes": [_spread(name, members, values, set(odd)) for name, members in groups.items()],
        "sheets": [
            {"name": name, "ends": [[new[i] for i in end] for end in sheet]}
            for name, sheet in ends.items()
        ],
        "maps": {
            "pairs": [{**pair, "row": new[pair["row"]]} for pair in maps.pairs],
            "scale": maps.scale,
            "top": maps.top,
        },
        "files": [
            {"title": title, "head": head, "total": len(rows), "rows": rows[:_FILES]}
            for title, head, rows in (
                ("Skipped: could not be read", ["file", "reason"], _skipped(scores)),
                ("Converted before they were scored", ["file", "conversion"], _converted(table)),
            )
            if rows
        ],
        "notes": [note for note in notes if note],
    }
    write_bytes(place, fill_page("jepa_monitor.cli", "page.html", content).encode())
    return place


def _outliers(table: pa.Table) -> list[int]:
    if "outlier" not in table.column_names:
        return []
    return [row for row, odd in enumerate(table["outlier"].to_pylist()) if odd]


def _flagged(table: pa.Table) -> list[int]:
    """Take the images of which there is something to say, each with its neighbour."""
    if not {"reason", "neighbour"} <= set(table.column_names):
        return []
    row_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
    pairs = zip(table["reason"].to_pylist(), table["neighbour"].to_pylist(), strict=True)
    found = [(row, row_of.get(near)) for row, (reason, near) in enumerate(pairs) if reason]
    return list(dict.fromkeys(row for pair in found for row in pair if row is not None))


def _converted(table: pa.Table) -> list[list[str]]:
    if "note" not in table.column_names:
        return []
    pairs = zip(table["path"].to_pylist(), table["note"].to_pylist(), strict=True)
    return [[path, note] for path, note in pairs if note]


def _skipped(scores: str) -> list[list[str]]:
    """Read the list beside the table; a file that is in the reference too is named once."""
    place = side_file(Path(scores), ".errors.jsonl")
    if not place.is_file():
        return []
    found: dict[str, str] = {}
    problems = [json.loads(line) for line in place.read_text("utf-8").split("\n") if line]
    for problem in sorted(problems, key=lambda problem: problem["set"] != "scores"):
        of = " (in the reference)" if problem["set"] != "scores" else ""
        found.setdefault(problem["path"], problem["reason"] + of)
    return [list(pair) for pair in found.items()]


def numbers_of(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    """Read a column; missing values are NaN.

    Args:
        table: The scores.
        name: Of the column.

    Returns:
        One number a row.
    """
    return np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=float)


def _largest(labels: Sequence[str | None], count: int) -> dict[str, list[int]]:
    """Group rows by class, the largest classes only, in the order of their names."""
    groups: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault("all images" if label is None else label, []).append(row)
    names = sorted(groups, key=lambda name: -len(groups[name]))[:count]
    return {name: groups[name] for name in sorted(names)}


def ordered(rows: Sequence[int], values: np.ndarray[Any, Any]) -> list[int]:
    """Sort rows by score, the least first; those without a score are left out.

    Args:
        rows: Their numbers.
        values: Scores of all rows.

    Returns:
        The numbers, sorted.
    """
    finite = [row for row in rows if np.isfinite(values[row])]
    return sorted(finite, key=lambda row: float(values[row]))


def _ends(rows: list[int], values: np.ndarray[Any, Any], count: int) -> tuple[list[int], list[int]]:
    """Take the lowest and the highest, the outermost first, none of them twice."""
    line = ordered(rows, values)
    count = min(count, -(-len(line) // 2))
    return line[:count], line[count:][::-1][:count]


def _spread(
    name: str, rows: list[int], values: np.ndarray[Any, Any], odd: set[int]
) -> dict[str, Any]:
    """Say how the scores of a class are spread."""
    finite = np.array([values[row] for row in rows if np.isfinite(values[row])])
    levels = np.quantile(finite, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(finite) else None
    outliers = [float(values[row]) for row in ordered(rows, values) if row in odd]
    return {"name": name, "count": len(rows), "levels": levels, "outliers": outliers[:_DOTS]}


def _columns(
    table: pa.Table, numbers: Sequence[str], labels: list[str | None], kept: list[int]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for name in ("path", *numbers, "quantile", "outlier", "copies", "reason", "neighbour", "note"):
        if name in table.column_names:
            listed = table[name].to_pylist()
            columns[name] = [
                float(f"{listed[row]:.{_DIGITS}g}")
                if isinstance(listed[row], float)
                else listed[row]
                for row in kept
            ]
    columns["label"] = [labels[row] for row in kept]
    return columns


def _thumbnails(
    table: pa.Table, scores: str, data: str | None, wanted: list[int]
) -> tuple[dict[int, str], str]:
    """Draw small pictures; where the images are not to be found, say so."""
    known = info_of(table).get("identity", {}).get("data", {})
    source = _source(table, scores, data)
    if source is None:
        where = f": {known['name']} is not here" if known else ""
        return {}, f"No pictures{where}. `--data` says where the images are."
    indices = {source.key(i): i for i in range(len(source))}
    paths = table["path"].to_pylist()
    found = {row: indices[paths[row]] for row in wanted if paths[row] in indices}
    made = {row: picture for row, i in found.items() if (picture := _thumbnail(source, i))}
    if known and known.get("content") != source.fingerprint():
        return made, f"{source.name} has changed since it was scored: pictures may be of others."
    return made, ""


def _source(table: pa.Table, scores: str, data: str | None) -> Source | None:
    """Open the data that were named now, or those of the table, here or beside the table."""
    identity = info_of(table).get("identity", {})
    most = identity.get("settings", {}).get("max_pixels", Settings().max_pixels)
    if data is not None:
        return open_source(data, most)
    name = identity.get("data", {}).get("name")
    if name is None:
        return None
    for place in (name, str(Path(scores).parent / name)):
        with contextlib.suppress(ValueError):  # moved, or a data set that has no path
            return open_source(place, most)
    return None


def _thumbnail(source: Source, index: int) -> str | None:
    try:
        image, _ = source.load(index)
    except BadImage:
        return None
    if not isinstance(image, Image.Image):
        return None
    small = image.width < _SIDE and image.height < _SIDE
    if small:  # enlarged here, not in the browser, which would blur the pixels
        scale = _SIDE // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    else:
        image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
