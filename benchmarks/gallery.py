"""What the overview of a run looks like: healthy ones, and each failure of the collapse benchmark.

Trains runs of benchmarks/_zoo.py (600 steps of an MLP on handwritten digits, about a CPU minute each with the
looks), watches them as a plain loop does, with training images, labels and a second set of images at hand, and
writes the last `monitor/overview` of each, and with `--pages` the page of each run too.

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
from jepa_monitor.monitor.run_page import RunRecord, keep_ends, run_page
from jepa_monitor.monitor.telling import settings_of

EVERY = 60
SHOWN = {  # four of the trial's ten, with their seeds
    "healthy": ("VICReg", "healthy", 27),
    "dimensional": ("JEPA", "EMA momentum 0", 28),
    "complete": ("LeJEPA", "SIGReg weight 0", 30),
    "repeats": ("LeJEPA", "one image", 22),
}


def watched(method: str, fault: str, seed: int) -> tuple[bytes, str]:
    """Train and watch a run; give its last overview and its page."""
    known, _, held_out, labels = digits()
    monitor = DensityMonitor(
        held_out, reference=known, ood={"inverted": -held_out[:64]}, max_probe_samples=32,
        max_embedding_samples=512, polarity_samples=8, labels=labels,
    )  # fmt: skip
    watch = monitor.watch(every_n_steps=EVERY, max_overhead=None, patience_steps=STEPS // 10)
    last: list[bytes] = []
    pictures: dict[str, dict[int, bytes]] = {}

    def look(step: int, module: nn.Module, _: float, batch: Tensor | None) -> None:
        if batch is not None:
            watch.see((batch, torch.zeros(len(batch))))
        found = watch(module.encoder, step, last=step == STEPS)
        if not found or found.evaluation is None:
            return
        report = found.evaluation.report
        for tag, drawn in report.figures().items() if step in (0, STEPS) else ():
            keep_ends(pictures.setdefault(tag, {}), step, as_png(tag, drawn))
        if step == STEPS:
            last.append(as_png("monitor/overview", watch.overview()))

    train(method, fault, seed, look)
    name = f"{method}, {fault}"
    settings = settings_of(monitor)
    return last[0], run_page([RunRecord(name, ".", watch.history, settings, pictures)])


def main() -> None:
    made = parser(__doc__, out=False)
    made.add_argument("--out", type=pathlib.Path, required=True, help="folder of the pictures")
    made.add_argument(
        "--draw", type=int, help="how many runs to draw (default: those of the documents)"
    )
    made.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    made.add_argument("--pages", type=pathlib.Path, help="folder for pages (default: none)")
    made.add_argument(
        "--only", nargs="+", choices=sorted(SHOWN), help="some of the documents' pictures"
    )
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    for folder in filter(None, (given.out, given.pages)):
        folder.mkdir(parents=True, exist_ok=True)
    if given.draw is None:
        for name in given.only or SHOWN:
            picture, page = watched(*SHOWN[name])
            (given.out / f"gallery_{name}.png").write_bytes(picture)
            if given.pages:
                (given.pages / f"{name}.html").write_text(page)
        return
    drawn = random.Random(given.seed).choices(sorted(RUNS), k=given.draw)
    key = {}
    for n, (method, fault) in enumerate(drawn, 1):
        (given.out / f"{n:02d}.png").write_bytes(watched(method, fault, seed=20 + n)[0])
        key[f"{n:02d}"] = {"method": method, "fault": fault, "seed": 20 + n}
        (given.out / "key.json").write_text(json.dumps(key, indent=1) + "\n")


if __name__ == "__main__":
    main()
