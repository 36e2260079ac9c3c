"""Does the score equal the known log-density? The table of docs/theory.md.

    python benchmarks/known_density.py --jobs 6       # trains every encoder, prints the table
    python benchmarks/known_density.py --show [FILE]  # the table of stored results

Each run has one thread, whatever `--threads` says.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _results import circumstances, parser, spread, store

from jepa_monitor.recipes.densities import NAMES, make_density
from jepa_monitor.recipes.known_density import METHODS, SCORES, Settings, compare, train

RESULTS = Path(__file__).with_suffix(".json")
SHAPES = ((2, 2), (8, 8), (16, 16), (32, 32), (2, 8), (8, 16), (16, 32), (8, 64))
# VICReg makes no claim about the law of the embeddings: fewer shapes show what follows.
VICREG_SHAPES = ((2, 2), (8, 8), (8, 16))
LABELS = ("JEPA-SCORE", "log_prior", "k-NN", "log_density")


class Case(NamedTuple):
    """One training run."""

    method: str
    density: str
    dim: int
    width: int
    seed: int


def cases(seeds: int) -> list[Case]:
    """All runs of the table, seed by seed."""
    return [
        Case(method, density, *shape, seed)
        for seed, shape, density, method in product(range(seeds), SHAPES, NAMES, METHODS)
        if method == "sigreg" or shape in VICREG_SHAPES
    ]


def measure(case: Case) -> dict[str, Any]:
    """Train and compare once."""
    torch.set_num_threads(1)
    started = time.process_time()
    density = make_density(case.density, case.dim)
    encoder = train(density, case.width, Settings(case.method, seed=case.seed))
    found = compare(encoder, density, case.seed).agreement()
    shrunk = compare(encoder, density, case.seed, "ledoit_wolf").agreement()["log_density"]
    found["ledoit_wolf"] = shrunk  # the log-density under the other law of the embeddings
    return {
        **case._asdict(),
        "cpu_seconds": round(time.process_time() - started, 1),
        **{
            f"{score}/{name}": round(float(value), 4)
            for score, agreement in found.items()
            for name, value in agreement._asdict().items()
        },
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, one row a case, in Markdown."""
    head = ["method", "density", "D → K", "seeds", *(f"{label}: ρ" for label in LABELS)]
    head += ["log_density: r", "slope", "under Ledoit-Wolf: ρ", "slope"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, (dim, width), density in product(METHODS, SHAPES, NAMES):
        of_case = [
            run
            for run in runs
            if (run["method"], run["density"], run["dim"], run["width"])
            == (method, density, dim, width)
        ]
        if not of_case:
            continue

        def cell(key: str, of_case: list[dict[str, Any]] = of_case) -> str:
            values = [run[key] for run in of_case]
            return spread(values)

        keys = [f"{score}/spearman" for score in SCORES]
        keys += ["log_density/pearson", "log_density/slope"]
        keys += ["ledoit_wolf/spearman", "ledoit_wolf/slope"]
        cells = [method, density, f"{dim} → {width}", f"{len(of_case)}", *map(cell, keys)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--cases", type=int, help="only so many, the first")
    options.add_argument("--show", nargs="?", type=Path, const=RESULTS, help="train nothing")
    chosen = options.parse_args()
    runs: list[dict[str, Any]] = []
    if chosen.show:
        runs = json.loads(chosen.show.read_text())["runs"]
    else:
        todo = cases(chosen.seeds)[: chosen.cases]
        with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
            for done, run in enumerate(pool.map(measure, todo), 1):
                runs.append(run)
                print(f"{done}/{len(todo)}", json.dumps(run), flush=True)
                settings = {
                    k: v for k, v in vars(Settings()).items() if k not in ("seed", "method")
                }
                store(chosen.out, circumstances(1) | {"settings": settings, "runs": runs})
    print(table(runs))
    print(f"{sum(run['cpu_seconds'] for run in runs) / 60:.0f} minutes of one core")


if __name__ == "__main__":
    main()
