"""What does the monitor say of a latent world model with and without SIGReg? docs/recipes/world.md.

    python benchmarks/world.py

Trains the world-model recipe with its defaults (λ = 0.1), without SIGReg (λ = 0), and without SIGReg and BatchNorm, three seeds each,
on the same clips, and prints the last look at 256 held-out clips, the step at which the alarm of a collapse began, and what linear probes read of where
the sprites are before training, at their best and at the end.
"""

from __future__ import annotations

import pathlib
import tempfile

import torch
from _results import circumstances, parser, spread, store, table

from jepa_monitor.recipes.world import Settings, train

COLUMNS = {
    "world/error": ("error", "{:.3f}"),
    "world/error_still": ("standing still", "{:.3f}"),
    "world/drift_4": ("4 steps ahead", "{:.3f}"),
    "world/action_share": ("saved by actions", "{:.2f}"),
    "world/surprise": ("cut told", "{:.3f}"),
    "world/rankme": ("RankMe", "{:.1f}"),
    "world/gaussianity": ("SIGReg statistic", "{:.1f}"),
    "world/straightness": ("straightness", "{:.2f}"),
}

ARMS = {  # weight of SIGReg, and norm of the encoder
    "SIGReg": (0.1, "batch"),
    "without": (0.0, "batch"),
    "without, no norm": (0.0, "none"),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--epochs", type=int, default=Settings.epochs, help="of each run")
    options.add_argument("--clips", type=int, default=Settings.clips, help="to train on")
    options.add_argument("--held_out", type=int, default=256, help="clips that are not")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    heads = ["trained", "seed", *(head for head, _ in COLUMNS.values()), "alarm at step"]
    heads += [f"{name}: before, best, end" for name in ("disc", "square")]
    print("\n".join(table(*heads)))
    results = []
    for arm in args.arms:
        ends = []
        for seed in args.seeds:
            settings = Settings(*ARMS[arm], clips=args.clips, epochs=args.epochs, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                run = train(settings, pathlib.Path(folder), looks=6, held_out=args.held_out)
            last = run.looks[-1]
            cells = [
                form.format(last[tag]) if tag in last else "–" for tag, (_, form) in COLUMNS.items()
            ]
            read = [
                [place[f"eval/{name}_r2"] for place in run.places] for name in ("disc", "square")
            ]
            told = [f"{r2[0]:.2f}, {max(r2):.2f}, {r2[-1]:.2f}" for r2 in read]
            alarm = "none" if run.alarm is None else str(run.alarm)
            print(f"| {arm} | {seed} | {' | '.join([*cells, alarm, *told])} |", flush=True)
            ends.append([r2[-1] for r2 in read])
            results.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "looks": run.looks,
                    "places": run.places,
                    "alarm": run.alarm,
                }
            )
        disc, square = zip(*ends, strict=True)
        print(f"\n{arm}: R² of the disc {spread(disc)}, of the square {spread(square)}\n")
    store(args.out, {**circumstances(args.threads), "runs": results})


if __name__ == "__main__":
    main()
