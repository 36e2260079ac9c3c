"""The page: in goes a table of images and numbers, out comes HTML that needs nothing else."""

from __future__ import annotations

import base64
import contextlib
import importlib.resources
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.cli.closing import facts
from jepa_monitor.cli.decoding import BadImage
from jepa_monitor.cli.files import write_bytes
from jepa_monitor.cli.scoring import Settings
from jepa_monitor.cli.sources import Source, open_source
from jepa_monitor.cli.tables import SCORES, info_of, read_table

__all__ = ["Limits", "Words", "about", "report", "write_page"]

_SIDE = 96  # pixels of a thumbnail
_ROWS = 20_000  # more make a browser slow
_DIGITS = 6


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


def report(
    scores: str,
    out: str | None = None,
    data: str | None = None,
    rank_by: str | None = None,
    thumbnails: int = 2000,
    classes: int = 30,
    images: int = 8,
) -> Path:
    """Write one HTML page: distributions, least and most likely images, scatter plot, table.

    The page works offline: pictures and code are in it.

    Args:
        scores: The table.
        out: The page to write; default: beside the table, with the suffix .html.
        data: The data that were scored, if they have moved.
        rank_by: The score to sort by; default: that of the table's own quantiles.
        thumbnails: How many images at most are shown as pictures.
        classes: How many classes at most have a row of their own, the largest first.
        images: How many images of each class are shown at either end.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the table cannot be read, or an argument is out of range.
    """
    table = read_table(scores)
    info = info_of(table)
    known = tuple(name for name in SCORES if name in table.column_names)
    ranked = rank_by or info.get("identity", {}).get("settings", {}).get("rank_by", "jepa_score")
    check_choice(ranked, "rank_by", known)
    if not len(table):
        raise ValueError(f"`scores`: {scores!r} has no rows.")
    others = [name for name in ("mahalanobis", *known) if name in known and name != ranked]
    words = Words(
        title="Likely, unlikely and odd images",
        about=about(table, scores),
        facts=facts(table, ranked),
        hint="Every score is higher for what is more usual.",
        ends=("least likely", "most likely"),
        axes=(others[0] if others else ranked, ranked),
    )
    place = Path(scores).with_suffix(".html") if out is None else Path(out)
    limits = Limits(thumbnails, classes, images)
    order = _ordered(range(len(table)), _numbers(table, ranked))
    return write_page(place, table, ranked, known, order, words, limits, scores, data)


def about(table: pa.Table, path: str) -> str:
    """Say what was scored by what.

    Args:
        table: The scores.
        path: Of the table.

    Returns:
        A line; the table's name if no more is known of it.
    """
    info = info_of(table)
    if not info:
        return Path(path).name
    identity = info["identity"]
    against = identity["reference"]
    compared = f", compared with {against['name']}" if against else ""
    return f"{identity['data']['name']} under {identity['model']['name']}{compared}"


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

    Returns:
        The path.

    Raises:
        ValueError: If a limit is out of range, or there are no such ``data``.
    """
    for name, number in limits._asdict().items():
        check_positive_int(number, name)
    values = _numbers(table, rank_by)
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
    groups = _largest(labels, limits.classes)
    ends = {name: _ends(members, values, limits.images) for name, members in groups.items()}
    pictured = [i for sheet in ends.values() for end in sheet for i in end]
    kept = list(range(len(table)))
    if len(table) > _ROWS:
        kept = sorted({*pictured, *list(order)[:_ROWS]})
    new = {old: position for position, old in enumerate(kept)}
    wanted = list(dict.fromkeys([*pictured, *order]))[: limits.thumbnails]
    made, missing = _thumbnails(table, scores, data, wanted)
    notes = [
        missing,
        len(kept) < len(table) and f"The page holds {len(kept)} of {len(table)} images.",
        not missing
        and len(wanted) < len(kept)
        and f"Pictures of {len(wanted)} of them (--thumbnails).",
        len(groups) < len(set(labels))
        and f"Rows of their own for the {len(groups)} largest of {len(set(labels))} classes.",
    ]
    content = {
        **words._asdict(),
        "rank_by": rank_by,
        "numbers": list(numbers),
        "columns": _columns(table, numbers, labels, kept),
        "thumbs": [made.get(row) for row in kept],
        "classes": [_spread(name, members, values, table) for name, members in groups.items()],
        "sheets": [
            {"name": name, "ends": [[new[i] for i in end] for end in sheet]}
            for name, sheet in ends.items()
        ],
        "notes": [note for note in notes if note],
    }
    template = (
        importlib.resources.files("jepa_monitor.cli").joinpath("page.html").read_text("utf-8")
    )
    # The only thing that goes into the page; without "<" it cannot end its own element.
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    write_bytes(place, template.replace("@DATA@", text).encode())
    return place


def _numbers(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    """Read a column; missing values are NaN."""
    return np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=float)


def _largest(labels: Sequence[str | None], count: int) -> dict[str, list[int]]:
    """Group rows by class, the largest classes only, in the order of their names."""
    groups: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault("all images" if label is None else label, []).append(row)
    names = sorted(groups, key=lambda name: -len(groups[name]))[:count]
    return {name: groups[name] for name in sorted(names)}


def _ordered(rows: Sequence[int], values: np.ndarray[Any, Any]) -> list[int]:
    """Sort rows by score, the least first; those without a score are left out."""
    finite = [row for row in rows if np.isfinite(values[row])]
    return sorted(finite, key=lambda row: float(values[row]))


def _ends(rows: list[int], values: np.ndarray[Any, Any], count: int) -> tuple[list[int], list[int]]:
    """Take the lowest and the highest, the outermost first, none of them twice."""
    ordered = _ordered(rows, values)
    count = min(count, -(-len(ordered) // 2))
    return ordered[:count], ordered[count:][::-1][:count]


def _spread(
    name: str, rows: list[int], values: np.ndarray[Any, Any], table: pa.Table
) -> dict[str, Any]:
    """Say how the scores of a class are spread."""
    finite = np.array([values[row] for row in rows if np.isfinite(values[row])])
    levels = np.quantile(finite, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(finite) else None
    odd = table["outlier"].to_pylist() if "outlier" in table.column_names else []
    outliers = [float(values[row]) for row in rows if odd and odd[row] and np.isfinite(values[row])]
    return {"name": name, "count": len(rows), "levels": levels, "outliers": outliers[:500]}


def _columns(
    table: pa.Table, numbers: Sequence[str], labels: list[str | None], kept: list[int]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for name in ("path", *numbers, "quantile", "outlier", "note"):
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
