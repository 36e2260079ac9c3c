"""Keep or drop: in goes a table of scores, out comes a list or a folder of links. Nothing is deleted."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_monitor._checks import check_positive_int
from jepa_monitor._files import check_place, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["curate", "select"]

_LISTS = (".txt", ".csv", ".jsonl")


def select(
    table: pa.Table,
    rank_by: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    by_class: bool = False,
    budget: int | None = None,
) -> list[int]:
    """Choose rows by quantile.

    Args:
        table: The scores.
        rank_by: The score to choose by; default: that of the table's own quantiles.
        low: Rows of a quantile up to it are not chosen.
        high: Nor are rows of a higher one.
        by_class: Whether quantiles and budget are those of each class by itself.
        budget: The number of rows to choose at most, of all or of each class; taken evenly from
            what the quantiles leave.

    Returns:
        Numbers of the rows, in the table's order; rows without a score are never chosen.

    Raises:
        ValueError: If an argument is out of range.
    """
    import numpy as np

    from jepa_monitor.cli.tables import ranked_by
    from jepa_monitor.functional._checks import require_number

    listed = table[ranked_by(table, rank_by)].to_pylist()
    require_number(low, "low", 0, 1)
    require_number(high, "high", 0, 1)
    if low >= high:
        raise ValueError(f"`low` must be below `high`, got {low} and {high}.")
    if budget is not None:
        check_positive_int(budget, "budget")
    values = np.array([np.nan if value is None else value for value in listed])
    labels = table["label"].to_pylist() if by_class else [None] * len(table)
    groups: dict[Any, list[int]] = {}
    for row in np.argsort(values, kind="stable").tolist():
        if np.isfinite(values[row]):
            groups.setdefault(labels[row], []).append(row)
    chosen: list[int] = []
    for ordered in groups.values():
        # Row r of n has the quantile (r + 1) / n; rounding must not drop the one at the border.
        rows = [
            row
            for rank, row in enumerate(ordered, 1)
            if low + 1e-12 < rank / len(ordered) <= high + 1e-12
        ]
        if budget is not None and budget < len(rows):
            rows = [rows[(2 * i + 1) * len(rows) // (2 * budget)] for i in range(budget)]
        chosen += rows
    return sorted(chosen)


def curate(
    scores: str,
    out: str,
    rank_by: str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    by_class: bool = False,
    budget: int | None = None,
    drop: bool = False,
    data: str | None = None,
) -> int:
    """Write a list, or a folder of links, of the images to keep or to drop.

    Nothing is deleted, moved or copied.

    Args:
        scores: The table.
        out: A list (.txt with a path a line, .csv or .jsonl with path and label) that ``score``
            reads again, or a folder to be made, of links to the images.
        rank_by: The score to choose by; default: that of the table's own quantiles.
        low: Keep what lies above this quantile: 0.05 leaves out the least likely 5 %.
        high: Keep what does not lie above this quantile.
        by_class: Whether quantiles and budget are those of each class by itself.
        budget: Keep at most so many, of all or of each class, spread evenly over what is left;
            default: all.
        drop: Write what is left out instead of what is kept.
        data: The folder that was scored, if it has moved; default: where it was.

    Returns:
        How many images were written.

    Raises:
        ValueError: If an argument is out of range, or ``out`` cannot be made.
    """
    from jepa_monitor.cli.tables import info_of, read_table

    place = Path(out)
    listed = place.suffix in _LISTS
    check_place(place if listed else place / "link", "out")
    table = read_table(scores)
    rows = select(table, rank_by, low, high, by_class, budget)
    if drop:
        kept = set(rows)
        rows = [row for row in range(len(table)) if row not in kept]
    name = data or info_of(table).get("identity", {}).get("data", {}).get("name")
    if name is None:
        raise ValueError("`data` must be given: the table does not say where its images are.")
    root = Path(name) if Path(name).is_dir() else Path(name).parent
    paths = table["path"].to_pylist()
    missing = next((paths[row] for row in rows if not _present(root / paths[row])), None)
    if missing is not None:
        raise ValueError(f"`data`: there is no file {str(root / missing)!r}: say where they are.")
    if listed:
        labels = table["label"].to_pylist() if "label" in table.column_names else []
        entries = [
            (os.path.abspath(root / paths[row]), labels[row] if labels else None)  # noqa: PTH100
            for row in rows
        ]
        write_bytes(place, _listed(entries, place.suffix))
    else:
        _link([(root / paths[row], place / paths[row]) for row in rows], place)
    return len(rows)


def _present(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _listed(entries: list[tuple[str, str | None]], suffix: str) -> bytes:
    if suffix == ".jsonl":
        rows = [{"path": path, "label": label} for path, label in entries]
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if suffix == ".txt":
        broken = next((path for path, _ in entries if len(path.splitlines()) > 1), None)
        if broken is not None:
            raise ValueError(
                f"`out`: {broken!r} has more than one line, which a .txt list cannot hold: "
                "write .jsonl."
            )
        return "".join(f"{path}\n" for path, _ in entries).encode()
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["path", "label"])
    writer.writerows((path, label or "") for path, label in entries)
    return stream.getvalue().encode()


def _link(pairs: list[tuple[Path, Path]], folder: Path) -> None:
    if folder.suffix:
        raise ValueError(
            f"`out` must end in one of {', '.join(_LISTS)}, or be a folder without a suffix, "
            f"got {str(folder)!r}."
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`out`: the folder {str(folder)!r} is not empty.")
    home = os.path.abspath(folder)  # noqa: PTH100 - links need not be resolved
    taken = set[str]()
    for _, link in pairs:
        place = os.path.abspath(link)  # noqa: PTH100
        if os.path.commonpath([home, place]) != home:  # a list may name what lies elsewhere
            raise ValueError(f"`out`: {str(link)!r} would lie outside the folder: write a list.")
        if place in taken:  # and may name a file in two ways
            raise ValueError(f"`out`: two images would be {place!r}: write a list.")
        taken.add(place)
    folder.mkdir(parents=True, exist_ok=True)
    for target, link in pairs:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.abspath(target))  # noqa: PTH100
