"""Does the collapse alarm stay silent in long healthy runs, and in a collapse phase that passes?

    python benchmarks/collapse_long.py --out FILE    # trains what FILE lacks; prints the table
    python benchmarks/collapse_long.py --show [FILE] # the table of stored runs

The healthy runs of `_zoo.py` for 5000 steps instead of 600, and runs of its JEPA with a slower predictor and
a faster target, which nearly collapse to a point and recover. Each is looked at every 50 steps on 512
held-out images, with the patience that a run of its length has by default (1000 steps). The looks are
stored and the alarm is replayed on them.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _results import circumstances, parser
from _zoo import METHODS, digits, train
from torch import Tensor, nn

from jepa_monitor.monitor.alarm import (
    AlarmReading,
    CollapseAlarm,
    CollapseMeasures,
    collapse_measures,
    default_patience,
)
from jepa_monitor.monitor.training_images import TrainingImages

RESULTS = pathlib.Path(__file__).with_suffix(".json")
EVERY = 50
LONG, PHASE = 5000, 1500
JOBS = [
    *(("JEPA", "collapse phase", seed, PHASE) for seed in range(30, 40)),
    *((method, "healthy", seed, LONG) for seed in range(20, 25) for method in METHODS),
]

Run = dict[str, Any]


def watch(method: str, fault: str, seed: int, steps: int) -> Run:
    """Train one run and keep what every look found."""
    torch.set_num_threads(1)
    held_out = digits()[2]
    looks: dict[str, list[float | None]] = {
        name: [] for name in ("step", "spread", "directions", "possible", "duplicates")
    }
    training, started = TrainingImages(), time.process_time()

    def look(step: int, module: nn.Module, _: float, batch: Tensor | None) -> None:
        if batch is not None:
            training.see(batch)
        if step % EVERY:
            return
        with torch.no_grad():
            found = collapse_measures(module.encoder(held_out))
        share = training.scalars().get("data/duplicates_low")
        training.forget()
        values = (step, found.spread, found.directions, found.possible, share)
        for name, value in zip(looks, values, strict=True):
            looks[name].append(None if value is None else float(f"{value:.4g}"))

    train(method, fault, seed, look, steps)
    seconds = round(time.process_time() - started, 1)
    return {
        "method": method, "fault": fault, "seed": seed, "steps": steps, "cpu_seconds": seconds,
        "looks": looks,
    }  # fmt: skip


def readings(run: Run) -> list[AlarmReading]:
    """Replay the alarm."""
    alarm = CollapseAlarm(default_patience(run["steps"]))
    found = []
    for step, spread, directions, possible, share in zip(*run["looks"].values(), strict=True):
        seen = {} if share is None else {"data/duplicates": share, "data/duplicates_low": share}
        measures = CollapseMeasures(spread, directions, possible, 512, 0)
        found.append(alarm.update(int(step), measures, seen))
    return found


def report(runs: list[Run]) -> str:
    lines = [
        "| method | run | steps | runs | alarms | runs with a state ≠ 0 | longest such state | returns |",
        "|---" * 8 + "|",
    ]
    kinds = dict.fromkeys((run["method"], run["fault"], run["steps"]) for run in runs)
    for kind in kinds:
        group = [r for r in runs if (r["method"], r["fault"], r["steps"]) == kind]
        told = [readings(run) for run in group]
        longest = [max((r.steps_in_state for r in each if r.state), default=None) for each in told]
        states = [any(r.state for r in each) for each in told]
        cells = [
            kind[0], kind[1], str(kind[2]), str(len(group)),
            str(sum(any(r.alarm for r in each) for each in told)), str(sum(states)),
            str(max((steps for steps in longest if steps is not None), default="–")),
            str(max(each[-1].returns for each in told)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--show", nargs="?", type=pathlib.Path, const=RESULTS, help="train nothing")
    options = asked.parse_args()
    source = options.show or options.out
    runs: list[Run] = []
    if source and source.exists():  # training goes on where the file ends
        runs = json.loads(source.read_text())["runs"]
    if not options.show:
        done = {(run["method"], run["fault"], run["seed"], run["steps"]) for run in runs}
        for job in JOBS:
            if job in done:
                continue
            runs.append(watch(*job))
            print(*job, flush=True)
            if options.out:
                store(runs, options.out)
    print(report(runs))


def store(runs: list[Run], path: pathlib.Path) -> None:
    settings = circumstances(threads=1) | {
        "every": EVERY, "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
    }  # fmt: skip
    rows = ",\n".join(json.dumps(run) for run in runs)
    path.write_text(f'{{"settings": {json.dumps(settings)},\n"runs": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
