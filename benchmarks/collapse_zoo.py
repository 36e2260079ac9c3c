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
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _results import circumstances, parser, store_runs
from _zoo import RUNS, STEPS, digits, train
from _zoo_rules import EVERY, PATIENCE, REPORTED, TUNING, Run, final
from _zoo_tables import draw, report
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.functional import knn_predict
from jepa_monitor.functional.collapse import rankme
from jepa_monitor.functional.detection import auroc
from jepa_monitor.functional.isotropic import isotropic_baseline
from jepa_monitor.monitor.alarm import collapse_measures
from jepa_monitor.monitor.training_images import TrainingImages

RESULTS = pathlib.Path(__file__).with_suffix(".json")
SCORED = (0, 60, 300, STEPS)


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
                    about = {"steps": STEPS, "every": EVERY, "patience": PATIENCE}
                    store_runs(options.out, circumstances(threads=1) | about, runs)
    print(report(runs))
    if options.pictures:
        draw(runs, options.pictures)


if __name__ == "__main__":
    main()
