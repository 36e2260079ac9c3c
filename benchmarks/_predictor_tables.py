"""The tables of `predictors.py`: in go runs, out comes what predictors and rules are worth, in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from _predictor_judging import (
    ADVICE,
    SIGNS,
    TARGETS,
    Run,
    across,
    ceiling,
    interval,
    looks_of,
    mean,
    place_of,
    regret,
    target,
    tau,
    values_of,
    within,
)
from _results import table

from jepa_monitor.monitor.closing import close_run

CHOICES = (
    ADVICE, "which_to_keep", "last", "first", "loss", "loss/held_out", "collapse/rankme",
    "collapse/effective_rank", "views/retrieval", "views/overlap", "clusters/agreement",
    "clusters/learnability", "tokens/dse_lambda", "tokens/rank_across", "jepa_score/mean",
    "log_density/mean", "jacobian/level_free", "random",
)  # fmt: skip


def is_test(run: Run) -> bool:
    """Whether the rule of the advice was chosen without this run."""
    return bool(run["seed"] > 0)


def is_faulty(run: Run) -> bool:
    """Whether something was broken on purpose."""
    return "-" in run["run"]


def row(*cells: str) -> str:
    """A line of one."""
    return "| " + " | ".join(cells) + " |"


def shown(value: float | None, digits: int = 2) -> str:
    """A number, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def with_interval(found: tuple[float, float, float, int], digits: int = 2) -> str:
    """A mean and its interval."""
    if found[3] < 3:
        return shown(found[0], digits)
    return f"{shown(found[0], digits)} ({shown(found[1], digits)} to {shown(found[2], digits)})"


def predictor_table(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What each predictor says of the checkpoints of a run."""
    heads = ("τ", *TARGETS, "healthy", "faulty", "given the step", "after 20 %", "across runs, ρ")
    groups = [[run for run in runs if is_faulty(run) == faulty] for faulty in (False, True)]

    def cells(
        name: str, of_run: Callable[[Run, str], float | None], of_target: Callable[[Run, str], Any]
    ) -> str:
        whole = {run["run"] + str(run["seed"]): of_run(run, "all") for run in runs}

        def known(run: Run) -> float | None:
            return whole[run["run"] + str(run["seed"])]

        found = interval(runs, known)
        return row(
            name,
            with_interval(found),
            *(shown(mean(runs, lambda run, t=each: of_target(run, t))) for each in TARGETS),
            *(shown(mean(group, known)) for group in groups),
            with_interval(interval(runs, lambda run: of_run(run, "partial"))),
            with_interval(interval(runs, lambda run: of_run(run, "late"))),
            shown(across(runs, name)[0] if name in SIGNS else None),
            str(found[3]),
        )

    def worth(name: str) -> float:
        found = mean(runs, lambda run: within(run, name))
        return -2.0 if found is None else found

    lines = table("predictor", *heads, "runs")
    lines += [
        cells(
            name,
            lambda run, kind, n=name: within(run, n, kind),
            lambda run, each, n=name: tau(values_of(run, n), target(run, each)),
        )
        for name in sorted(names, key=worth, reverse=True)
    ]
    lines.append(
        cells(
            "*half of the labels*",
            ceiling,
            lambda run, each: tau(target(run, each, 0), target(run, each, 1)),
        )
    )
    return lines


def choice_table(runs: Sequence[Run], rules: Sequence[str]) -> list[str]:
    """What a checkpoint is worth that a rule keeps, in points of accuracy, mean over the targets."""
    lines = table(
        "keeps the checkpoint of", "below the best", "worst run", "healthy", "faulty",
        "below the best, halves", "below the last", "most below the last", "runs",
    )  # fmt: skip

    def lost(rule: str, against: str) -> Callable[[Run], float | None]:
        def of_run(run: Run) -> float | None:
            place = place_of(run, rule)
            return None if place is None else statistics.fmean(regret(run, place, against).values())

        return of_run

    def most(of_run: Callable[[Run], float | None]) -> float:
        return max(value for run in runs if (value := of_run(run)) is not None)

    groups = [[run for run in runs if is_faulty(run) == faulty] for faulty in (False, True)]
    for rule in rules:
        best, last = lost(rule, "oracle"), lost(rule, "last")
        found = interval(runs, best)
        if found[3]:
            lines.append(
                row(
                    rule,
                    with_interval(found),
                    shown(most(best)),
                    *(shown(mean(group, best)) for group in groups),
                    shown(mean(runs, lost(rule, "honest"))),
                    with_interval(interval(runs, last)),
                    shown(most(last)),
                    str(found[3]),
                )
            )
    return lines


def report(runs: Sequence[Run]) -> str:
    """All tables."""
    every = ((*SIGNS, ADVICE, "random"), CHOICES)
    short = ((ADVICE, "step", "loss", "collapse/rankme", "views/retrieval"), CHOICES[:6])
    tested = [run for run in runs if is_test(run)]
    parts = []
    for title, group, (names, rules) in (
        ("All runs", list(runs), every),
        ("Runs that the rule was not chosen on", tested, short),
    ):
        if group:
            parts += [f"**{title}: {len(group)}**", "", *predictor_table(group, names), ""]
            parts += [*choice_table(group, rules), ""]
    lines = table("run", "seed", *(f"{t}: first, best, last" for t in TARGETS), "verdict",
                  "advice at", "best at")  # fmt: skip
    for run in runs:
        steps, kept = run["looks"]["step"], place_of(run, ADVICE)
        curves = [target(run, each) for each in TARGETS]
        average = [statistics.fmean(each) for each in zip(*curves, strict=True)]
        lines.append(
            row(
                run["run"],
                str(run["seed"]),
                *(f"{c[0]:.3f}, {max(c):.3f}, {c[-1]:.3f}" for c in curves),
                close_run(looks_of(run)).headline,
                "–" if kept is None else f"{steps[kept]:.0f}",
                f"{steps[average.index(max(average))]:.0f}",
            )
        )
    return "\n".join([*parts, *lines])
