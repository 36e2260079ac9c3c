"""Two runs side by side: in go two replays, out come facts and numbers of both, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jepa_monitor._files import check_place, write_bytes
from jepa_monitor.cli.replaying import read_replay
from jepa_monitor.cli.run_events import read_run
from jepa_monitor.monitor.comparing import Row, compared_rows
from jepa_monitor.monitor.run_page import run_page

__all__ = ["Pair", "compare_replays"]


class Pair(NamedTuple):
    """Two runs.

    Args:
        facts: What there is to say, its name and the words for either.
        rows: Numbers by tag: of the first run at the checkpoint to keep and at the last look; of the
            second likewise. ``None`` where there is none.
        notes: What stands in the way of a comparison.
    """

    facts: list[tuple[str, str, str]]
    rows: list[Row]
    notes: list[str]


def compare_replays(first: str, second: str, page: str | None = None) -> Pair:
    """Lay two replayed runs side by side.

    Args:
        first: Folder of a replay.
        second: Of another.
        page: Where an HTML page goes; default: nowhere.

    Returns:
        Both.

    Raises:
        ValueError: If there is no replay, or nothing can be written to ``page``.
    """
    if page is not None:
        check_place(Path(page), "page")
    runs = [read_replay(folder, "compare") for folder in (first, second)]
    one, two = (run.closing for run in runs)
    facts = [
        ("run", first, second),
        ("verdict", one.headline, two.headline),
        ("likely cause", one.cause or "-", two.cause or "-"),
        ("keep", one.path or "none", two.path or "none"),
        ("how sure", one.keep.sure, two.keep.sure),
    ]
    known = [dict(run.facts) for run in runs]
    facts += [(name, known[0][name], known[1].get(name, "-")) for name in known[0]]
    notes = []
    if runs[0].data != runs[1].data:
        notes.append("The runs were looked at with other images: their numbers cannot be compared.")
    if runs[0].unit != runs[1].unit:
        notes.append(f"The first counts {runs[0].unit}s, the second {runs[1].unit}s.")
    rows = compared_rows([(run.looks, run.closing.keep.step) for run in runs])
    found = Pair(facts, rows, notes)
    if page is not None:
        records = [read_run(folder, argument="compare") for folder in (first, second)]
        write_bytes(Path(page), run_page(records).encode())
    return found


def shown(value: float | None) -> str:
    """Write a number of a table.

    Args:
        value: It.

    Returns:
        Four digits; a hyphen where there is none.
    """
    return "-" if value is None else f"{value:.4g}"
