"""The tables and pictures of `collapse_zoo.py`."""

from __future__ import annotations

import math
import pathlib
import statistics
from typing import Any

from _results import table
from _zoo import RUNS, STEPS
from _zoo_rules import (
    EVERY,
    REPORTED,
    Judge,
    Run,
    alarm_step,
    final,
    measures_of,
    readings,
    state_step,
)


def span(values: list[Any]) -> str:
    """One entry a seed."""
    return ", ".join("–" if value is None else f"{value}" for value in values)


def report(runs: list[Run]) -> str:
    judge = Judge(runs)
    lines = table(
        "method", "run", "k-NN float32", "k-NN bfloat16", "ends collapsed", "state ≠ 0 at",
        "alarm at", "kind", "half lost at", "loss", "RankMe", "std",
    )  # fmt: skip
    for method, fault in RUNS:
        group = [r for r in judge.runs if (r["method"], r["fault"]) == (method, fault)]
        if not group:
            continue
        alarms = [alarm_step(r) for r in group]
        cells = [
            method,
            fault,
            span([f"{final(r, 'knn'):.2f}" for r in group]),
            span([f"{final(r):.2f}" for r in group]),
            f"{sum(judge.ends_collapsed(r) for r in group)}/{len(group)}",
            span([state_step(r) for r in group]),
            span([step for step, _ in alarms]),
            span([kind for _, kind in alarms]),
            span([judge.half_lost(r) for r in group]),
            *(span([judge.rules[rule](r) for r in group]) for rule in ("loss", "RankMe", "std")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", summary(judge), "", scores(judge)])


def summary(judge: Judge) -> str:
    collapsed = [run for run in judge.broken if judge.ends_collapsed(run)]
    spared = [run for run in judge.broken if not judge.ends_collapsed(run)]
    lines = [
        f"Healthy runs {len(judge.healthy)}, broken runs that end collapsed {len(collapsed)}, "
        f"broken runs that do not {len(spared)}. Thresholds of the peers: "
        + ", ".join(f"{name} {value:.3g}" for name, value in judge.thresholds.items())
        + ".",
        "",
        *table(
            "rule", "alarms in healthy runs", "collapsed runs flagged", "before half is lost",
            "not collapsed, flagged", "median lead over the loss", "where the loss speaks",
        ),
    ]  # fmt: skip
    for name, rule in judge.rules.items():
        pairs = [(run, rule(run)) for run in collapsed]
        # Where a rule is silent to the end, its step counts as one look after the last.
        leads = [
            (judge.rules["loss"](run) or STEPS + EVERY) - (step or STEPS + EVERY)
            for run, step in pairs
        ]
        spoken = [
            judge.rules["loss"](run) - step
            for run, step in pairs
            if step is not None and judge.rules["loss"](run) is not None
        ]
        lines.append(
            f"| {name} | {sum(rule(run) is not None for run in judge.healthy)} "
            f"| {sum(step is not None for _, step in pairs)} "
            f"| {sum(judge.in_time(run, step) for run, step in pairs)} "
            f"| {sum(rule(run) is not None for run in spared)} "
            f"| {statistics.median(leads) if leads else '–'} "
            f"| {statistics.median(spoken) if spoken else '–'} ({len(spoken)}) |"
        )
    flagged = [run for run in collapsed if alarm_step(run)[0] is not None]
    kinds = sum(judge.right_kind(run) for run in flagged)
    lines += ["", f"The alarm names the expected kind in {kinds} of {len(flagged)} flagged."]
    others = [run for run in collapsed if run["fault"] != "one image"]
    leads = [
        (judge.rules["loss"](run) or STEPS + EVERY) - (alarm_step(run)[0] or STEPS + EVERY)
        for run in others
    ]
    lines.append(
        f"Its median lead over the loss without the runs that repeat one image: "
        f"{statistics.median(leads) if leads else '–'} ({len(others)} runs)."
    )
    for word, runs in (("healthy", judge.healthy), ("tuning, healthy", judge.tuning)):
        chosen = [run for run in runs if run["fault"] == "healthy"]
        for method in judge.level:
            looks = [m for r in chosen if r["method"] == method for m in measures_of(r)]
            if looks:
                lines.append(
                    f"- {word} {method}: spread at least {min(m.spread for m in looks):.3f}, share "
                    f"of directions at least {min(m.share for m in looks):.3f}"
                )
    return "\n".join(lines)


def scores(judge: Judge) -> str:
    """What JEPA-SCORE says at the first and at the last step, medians over the seeds."""
    lines = table(
        "method", "run", "JEPA-SCORE, first", "last", "AUROC against shuffled pixels, first", "last"
    )
    for method, fault in RUNS:
        group = [r for r in judge.runs if (r["method"], r["fault"]) == (method, fault)]
        rows = [(r["scores"][0], r["scores"][-1]) for r in group if r["scores"]]
        if rows:
            values = [
                statistics.median(row[end][column] for row in rows)
                for column in (1, 3)
                for end in (0, 1)
            ]
            cells = [f"{values[0]:.0f}", f"{values[1]:.0f}", f"{values[2]:.2f}", f"{values[3]:.2f}"]
            lines.append("| " + " | ".join([method, fault, *cells]) + " |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------- pictures
PICTURES = {
    "collapse_healthy": ("VICReg", "healthy"),
    "collapse_dimensional": ("VICReg", "no covariance term"),
    "collapse_complete": ("DINO", "EMA momentum 0"),
}


def draw(runs: list[Run], folder: pathlib.Path) -> None:
    """Three runs: what a user sees."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    for name, key in PICTURES.items():
        run = next(
            r for r in runs if (r["method"], r["fault"]) == key and r["seed"] == REPORTED[1][0]
        )
        looks, steps = run["looks"], run["looks"]["step"]
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(6, 3.6), sharex=True, height_ratios=[4, 1], layout="constrained"
        )
        above.plot(steps, looks["knn"], color="black", label="k-NN accuracy")
        above.plot(steps, looks["spread"], color="tab:blue", label="spread")
        shares = [m.share for m in measures_of(run)]
        above.plot(steps, shares, color="tab:orange", label="share of directions")
        losses = [math.nan if x is None else x for x in looks["loss"]]
        highest = max(x for x in losses if math.isfinite(x))
        curve = [x / highest for x in losses]
        above.plot(steps, curve, color="0.6", linestyle="--", label="loss / highest")
        above.set(ylim=(-0.02, 1.05), title=f"{key[0]}, {key[1]}")
        above.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        below.step(steps, [int(r.state) for r in readings(run)], where="post", color="tab:red")
        below.set(ylim=(-0.3, 2.3), yticks=[0, 1, 2], xlabel="step", ylabel="state")
        below.set_yticks([0, 1, 2], ["healthy", "dimensional", "complete"], fontsize=7)
        at, _ = alarm_step(run)
        if at is not None:
            for axes in (above, below):
                axes.axvline(at, color="tab:red", linestyle=":", linewidth=1)
            above.text(at, 1.0, " alarm", color="tab:red", fontsize=8, va="top")
        figure.savefig(folder / f"{name}.png", dpi=90)
        plt.close(figure)
