"""Two runs side by side: in go two replays, out come facts, numbers and curves of both."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jepa_monitor._files import check_place, write_bytes
from jepa_monitor.cli.replaying import Replay, read_replay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pair", "compare_replays"]

# What can be compared: numbers without a scale of their own. The levels of scores, densities and singular
# values depend on the scale of inputs and embeddings, so of these only what has happened to them.
_COMPARED = re.compile(
    r"collapse/.*|density/(?!normality_statistic).*|outliers/.*|ood/.*|neighbors/.*|separation/.*|tasks/.*"
    r"|alignment/.*|monitor/(failures|nonfinite)"
)
_ENDS = re.compile(r".*_(low|high)|collapse/steps_in_state")
_CHANGE = "jepa_score/mean, change since the first look"
_PANELS = (
    "collapse/state",
    "collapse/normalized_std",
    "collapse/effective_rank_relative",
    _CHANGE,
    "density/calibration_error",
    "density/gaussianity_effect",
    "density/polarity",
    "outliers/combined",
    "neighbors/drift",
)
_COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's
_COLUMNS = 3


class Pair(NamedTuple):
    """Two runs.

    Args:
        facts: What there is to say, its name and the words for either.
        rows: Numbers: the tag; of the first run at the checkpoint to keep and at the last; of the second
            likewise. ``None`` where there is none.
        notes: What stands in the way of a comparison.
    """

    facts: list[tuple[str, str, str]]
    rows: list[tuple[str, float | None, float | None, float | None, float | None]]
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
    facts = [
        ("run", first, second),
        ("verdict", *(run.closing.headline for run in runs)),
        ("likely cause", *(run.closing.cause or "-" for run in runs)),
        ("keep", *(run.closing.path or "none" for run in runs)),
        ("how sure", *(run.closing.keep.sure for run in runs)),
    ]
    known = [dict(run.facts) for run in runs]
    facts += [(name, known[0][name], known[1].get(name, "-")) for name in known[0]]
    notes = []
    if runs[0].data != runs[1].data:
        notes.append("The runs were looked at with other images: their numbers cannot be compared.")
    if runs[0].unit != runs[1].unit:
        notes.append(f"The first counts {runs[0].unit}s, the second {runs[1].unit}s.")
    chosen = [_chosen(run) for run in runs]
    tags = [tag for tag in _tags(runs[0].looks) if tag in set(_tags(runs[1].looks))]
    rows = [
        (tag, *(_value(looks, look, tag) for looks, pair in zip(runs, chosen, strict=True) for look in pair))
        for tag in tags
    ]  # fmt: skip
    found = Pair(facts, rows, notes)  # type: ignore[arg-type]
    if page is not None:
        write_bytes(Path(page), _page(found, runs).encode())
    return found


def _chosen(run: Replay) -> tuple[Mapping[str, float] | None, Mapping[str, float] | None]:
    """Find the look at the checkpoint to keep, and the last."""
    keep = next((look for look in run.looks if look["step"] == run.closing.keep.step), None)
    return keep, run.looks[-1] if run.looks else None


def _tags(looks: Sequence[Mapping[str, float]]) -> list[str]:
    seen = dict.fromkeys(tag for look in looks for tag in look)
    compared = [t for t in seen if _COMPARED.fullmatch(t) and not _ENDS.fullmatch(t)]
    return [*compared, _CHANGE] if "jepa_score/mean" in seen else compared


def _value(run: Replay, look: Mapping[str, float] | None, tag: str) -> float | None:
    if look is None:
        return None
    if tag != _CHANGE:
        return look.get(tag)
    begin = next((one["jepa_score/mean"] for one in run.looks if "jepa_score/mean" in one), None)
    now = look.get("jepa_score/mean")
    return None if begin is None or now is None else now - begin


def _curves(pair: Pair, runs: Sequence[Replay]) -> Figure:
    from matplotlib.figure import Figure

    tags = [tag for tag in _PANELS if tag in {row[0] for row in pair.rows}]
    rows = -(-len(tags) // _COLUMNS)
    figure = Figure(figsize=(10, 2.2 * rows), layout="constrained", facecolor="white", dpi=100)
    for n, tag in enumerate(tags):
        axes = figure.add_subplot(rows, _COLUMNS, n + 1)
        for run, colour, marker in zip(runs, _COLOURS, "os", strict=True):
            points = [(look["step"], _value(run, look, tag)) for look in run.looks]
            known = [(step, value) for step, value in points if value is not None]
            axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=3)
            if run.closing.keep.step is not None:
                axes.axvline(run.closing.keep.step, color=colour, linestyle=":", linewidth=1)
        axes.set_title(tag, fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


_STYLE = """
:root { color-scheme: light dark; --line: #d8dbe0; --soft: #5d6470; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.2rem; max-width: 1100px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; } .soft { color: var(--soft); } .first { color: #0072B2; } .second { color: #D55E00; }
"""


def _page(pair: Pair, runs: Sequence[Replay]) -> str:
    """Write HTML that needs nothing else."""
    with BytesIO() as file:
        _curves(pair, runs).savefig(file, format="png")
        picture = base64.b64encode(file.getvalue()).decode()
    said = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(one)}</td><td>{html.escape(two)}</td></tr>"
        for name, one, two in pair.facts
    )
    numbers = "".join(
        f"<tr><td>{html.escape(tag)}</td>"
        + "".join(f'<td class="number">{shown(value)}</td>' for value in values)
        + "</tr>"
        for tag, *values in pair.rows
    )
    notes = "".join(f"<p><strong>{html.escape(note)}</strong></p>" for note in pair.notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>Two runs</title><style>{_STYLE}</style></head><body><h1>Two runs</h1>{notes}"
        '<table><tr><th></th><th class="first">first</th><th class="second">second</th></tr>'
        f"{said}</table><h2>Over the run</h2>"
        '<p class="soft">Blue circles: the first; orange squares: the second; dotted: the checkpoint to '
        f'keep.</p><img alt="curves of both runs" src="data:image/png;base64,{picture}">'
        '<h2>Numbers</h2><p class="soft">At the checkpoint to keep and at the last. Levels of scores, '
        "densities and singular values are left out: they depend on the scale of the embeddings.</p>"
        '<table><tr><th>tag</th><th class="first">first: keep</th><th class="first">last</th>'
        f'<th class="second">second: keep</th><th class="second">last</th></tr>{numbers}</table>'
        "</body></html>\n"
    )


def shown(value: float | None) -> str:
    """Write a number of a table.

    Args:
        value: It.

    Returns:
        Four digits; a hyphen where there is none.
    """
    return "-" if value is None else f"{value:.4g}"
