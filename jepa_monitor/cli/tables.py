"""Tables of scores: in go rows and what is known of the run, out comes a file, and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from jepa_monitor._checks import check_choice
from jepa_monitor._files import write_atomically, write_bytes
from jepa_monitor.detectors import DETECTORS

__all__ = [
    "FORMATS",
    "LABEL_SCORE",
    "LOG_PRIOR",
    "NEXT_BEST",
    "check_format",
    "info_of",
    "ranked_by",
    "read_table",
    "scores_of",
    "side_file",
    "with_info",
    "write_table",
]

FORMATS = (".parquet", ".csv", ".jsonl")
LOG_PRIOR = "log_prior"  # a part of a detector's score that is worth a column
LABEL_SCORE = "label_score"  # how much nearer the own class is than the next
# The order in which they tell outliers best, on networks and on planted ones: docs/detectors.md,
# docs/scoring.md. The last is always there.
NEXT_BEST = ("combined", "log_density", "knn", "jepa_score")
_KEY = b"jepa_monitor"


def check_format(path: str | Path, name: str = "out") -> Path:
    """Return a path if its suffix names a format of tables.

    Args:
        path: What the caller gave.
        name: Name of the argument.

    Returns:
        The path.

    Raises:
        ValueError: If it does not.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"`{name}` must end in one of {', '.join(FORMATS)}, got {str(path)!r}.")
    return Path(path)


def side_file(path: Path, what: str) -> Path:
    """Name a file that belongs to a table.

    Args:
        path: The table's.
        what: Suffix, ``.errors.jsonl`` say.

    Returns:
        Its path, beside the table.
    """
    return path.with_name(path.stem + what)


def with_info(table: pa.Table, info: dict[str, Any]) -> pa.Table:
    """Attach to a table what is known of its run.

    Args:
        table: The scores.
        info: What can be written as JSON.

    Returns:
        The same table with other metadata.
    """
    return table.replace_schema_metadata({_KEY: json.dumps(info).encode()})


def info_of(table: pa.Table) -> dict[str, Any]:
    """Tell what is known of a table's run.

    Args:
        table: The scores.

    Returns:
        What :func:`with_info` was given; empty for another's table.
    """
    info: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    return info


def write_table(table: pa.Table, path: Path, scratch: Path | None = None) -> None:
    """Write a table; the file is whole at any time.

    Args:
        table: The scores.
        path: Where; the suffix decides the format. CSV and JSON lines have no place for what is
            known of the run: it goes to ``NAME.info.json`` beside them.
        scratch: See :func:`~jepa_monitor._files.write_atomically`.
    """
    if path.suffix == ".parquet":
        write_atomically(path, lambda place: parquet.write_table(table, place), scratch)
        return
    write_bytes(_info_place(path), json.dumps(info_of(table), indent=1).encode(), scratch)
    if path.suffix == ".csv":
        write_atomically(path, lambda place: csv.write_csv(table, place), scratch)
    else:
        rows = (json.dumps(_finite(row), ensure_ascii=False) for row in table.to_pylist())
        write_bytes(path, "".join(f"{row}\n" for row in rows).encode(), scratch)


def read_table(path: str | Path, argument: str = "scores") -> pa.Table:
    """Read a table of scores.

    Args:
        path: What :func:`write_table` wrote.
        argument: What to call it in errors.

    Returns:
        The table, with what is known of the run where that is there.

    Raises:
        ValueError: If there is no such file, or it holds no scores.
    """
    place = check_format(path, argument)
    if not place.is_file():
        raise ValueError(f"`{argument}`: there is no file {str(path)!r}.")
    try:
        if place.suffix == ".parquet":
            table = parquet.read_table(place)
        elif place.suffix == ".csv":
            names = ("path", "label", "note", "quality", "reason", "neighbour")
            texts = dict.fromkeys(names, pa.string())
            table = csv.read_csv(
                place,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=texts, strings_can_be_null=True),
            )
        else:
            lines = place.read_text(encoding="utf-8").split("\n")
            table = pa.Table.from_pylist([json.loads(line) for line in lines if line])
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`{argument}`: {str(path)!r} cannot be read: {error}") from error
    if not {"path", "jepa_score"} <= set(table.column_names):
        raise ValueError(
            f"`{argument}`: {str(path)!r} has no columns `path` and `jepa_score`, but "
            f"{', '.join(table.column_names)}."
        )
    if place.suffix != ".parquet" and _info_place(place).is_file():
        table = with_info(table, json.loads(_info_place(place).read_text()))
    for name in scores_of(table):
        if not _is_number(table[name]):
            raise ValueError(f"`{argument}`: column {name!r} of {str(path)!r} holds no numbers.")
    return table


def _is_number(column: pa.ChunkedArray) -> bool:
    kind = column.type  # null where all are missing
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind))


def scores_of(table: pa.Table) -> tuple[str, ...]:
    """Name the scores that a table holds: those of its run, or those that the registry knows.

    Args:
        table: The scores.

    Returns:
        Names of columns.
    """
    known = info_of(table).get("scores", (*DETECTORS, LOG_PRIOR, LABEL_SCORE))
    return tuple(name for name in known if name in table.column_names)


def ranked_by(table: pa.Table, asked: str | None = None) -> str:
    """Choose the score to sort by.

    Args:
        table: The scores.
        asked: What the caller gave; ``None`` for that of the table's own quantiles, or for the one of
            :data:`NEXT_BEST` that it has.

    Returns:
        Name of a column.

    Raises:
        ValueError: If the table has no such score, or no image has it.
    """
    info = info_of(table)
    own = info.get("rank_by") or info.get("identity", {}).get("settings", {}).get("rank_by")
    there = scores_of(table)
    best = next((each for each in NEXT_BEST if each in there), "jepa_score")
    name = check_choice(asked or own or best, "rank_by", there)
    if len(table) and table[name].null_count == len(table):
        reason = info.get("missing", {}).get(name) or info.get("void")
        why = f": {reason}" if reason else ""
        raise ValueError(f"`rank_by`: no image has {name!r}{why}.")
    return name


def _info_place(path: Path) -> Path:
    return side_file(path, ".info.json")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
