"""Does the collapse alarm stay silent in long healthy runs, and tell a phase that passes from a fault that returns?

    python benchmarks/collapse_long.py --out FILE    # trains what FILE lacks; prints the table
    python benchmarks/collapse_long.py --show [FILE] # the table of stored runs

Runs of `_zoo.py`, each looked at every 50 steps on 512 held-out images, with the patience that a run of its
length has by default (1000 steps):

- *collapse phase*: JEPA with a slower predictor and a target that follows faster, 1500 steps: its embeddings
  nearly close in on a point, and come apart again;
- *spells*: VICReg without its covariance term and LeJEPA without SIGReg, for 250 steps of every 1000, 5000
  steps in all: directions or spread go four times, and come back;
- *healthy*: the four methods for 5000 steps instead of 600.

The looks are stored and the alarm is replayed on them. Constants of the alarm were chosen on other seeds
(`collapse_zoo.py`, and of the phase 30 to 39); the spells were planted with seed 0, which is in no table.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _results import circumstances, parser, store_runs
from _zoo import METHODS, digits, train
from torch import Tensor, nn

from jepa_monitor.functional import knn_predict
from jepa_monitor.monitor.alarm import (
    AlarmReading,
    CollapseAlarm,
    CollapseMeasures,
    collapse_measures,
    default_patience,
)
from jepa_monitor.monitor.training_images import TrainingImages

RESULTS = pathlib.Path(__file__).with_suffix(".json")
EVERY, JUDGED = 50, 250  # steps between looks, and between accuracies
LONG, PHASE = 5000, 1500
JOBS = [
    *(("JEPA", "collapse phase", seed, PHASE) for seed in range(50, 60)),
    *((method, "spells", seed, LONG) for seed in (40, 41) for method in ("VICReg", "LeJEPA")),
    *((method, "healthy", seed, LONG) for seed in range(20, 25) for method in METHODS),
]

Run = dict[str, Any]


def watch(method: str, fault: str, seed: int, steps: int) -> Run:
    """Train one run and keep what every look found."""
    known, known_labels, held_out, labels = digits()
    known, known_labels = known[:200], known_labels[:200]
    names = ("step", "spread", "directions", "possible", "duplicates", "knn")
    looks: dict[str, list[float | None]] = {name: [] for name in names}
    training, started = TrainingImages(), time.process_time()

    def look(step: int, module: nn.Module, _: float, batch: Tensor | None) -> None:
        if batch is not None:
            training.see(batch)
        if step % EVERY:
            return
        with torch.no_grad():
            z, bank = module.encoder(held_out), module.encoder(known)
        found = collapse_measures(z)
        accuracy = None
        if step % JUDGED == 0:
            rounded = (x.bfloat16().float() for x in (bank, z))
            bank, z = rounded
            accuracy = float((knn_predict(bank, known_labels, z, k=5) == labels).double().mean())
        share = training.scalars().get("data/duplicates_low")
        training.forget()
        values = (step, found.spread, found.directions, found.possible, share, accuracy)
        for name, value in zip(names, values, strict=True):
            looks[name].append(None if value is None else float(f"{value:.4g}"))

    train(method, fault, seed, look, steps)
    seconds = round(time.process_time() - started, 1)
    return {
        "method": method, "fault": fault, "seed": seed, "steps": steps, "cpu_seconds": seconds,
        "looks": looks,
    }  # fmt: skip


def readings(run: Run) -> list[AlarmReading]:
    """What the alarm says at each look."""
    looks, alarm = run["looks"], CollapseAlarm(default_patience(run["steps"]))
    found = []
    for n, step in enumerate(looks["step"]):
        share = looks["duplicates"][n]
        seen = {} if share is None else {"data/duplicates": share, "data/duplicates_low": share}
        measured = (looks[name][n] for name in ("spread", "directions", "possible"))
        found.append(alarm.update(int(step), CollapseMeasures(*measured, 512, 0), seen))
    return found


def report(runs: list[Run]) -> str:
    heads = (
        "method", "run", "runs", "k-NN, last", "rings", "runs with a state ≠ 0", "longest, steps",
        "falls that return", "cause at the end",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method, fault in dict.fromkeys((run["method"], run["fault"]) for run in runs):
        group = [run for run in runs if (run["method"], run["fault"]) == (method, fault)]
        told = [readings(run) for run in group]
        longest = max((r.steps_in_state for each in told for r in each if r.state), default="–")
        returns = [each[-1].returns for each in told]
        causes = [each[-1].cause.name if each[-1].cause else "–" for each in told]
        accuracies = [run["looks"]["knn"][-1] for run in group]
        cells = [
            method, fault, len(group),
            f"{min(accuracies):.2f} … {statistics.median(accuracies):.2f} … {max(accuracies):.2f}",
            sum(any(r.alarm for r in each) for each in told),
            sum(any(r.state for r in each) for each in told), longest,
            f"{min(returns)} to {max(returns)}",
            ", ".join(f"{cause} ({causes.count(cause)})" for cause in dict.fromkeys(causes)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--show", nargs="?", type=pathlib.Path, const=RESULTS, help="train nothing")
    options = asked.parse_args()
    torch.set_num_threads(options.threads)
    source = options.show or options.out
    runs: list[Run] = []
    if source and source.exists():  # training goes on where the file ends
        runs = json.loads(source.read_text())["runs"]
    done = {(run["method"], run["fault"], run["seed"], run["steps"]) for run in runs}
    for job in [] if options.show else JOBS:
        if job in done:
            continue
        runs.append(watch(*job))
        print(*job, flush=True)
        if options.out:
            about = circumstances(threads=options.threads) | {"every": EVERY}
            store_runs(options.out, about, runs)
    print(report(runs))


if __name__ == "__main__":
    main()
