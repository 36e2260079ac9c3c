"""What the overview of a run looks like: healthy ones, and each failure of the collapse benchmark.

Trains runs of benchmarks/_zoo.py (600 steps of an MLP on handwritten digits, some 20 CPU seconds each with the
looks), watches them as a plain loop does, with training images, labels and a second set of images at hand, and
writes the last `monitor/overview` of each.

    python benchmarks/gallery.py --out docs/images            # those of docs/gallery.md, by name
    python benchmarks/gallery.py --draw 10 --seed 0 --out trial   # drawn at random, without names

With `--draw` the pictures are numbered, and FOLDER/key.json says afterwards what each of them was: the trial of
docs/gallery.md.
"""

from __future__ import annotations

import json
import os
import pathlib
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _results import parser
from _zoo import RUNS, STEPS, digits, train
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.insights._drawing import as_png
from jepa_monitor.monitor.overview import plot_overview
from jepa_monitor.monitor.telling import remember_spectrum

EVERY = 60
SHOWN = {
    "healthy": ("VICReg", "healthy"),
    "dimensional": ("VICReg", "no covariance term"),
    "complete": ("VICReg", "no variance term"),
    "start": ("JEPA", "learning rate × 100"),
    "repeats": ("LeJEPA", "one image"),
}


def overview(method: str, fault: str, seed: int) -> bytes:
    """Train and watch a run, and draw its last overview."""
    known, _, held_out, labels = digits()
    monitor = DensityMonitor(
        held_out, reference=known, ood={"inverted": -held_out[:64]}, max_probe_samples=32,
        max_embedding_samples=512, polarity_samples=8, labels=labels,
    )  # fmt: skip
    watch = monitor.watch(every_n_steps=EVERY, max_overhead=None, patience_steps=STEPS // 10)
    last: list[bytes] = []

    def look(step: int, module: nn.Module, _: float, batch: Tensor | None) -> None:
        if batch is not None:
            watch.see((batch, torch.zeros(len(batch))))
        found = watch(module.encoder, step, last=step == STEPS)
        if not found or found.evaluation is None:
            return
        report = found.evaluation.report
        remember_spectrum(watch.memory, step, report.probe.singular_values, monitor.options.eps)
        if step == STEPS:
            report.scalars.update(watch.history[-1])
            figure = plot_overview(
                report.look,
                report.insights,
                report.judge(step),
                watch.history,
                watch.memory.get("spectra"),
            )
            last.append(as_png("monitor/overview", figure))

    train(method, fault, seed, look)
    return last[0]


def main() -> None:
    made = parser(__doc__, out=False)
    made.add_argument("--out", type=pathlib.Path, required=True, help="folder of the pictures")
    made.add_argument(
        "--draw", type=int, help="how many runs to draw (default: those of the documents)"
    )
    made.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    made.add_argument(
        "--only", nargs="+", choices=sorted(SHOWN), help="some of the documents' pictures"
    )
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.draw is None:
        for name in given.only or SHOWN:
            (given.out / f"gallery_{name}.png").write_bytes(overview(*SHOWN[name], seed=20))
        return
    drawn = random.Random(given.seed).choices(sorted(RUNS), k=given.draw)
    key = {}
    for n, (method, fault) in enumerate(drawn, 1):
        (given.out / f"{n:02d}.png").write_bytes(overview(method, fault, seed=20 + n))
        key[f"{n:02d}"] = {"method": method, "fault": fault, "seed": 20 + n}
        (given.out / "key.json").write_text(json.dumps(key, indent=1) + "\n")


if __name__ == "__main__":
    main()
