"""Does the collapse alarm see broken runs, in time, and leave healthy ones alone?

    python benchmarks/collapse_zoo.py --processes 2 --out FILE    # trains what FILE lacks; prints tables
    python benchmarks/collapse_zoo.py --show [FILE]               # the tables of stored runs
    python benchmarks/collapse_zoo.py --show --pictures FOLDER    # and draws three of them

Every run of `_zoo.py` (four methods, healthy and broken on purpose, digits of 8×8 pixels, 600 steps)
is looked at every 15 steps on 512 held-out images. The looks are stored, and the rules are replayed
on them, so that all rules see the very same runs:

- *alarm*: `CollapseAlarm` with its constants, patience a tenth of the run (60 steps);
- *loss*: an average of the loss (0.9 a step) is not finite, or under LOSS_LOW of what it was at step
  30, or over LOSS_HIGH times its lowest value so far;
- *RankMe* and *std*: RankMe / isotropic RankMe, and the normalised std, twice in a row under a
  threshold: 0.9 times the lowest value in the healthy tuning runs, all methods together.

The constants of all rules were chosen on the seeds of TUNING; the tables are of others. A run *ends
collapsed* if its k-NN accuracy (200 labelled images, k = 5, embeddings rounded to bfloat16, mean of
the last three looks) is 10 points under the median of the healthy runs of its method. Half of the
accuracy is lost where it falls under the middle between that median and chance. Without the
rounding, cosines of float32 tell the classes apart at a spread of 0.01, which no training in mixed
precision and no head would.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pathlib
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _results import circumstances, parser
from _zoo import RUNS, STEPS, digits, train
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.functional.collapse import rankme
from jepa_monitor.functional.detection import auroc
from jepa_monitor.functional.isotropic import isotropic_baseline
from jepa_monitor.monitor.alarm import (
    AlarmReading,
    CollapseAlarm,
    CollapseMeasures,
    collapse_measures,
)
from jepa_monitor.monitor.training_images import TrainingImages
from jepa_monitor.recipes.evaluation import knn_predict

RESULTS = pathlib.Path(__file__).with_suffix(".json")
EVERY = 15
PATIENCE = STEPS // 10
# Seeds for (healthy runs, broken runs): those that chose the constants, those that are reported.
TUNING, REPORTED = ((100, 0, 1, 2, 3, 4), (100, 0, 1)), ((10, 11, 12, 13, 14), (10, 11))
SCORED = (0, 60, 300, STEPS)
LOSS_LOW, LOSS_HIGH = 0.02, 3.0

# What the literature leads one to expect; where it leaves it open, both kinds count as right.
EITHER = ("dimensional", "complete")
REPEATS = "images repeat"
EXPECTED: dict[str, tuple[str, ...]] = {
    "no covariance term": ("dimensional",),
    "learning rate × 100": EITHER,
    "one image": (REPEATS,),
    "nothing masked": EITHER,
}

Run = dict[str, Any]


# ---------------------------------------------------------------------------------------- looking
def watch(job: tuple[str, str, int]) -> Run:
    """Train one run and keep what every look found."""
    torch.set_num_threads(1)
    method, fault, seed = job
    known, known_labels, held_out, labels = digits()
    known, known_labels = known[:200], known_labels[:200]
    noise = torch.Generator().manual_seed(5)
    places = torch.stack([torch.randperm(64, generator=noise) for _ in range(16)])
    shuffled = held_out[:16].flatten(1).gather(1, places).view(-1, 1, 8, 8)
    columns: dict[str, list[float | None]] = {
        name: []
        for name in (
            "step",
            "loss",
            "knn",
            "half",
            "spread",
            "directions",
            "possible",
            "rankme",
            "std",
            "duplicates",
        )
    }
    scores: list[list[float]] = []
    average = math.nan
    started = time.process_time()
    training = TrainingImages()

    def look(step: int, module: nn.Module, loss: float, batch: Tensor | None) -> None:
        nonlocal average
        if batch is not None:
            training.see(batch)
        average = loss if math.isnan(average) else 0.9 * average + 0.1 * loss
        if step in SCORED:
            both: Tensor = jepa_score(module.encoder, torch.cat([held_out[:16], shuffled]))
            inside, outside = both[:16], both[16:]
            if torch.isfinite(both).all():
                area = float(auroc(inside, outside))
                scores.append([step, float(inside.mean()), float(inside.std()), area])
        if step % EVERY:
            return
        with torch.no_grad():
            bank, z = module.encoder(known), module.encoder(held_out)
        measures = collapse_measures(z)
        finite = measures.nonfinite == 0 and bool(torch.isfinite(bank).all())
        accuracies = [0.1, 0.1]
        if finite:
            for i, kind in enumerate((torch.float32, torch.bfloat16)):
                rounded = bank.to(kind).float(), z.to(kind).float()
                found = knn_predict(rounded[0], known_labels, rounded[1], k=5)
                accuracies[i] = float((found == labels).double().mean())
        rank = float(rankme(z)) / isotropic_baseline(*z.shape).rankme if finite else 0.0
        repeats = training.scalars().get("data/duplicates_low", math.nan)
        training.forget()
        values = (
            step, average, *accuracies, measures.spread, measures.directions, measures.possible, rank,
            measures.spread, repeats,
        )  # fmt: skip
        for name, value in zip(columns, values, strict=True):
            columns[name].append(float(f"{value:.4g}") if math.isfinite(value) else None)

    train(method, fault, seed, look)
    seconds = round(time.process_time() - started, 1)
    return {
        "method": method, "fault": fault, "seed": seed, "cpu_seconds": seconds,
        "looks": columns, "scores": [[float(f"{x:.4g}") for x in row] for row in scores],
    }  # fmt: skip


def jobs() -> list[tuple[str, str, int]]:
    return [
        (method, fault, seed)
        for healthy, broken in (REPORTED, TUNING)
        for seed in healthy
        for method, fault in RUNS
        if fault == "healthy" or seed in broken
    ]


# ---------------------------------------------------------------------------------------- judging
def measures_of(run: Run) -> list[CollapseMeasures]:
    looks = run["looks"]
    triples = zip(looks["spread"], looks["directions"], looks["possible"], strict=True)
    return [CollapseMeasures(*triple, samples=512, nonfinite=0) for triple in triples]


_READ: dict[tuple[Any, ...], list[AlarmReading]] = {}


def readings(run: Run, patience: int = PATIENCE) -> list[AlarmReading]:
    """What the alarm says at each look; replayed once."""
    key = (run["method"], run["fault"], run["seed"], patience)
    if key not in _READ:
        alarm = CollapseAlarm(patience)
        repeats = [
            {} if share is None else {"data/duplicates": share, "data/duplicates_low": share}
            for share in run["looks"]["duplicates"]
        ]
        looks = zip(run["looks"]["step"], measures_of(run), repeats, strict=True)
        _READ[key] = [alarm.update(int(step), *found) for step, *found in looks]
    return _READ[key]


def state_step(run: Run) -> int | None:
    return next((reading.since_step for reading in readings(run) if reading.state), None)


def alarm_step(run: Run, patience: int = PATIENCE) -> tuple[int | None, str]:
    """Where the alarm rings, and what it names: a state, or images that repeat."""
    for step, reading in zip(run["looks"]["step"], readings(run, patience), strict=True):
        if reading.alarm:
            repeats = (
                reading.cause is not None and reading.cause.name == "the training images repeat"
            )
            return int(step), REPEATS if repeats else reading.state.name.lower()
    return None, "–"


def loss_step(run: Run) -> int | None:
    steps = run["looks"]["step"]
    losses = [math.nan if loss is None else loss for loss in run["looks"]["loss"]]
    reference, lowest = losses[steps.index(2 * EVERY)], math.inf
    for step, loss in zip(steps[2:], losses[2:], strict=True):
        lowest = min(lowest, loss)
        if not math.isfinite(loss) or loss < LOSS_LOW * reference or loss > LOSS_HIGH * lowest:
            return int(step)
    return None


def threshold_step(run: Run, name: str, threshold: float) -> int | None:
    below = [not value >= threshold for value in run["looks"][name]]
    for step, before, now in zip(run["looks"]["step"][1:], below[:-1], below[1:], strict=True):
        if before and now:
            return int(step)
    return None


def final(run: Run, name: str = "half") -> float:
    return statistics.mean(run["looks"][name][-3:])


class Judge:
    """All rules on all runs."""

    def __init__(self, runs: list[Run]) -> None:
        self.tuning = [run for run in runs if run["seed"] in TUNING[0]]
        self.runs = [run for run in runs if run["seed"] in REPORTED[0]]
        self.healthy = [run for run in self.runs if run["fault"] == "healthy"]
        self.broken = [run for run in self.runs if run["fault"] != "healthy"]
        self.level = {
            method: statistics.median(final(r) for r in self.healthy if r["method"] == method)
            for method in sorted({run["method"] for run in self.healthy})
        }
        tuned = [run for run in self.tuning if run["fault"] == "healthy"]
        self.thresholds = {
            name: 0.9 * min(min(run["looks"][name]) for run in tuned) for name in ("rankme", "std")
        }
        self.rules = {
            f"alarm, patience {PATIENCE}": lambda run: alarm_step(run)[0],
            f"alarm, patience {PATIENCE // 2}": lambda run: alarm_step(run, PATIENCE // 2)[0],
            f"alarm, patience {4 * PATIENCE}": lambda run: alarm_step(run, 4 * PATIENCE)[0],
            "state alone": state_step,
            "loss": loss_step,
            "RankMe": lambda run: threshold_step(run, "rankme", self.thresholds["rankme"]),
            "std": lambda run: threshold_step(run, "std", self.thresholds["std"]),
        }

    def ends_collapsed(self, run: Run) -> bool:
        """Whether much of the accuracy is gone in the end."""
        return final(run) < self.level[run["method"]] - 0.1

    def half_lost(self, run: Run) -> int | None:
        """Where the accuracy falls under the middle between healthy and chance."""
        middle = (self.level[run["method"]] + 0.1) / 2
        pairs = zip(run["looks"]["step"], run["looks"]["half"], strict=True)
        return next((int(step) for step, accuracy in pairs if accuracy < middle), None)

    def right_kind(self, run: Run) -> bool:
        """Whether what the alarm names is what was expected."""
        expected = EXPECTED.get(run["fault"], ("complete",))
        return alarm_step(run)[1] in expected

    def in_time(self, run: Run, step: int | None) -> bool:
        """Whether a rule spoke before half was lost."""
        lost = self.half_lost(run)
        return step is not None and (lost is None or step < lost)


def table(*heads: str) -> list[str]:
    """Head of a Markdown table."""
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]


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


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--processes", type=int, default=1, help="each with one thread")
    asked.add_argument("--show", nargs="?", type=pathlib.Path, const=RESULTS, help="train nothing")
    asked.add_argument("--pictures", type=pathlib.Path, help="folder for three pictures")
    options = asked.parse_args()
    source = options.show or options.out
    runs: list[Run] = []
    if source and source.exists():  # training goes on where the file ends
        runs = json.loads(source.read_text())["runs"]
    if not options.show:
        done = {(run["method"], run["fault"], run["seed"]) for run in runs}
        todo = [job for job in jobs() if job not in done]
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            for run in pool.imap(watch, todo):
                runs.append(run)
                print(
                    f"{run['method']}, {run['fault']}, seed {run['seed']}: {final(run):.2f}",
                    flush=True,
                )
                if options.out:
                    store(runs, options.out)
    print(report(runs))
    if options.pictures:
        draw(runs, options.pictures)


def store(runs: list[Run], path: pathlib.Path) -> None:
    settings = circumstances(threads=1) | {
        "steps": STEPS, "every": EVERY, "patience": PATIENCE,
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
    }  # fmt: skip
    rows = ",\n".join(json.dumps(run) for run in runs)
    path.write_text(f'{{"settings": {json.dumps(settings)},\n"runs": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
