"""What a look costs with all threads, with one, and with those that it chooses, on idle and busy cores.

    python benchmarks/threads.py    # half a minute to some minutes; --out FILE writes the table

A busy core is one on which a process of this script computes. Each number is the median of three
looks at a small ViT (64 scored images and 256 of reference, 32 px), in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time

import timm
import torch
from _results import circumstances, parser, store

from jepa_monitor import DensityMonitor
from jepa_monitor.encoders.threads import using_threads
from jepa_monitor.monitor import monitor as looks


def _busy() -> None:
    while True:
        pass


def measure(threads: int) -> dict[str, float]:
    """Time looks in turn; seconds by what the threads were."""
    torch.manual_seed(0)
    encoder = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=4, embed_dim=96,
        num_heads=3,
    )  # fmt: skip
    monitor = DensityMonitor(torch.rand(64, 3, 32, 32), reference=torch.rand(256, 3, 32, 32))
    seconds: dict[str, list[float]] = {"all": [], "one": [], "chosen": []}
    choice = looks.fitting_threads
    for _ in range(3):
        for name, found in seconds.items():
            # For the first two the choice is between a number and itself.
            count = 1 if name == "one" else threads
            if name != "chosen":
                looks.fitting_threads = lambda *_, count=count: using_threads(count)
            started = time.perf_counter()
            with using_threads(count):
                monitor.evaluate(encoder)
            found.append(time.perf_counter() - started)
            looks.fitting_threads = choice
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(threads=os.cpu_count())
    arguments = made.parse_args()
    results = circumstances(arguments.threads) | {"load": os.getloadavg()[0]}
    for state, count in (("idle", 0), ("busy", os.cpu_count() or 1)):
        others = [multiprocessing.Process(target=_busy, daemon=True) for _ in range(count)]
        for other in others:
            other.start()
        results[state] = measure(arguments.threads)
        for other in others:
            other.terminate()
    print(f"| cores | all {arguments.threads} threads | one | chosen |\n|---|---|---|---|")
    for state in ("idle", "busy"):
        figures = (f"{results[state][name]:.1f} s" for name in ("all", "one", "chosen"))
        print(f"| {state} | {' | '.join(figures)} |")
    store(arguments.out, results)


if __name__ == "__main__":
    main()
