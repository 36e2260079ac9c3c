"""The page of a run: in go looks, pictures and settings, out comes HTML that needs nothing else.

Whoever has a run makes a :class:`RunRecord` of it: the callback of what it remembers, the command of event files.
Words are made anew of the numbers, so that both say the same.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from jepa_monitor.insights import Insight, Panel
from jepa_monitor.insights.table import all_insights, tag_pattern
from jepa_monitor.monitor.closing import Closing, close_run, in_unit
from jepa_monitor.monitor.comparing import (
    CHANGE,
    compared_rows,
    is_comparable,
    same_terms,
    value_of,
)
from jepa_monitor.monitor.pages import fill_page
from jepa_monitor.monitor.panels import shown_panels
from jepa_monitor.monitor.tags import all_rows
from jepa_monitor.monitor.telling import is_news
from jepa_monitor.monitor.verdict import judge

__all__ = ["RUN_PAGE", "RunRecord", "keep_ends", "merge_looks", "run_page", "thin"]

RUN_PAGE = "run.html"  # beside the logs of the run
_POINTS = 600  # of a curve: more cannot be seen
_VERDICTS = 200  # the last ones
_DIGITS = 6
_HIDDEN = ("monitor/overview",)  # the page shows the same, and more

Looks = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RunRecord:
    """What there is of a run.

    Args:
        name: What people call it.
        folder: Where its logs are; ``None`` if they are in no folder.
        looks: Scalars by tag, without prefix, of each look, with its ``step``; in order.
        settings: What the numbers depend on, words by name; ``command`` and ``run in`` say how it was
            started, ``counted in`` what a step is.
        pictures: PNG files by tag and step.
        insights: Who may say something, and whose panels are shown; default: all of the package.
        panels: Further panels.
        cause: What the alarm said when it last began; default: what the numbers say.
        beside: Other curves of the run, such as losses, by tag: steps and values.
    """

    name: str
    folder: str | None
    looks: Looks
    settings: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[int, bytes]] = field(default_factory=dict)
    insights: Iterable[Insight] = field(default_factory=all_insights)
    panels: Iterable[Panel] = ()
    cause: str | None = None
    beside: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What a step is."""
        return self.settings.get("counted in", "step")

    def closing(self) -> Closing:
        """Give the verdict on the run."""
        return close_run(self.looks, self.cause, self.unit)


def merge_looks(looks: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Put looks at the same step together, in order; of a tag that is there twice the later counts.

    Args:
        looks: Each with its ``step``.

    Returns:
        One a step.
    """
    merged: dict[float, dict[str, float]] = {}
    for look in looks:
        merged.setdefault(look["step"], {}).update(look)
    return [merged[step] for step in sorted(merged)]


def keep_ends(shots: dict[int, bytes], step: int, png: bytes) -> None:
    """Keep the first and the last picture of a tag.

    Args:
        shots: PNG files by step, in the order of the looks; takes the picture.
        step: Of the look at hand.
        png: Its picture.
    """
    while len(shots) > 1:
        shots.popitem()
    shots[step] = png


def thin(
    steps: Sequence[float], values: Sequence[float], most: int = _POINTS
) -> tuple[list[float], list[float]]:
    """Leave out points of a curve that is drawn, but none that stands out.

    Args:
        steps: In order.
        values: As many.
        most: Points that may stay, at least 4.

    Returns:
        The first point, the last one, and the least and the greatest of each of equal parts between.

    Raises:
        ValueError: If there are not as many values as steps.

    Example:
        >>> steps, values = thin(range(1000), [float(step == 500) for step in range(1000)], most=10)
        >>> len(steps) <= 10, 500 in steps
        (True, True)
    """
    if len(steps) != len(values):
        raise ValueError(f"`values` must be {len(steps)} for as many steps, got {len(values)}.")
    if len(steps) <= most:
        return list(steps), list(values)
    numbers = np.asarray(values, dtype=float)
    parts = np.array_split(np.arange(1, len(numbers) - 1), most // 2 - 1)
    ends = [part[pick(numbers[part])] for part in parts for pick in (np.argmin, np.argmax)]
    kept = sorted({0, len(numbers) - 1, *map(int, ends)})
    return [steps[n] for n in kept], [values[n] for n in kept]


def run_page(runs: Sequence[RunRecord]) -> str:
    """Write the page of a run, or of two side by side.

    Args:
        runs: One or two.

    Returns:
        HTML.

    Raises:
        ValueError: If there are neither one nor two, or one has no looks.
    """
    if len(runs) not in (1, 2):
        raise ValueError(f"`runs` must be one or two, got {len(runs)}.")
    for run in runs:
        if not run.looks:
            raise ValueError(f"`runs`: {run.name!r} has no looks.")
    closings = [run.closing() for run in runs]
    shown = [_series(run, len(runs) > 1) for run in runs]
    tags = list(dict.fromkeys(tag for each in shown for tag in each))
    content = {
        "runs": [
            _about(run, closing, curves)
            for run, closing, curves in zip(runs, closings, shown, strict=True)
        ],
        "panels": _panels(runs, tags),
        "about": _meanings(tags),
        "numbers": _numbers(runs, closings, shown),
        "notes": _notes(runs),
    }
    return fill_page("jepa_monitor.monitor", "run.html", content)


def _about(run: RunRecord, closing: Closing, curves: Mapping[str, Any]) -> dict[str, Any]:
    """Say and show all of one run."""
    settings = dict(run.settings)
    command, folder = settings.pop("command", ""), settings.pop("run in", "")
    again = [f"cd {shlex.quote(folder)}"] if folder and command else []
    return {
        "name": run.name,
        "unit": run.unit,
        "headline": closing.headline,
        "healthy": closing.healthy,
        "cause": closing.cause,
        "keep": {"step": closing.keep.step, "why": closing.keep.why, "sure": closing.keep.sure},
        "looks": len(run.looks),
        "span": [run.looks[0]["step"], run.looks[-1]["step"]],
        "verdicts": _verdicts(run),
        "states": _states(run.looks),
        "alarms": [
            look["step"]
            for before, look in pairwise([{}, *run.looks])
            if look.get("collapse/alarm") and not before.get("collapse/alarm")
        ],
        "series": {
            tag: [[*map(_whole, x)], [*map(_short, y)]]
            for tag, (x, y) in ((tag, thin(*points)) for tag, points in curves.items())
        },
        "pictures": [
            {"tag": tag, "shots": [{"step": step, "src": _source(shots[step])} for step in sorted(shots)]}
            for tag, shots in run.pictures.items()
            if tag not in _HIDDEN and shots
        ],
        "settings": [[name, value] for name, value in settings.items() if name != "counted in"],
        "again": [*again, command] if command else [],
        "look": [] if run.folder is None else [
            f"tensorboard --logdir {shlex.quote(run.folder)}",
            f"jepa-monitor report {shlex.quote(run.folder)}",
        ],
    }  # fmt: skip


def _series(run: RunRecord, paired: bool) -> dict[str, tuple[list[float], list[float]]]:
    """Make curves of looks."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for look in run.looks:
        step = look["step"]
        for tag, value in look.items():
            if tag != "step" and math.isfinite(value):
                x, y = curves.setdefault(tag, ([], []))
                x.append(step)
                y.append(value)
    if paired and "jepa_score/mean" in curves:
        told = [look for look in run.looks if math.isfinite(look.get("jepa_score/mean", math.nan))]
        changes = (value_of(told, look, CHANGE) for look in told)
        curves[CHANGE] = (curves["jepa_score/mean"][0], [c for c in changes if c is not None])
    return curves | {tag: (list(x), list(y)) for tag, (x, y) in run.beside.items()}


def _verdicts(run: RunRecord) -> list[dict[str, Any]]:
    """Say what each look says, where that changes, and what the last one says, by its own numbers."""
    memory: dict[str, Any] = {}
    insights = list(run.insights)
    told, before = [], None
    # Of a look that failed there is nothing to say.
    sound = [look for look in run.looks if "collapse/state" in look or "jepa_score/mean" in look]
    for look in sound:
        # Lightning's axis counts a step less than the alarm: a state is no older than the run.
        least = run.looks[0]["step"] + look.get("collapse/steps_in_state", 0.0)
        verdict = judge(look, insights, max(look["step"], least))
        news = is_news(memory, verdict)
        if not news and look is not sound[-1]:
            continue
        turn = verdict.headline.partition(" since")[0]
        told.append(
            {
                "step": look["step"],
                "headline": in_unit(verdict.headline, run.unit),
                "text": in_unit(" ".join(verdict.sentences), run.unit),
                "alarming": verdict.alarming,
                "news": news,
                "turn": turn != before,
            }
        )
        before = turn
    if len(told) <= _VERDICTS:
        return told
    # Where states change matters more than where a sentence does; of either the last.
    kept = [look for look in told if look["turn"]][-_VERDICTS // 2 :]
    kept += [look for look in told if not look["turn"]][-_VERDICTS // 2 :]
    return sorted(kept, key=lambda look: look["step"])


def _states(looks: Looks) -> list[list[float]]:
    """Find from where to where the embeddings were in which state."""
    found: list[list[float]] = []
    for look in looks:
        if (state := look.get("collapse/state")) is None:
            continue
        if found:
            found[-1][1] = look["step"]
        if not found or found[-1][2] != state:
            found.append([look["step"], look["step"], state])
    return found


def _panels(runs: Sequence[RunRecord], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Choose the charts, and where they are healthy in each run."""
    known = dict.fromkeys(
        panel
        for run in runs
        for panel in (*(p for insight in run.insights for p in insight.panels), *run.panels)
    )
    offered = list(known)
    if len(runs) > 1 and same_terms(runs[0].looks, runs[1].looks):
        offered.append(Panel("density", "JEPA-SCORE: change since the first look", (CHANGE,)))
    return [
        {
            "page": panel.page,
            "title": panel.title,
            "tags": shown,
            "band": panel.band,
            "level": not all(map(is_comparable, shown)),
            "healthy": [[_end(run.looks, end) for end in panel.healthy] for run in runs],
        }
        for panel, shown in shown_panels(offered, tags)
    ]


def _end(looks: Looks, end: float | str | None) -> float | None:
    """Find where a healthy band ends: where it is said, or at the last look."""
    if not isinstance(end, str):
        return end
    return next((look[end] for look in reversed(looks) if end in look), None)


def _meanings(tags: Iterable[str]) -> dict[str, dict[str, str]]:
    """Say what tags are, as the table of the documents does."""
    patterns = [(tag_pattern(tag), row) for row in all_rows() for tag in row.tags]
    found = {}
    for tag in tags:
        row = next((row for pattern, row in patterns if pattern.fullmatch(tag)), None)
        if row is not None:
            found[tag] = {"what": row.what, "healthy": row.healthy}
    return found


def _numbers(
    runs: Sequence[RunRecord],
    closings: Sequence[Closing],
    shown: Sequence[Mapping[str, tuple[list[float], list[float]]]],
) -> dict[str, Any]:
    """Lay out the numbers of all tags; of two runs those that may be compared."""
    keeps = [closing.keep.step for closing in closings]
    if len(runs) > 1:
        rows = compared_rows([(run.looks, keep) for run, keep in zip(runs, keeps, strict=True)])
        return {
            "heads": ["first: keep", "last", "second: keep", "last"],
            "rows": [[tag, *map(_short, values)] for tag, values in rows],
        }
    kept = next((look for look in runs[0].looks if look["step"] == keeps[0]), {})
    table = []
    for tag, (_, y) in shown[0].items():
        numbers = (y[0], kept.get(tag), y[-1], min(y), max(y))
        table.append([tag, *map(_short, numbers)])
    return {"heads": ["first", "keep", "last", "least", "greatest"], "rows": table}


def _notes(runs: Sequence[RunRecord]) -> list[str]:
    notes = []
    for run in runs:
        most = max(len(run.looks), *(len(x) for x, _ in run.beside.values()), 0)
        if most > _POINTS:
            notes.append(
                f"{run.name}: of curves with more than {_POINTS} points the least and the greatest of "
                f"each {2 * most // _POINTS} or so are drawn; the table has been made of all {most}."
            )
    if len(runs) > 1:
        units = [run.unit for run in runs]
        if units[0] != units[1]:
            notes.append(f"The first counts {units[0]}s, the second {units[1]}s.")
        if not same_terms(runs[0].looks, runs[1].looks):
            notes.append(
                "JEPA-SCORE sums different numbers of singular values in the two runs "
                "(`jepa_score/terms`): not even its changes are compared."
            )
        if runs[0].settings.get("images") != runs[1].settings.get("images"):
            notes.append(
                "The runs were looked at with other images: their numbers cannot be compared."
            )
    return notes


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return _whole(float(f"{value:.{_DIGITS}g}"))


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
