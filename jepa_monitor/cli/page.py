"""The report: in goes a table of scores, out comes one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

__all__ = ["report"]

_SIDE = 96  # pixels of a thumbnail
_ROWS = 20_000  # more make a browser slow
_DIGITS = 6


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
    ranked = rank_by or info.get("identity", {}).get("settings", {}).get("rank_by", "jepa_score")
    check_choice(ranked, "rank_by", tuple(name for name in SCORES if name in table.column_names))
    for name, number in (("thumbnails", thumbnails), ("classes", classes), ("images", images)):
        check_positive_int(number, name)
    place = Path(scores).with_suffix(".html") if out is None else Path(out)
    if not len(table):
        raise ValueError(f"`scores`: {scores!r} has no rows.")

    values = _numbers(table, ranked)
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
    groups = _largest(labels, classes)
    ends = {name: _ends(members, values, images) for name, members in groups.items()}
    pictured = [i for sheet in ends.values() for end in sheet.values() for i in end]
    kept = _kept(table, values, pictured)
    new = {old: position for position, old in enumerate(kept)}
    wanted = list(dict.fromkeys([*pictured, *_ordered(kept, values)]))[:thumbnails]
    content = {
        "about": _about(info, Path(scores).name),
        "facts": facts(table, ranked),
        "rank_by": ranked,
        "scores": [name for name in SCORES if name in table.column_names],
        "columns": _columns(table, labels, kept),
        "thumbs": _thumbnails(table, info, data, wanted, kept),
        "classes": [_spread(name, members, values, table) for name, members in groups.items()],
        "sheets": [
            {"name": name, **{end: [new[i] for i in rows] for end, rows in sheet.items()}}
            for name, sheet in ends.items()
        ],
        "left_out": _left_out(len(table), len(kept), len(set(labels)), len(groups)),
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


def _ends(rows: list[int], values: np.ndarray[Any, Any], count: int) -> dict[str, list[int]]:
    """Take the least and the most likely, none of them twice."""
    ordered = _ordered(rows, values)
    count = min(count, -(-len(ordered) // 2))
    return {"least": ordered[:count], "most": ordered[count:][::-1][:count]}


def _spread(
    name: str, rows: list[int], values: np.ndarray[Any, Any], table: pa.Table
) -> dict[str, Any]:
    """Say how the scores of a class are spread."""
    finite = np.array([values[row] for row in rows if np.isfinite(values[row])])
    keys = ("low", "quarter", "middle", "three_quarters", "high")
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    found = np.quantile(finite, levels) if len(finite) else np.zeros(5)
    odd = table["outlier"].to_pylist() if "outlier" in table.column_names else []
    outliers = [float(values[row]) for row in rows if odd and odd[row] and np.isfinite(values[row])]
    numbers = dict(zip(keys, map(float, found), strict=True))
    return {"name": name, "count": len(rows), "outliers": outliers[:500], **numbers}


def _kept(table: pa.Table, values: np.ndarray[Any, Any], needed: list[int]) -> list[int]:
    """Choose the rows that the page holds: all, or the least likely and what its sheets need."""
    if len(table) <= _ROWS:
        return list(range(len(table)))
    order = np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable")
    return sorted({*needed, *order[:_ROWS].tolist()})


def _columns(table: pa.Table, labels: list[str | None], kept: list[int]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for name in ("path", *SCORES, "quantile", "outlier", "note"):
        if name in table.column_names:
            listed = table[name].to_pylist()
            columns[name] = [
                float(f"{listed[row]:.{_DIGITS}g}")
                if isinstance(listed[row], float)
                else listed[row]
                for row in kept
            ]
    columns.setdefault("note", [""] * len(kept))
    columns.setdefault("outlier", [False] * len(kept))
    columns["label"] = [labels[row] for row in kept]
    return columns


def _thumbnails(
    table: pa.Table, info: dict[str, Any], data: str | None, wanted: list[int], kept: list[int]
) -> list[str | None]:
    """Draw small pictures, where the images are still to be found."""
    name = data or info.get("identity", {}).get("data", {}).get("name")
    made: dict[int, str] = {}
    try:
        source = open_source(name, Settings().max_pixels) if name else None
    except ValueError:
        if data is not None:
            raise
        source = None
    if source is not None:
        indices = {source.key(i): i for i in range(len(source))}
        paths = table["path"].to_pylist()
        for row in wanted:
            if paths[row] in indices and (picture := _thumbnail(source, indices[paths[row]])):
                made[row] = picture
    return [made.get(row) for row in kept]


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


def _about(info: dict[str, Any], name: str) -> str:
    if not info:
        return name
    identity = info["identity"]
    against = identity["reference"]
    compared = f", compared with {against['name']}" if against else ""
    return f"{identity['data']['name']} under {identity['model']['name']}{compared}"


def _left_out(rows: int, kept: int, classes: int, shown: int) -> str:
    parts = []
    if kept < rows:
        parts.append(f"The page holds the {kept} least likely and shown of {rows} images.")
    if shown < classes:
        parts.append(f"Rows of their own for the {shown} largest of {classes} classes.")
    return " ".join(parts)
