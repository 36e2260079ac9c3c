"""Tables of replayed runs on the console: in goes what was found, out comes what rich can print."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from jepa_monitor.cli.replay_comparison import Pair, shown
from jepa_monitor.cli.replaying import Replay

__all__ = ["pair_table", "run_table"]

_CURVE = (
    "collapse/state",
    "collapse/alarm",
    "collapse/normalized_std",
    "collapse/effective_rank",
    "jepa_score/mean",
    "density/calibration_error",
    "density/polarity",
)
_ROWS = 12  # looks that are shown, spread over the run
_NUMBERS = 24  # of two runs; the page has all


def run_table(found: Replay) -> RenderableType:
    """Lay out a run: some of its looks, and the verdict.

    Args:
        found: The run.

    Returns:
        What rich can print.
    """
    tags = [tag for tag in _CURVE if any(tag in look for look in found.looks)]
    curve = Table(found.unit, *(tag.partition("/")[2] for tag in tags))
    count = len(found.looks)
    places = sorted(
        {n * (count - 1) // max(min(count, _ROWS) - 1, 1) for n in range(min(count, _ROWS))}
    )
    for look in (found.looks[place] for place in places):
        curve.add_row(f"{look['step']:.0f}", *(shown(look.get(tag)) for tag in tags))
    summary = Table(show_header=False)
    closing = found.closing
    rows = [
        *found.facts,
        ("verdict", f"{closing.headline}."),
        ("likely cause", closing.cause),
        ("keep", " ".join(part for part in (closing.keep.why, closing.path) if part)),
        ("how sure", closing.keep.sure),
    ]
    for name, value in rows:
        if value:
            summary.add_row(Text(name), Text(value))
    return Group(curve, summary)


def pair_table(found: Pair) -> RenderableType:
    """Lay out two runs.

    Args:
        found: Both.

    Returns:
        What rich can print.
    """
    facts = Table("", "first", "second")
    for row in found.facts:
        facts.add_row(*map(Text, row))
    tags = Column(no_wrap=True)  # of a tag that is cut off nobody knows which it was
    numbers = Table(tags, "first: keep", "last", "second: keep", "last")
    for tag, values in found.rows[:_NUMBERS]:
        numbers.add_row(Text(tag), *map(shown, values))
    return Group(*(Text(note, style="bold") for note in found.notes), facts, numbers)
