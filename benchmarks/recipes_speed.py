"""How much slower are the recipes than a bare PyTorch loop?

    python benchmarks/recipes_speed.py    # prints the table; --out FILE writes it

Every recipe with its settings for CIFAR-10 on a CPU (`recipes/configs/*_cifar10_cpu.yaml`), on random
images of that size: by Lightning with logging and schedules, but without monitor and k-NN, whose cost
`overhead.py` measures; and by a loop of a few lines with the same data, loss, optimiser and teacher,
and nothing else. Each run is a process of its own; both ways take turns. Seconds are of the processor on
one thread, from the 10th step on; memory is the most that the process ever held.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import circumstances, parser, store
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.recipes import dinov2, ijepa, lejepa, vicreg
from jepa_monitor.recipes.cli import parse

RECIPES: dict[str, Any] = {
    "ijepa": (ijepa.IJepa, {}),
    "lejepa": (lejepa.LeJepa, lejepa.DEFAULTS),
    "vicreg": (vicreg.VicReg, vicreg.DEFAULTS),
    "dinov2": (dinov2.DinoV2, dinov2.DEFAULTS),
}
CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
WARM = 10


class Clock(Callback):
    """Processor seconds of the steps after the first ones."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.times.append(time.process_time())


def loss_of(name: str, module: Any) -> Callable[[Any, int], torch.Tensor]:
    """Write the loss of a batch as a script would."""
    h = module.hparams
    if name == "ijepa":
        return lambda x, i: module.loss(x, module.masks(len(x), 1, i))  # type: ignore[no-any-return]
    if name == "lejepa":
        return lambda x, i: module.loss(  # type: ignore[no-any-return]
            x, slice_directions(h["projector_width"], h["slices"], i)
        )["loss"]
    if name == "vicreg":
        return lambda x, _: module.loss(x)["loss"]  # type: ignore[no-any-return]

    def dinov2_loss(views: Any, step: int) -> torch.Tensor:
        grid = dinov2.patch_grid(views.global_crops[0], h["patch_size"])
        masks = module.masks(len(views.global_crops) * views.batch_size, grid, 0, step)
        return module.loss(views, masks, 0.04)["loss"]  # type: ignore[no-any-return]

    return dinov2_loss


def bare(name: str, cli: Any, steps: int) -> list[float]:
    """Train without Lightning."""
    module, data = cli.model, cli.datamodule
    data.setup()
    module.total_steps = steps
    optimizer, loss = module.configure_optimizers(), loss_of(name, module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    times = []
    loader = DataLoader(data.train_set, data.batch_size, shuffle=True, drop_last=True)
    for step, (images, _) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss(images, step).backward()
        if name == "dinov2":
            torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        module.after_step(module.scheduled(step))  # moves a teacher, where there is one
        times.append(time.process_time())
    return times


def fitted(cli: Any) -> list[float]:
    """Train with Lightning, as the recipe does."""
    clock = Clock()
    kept = [c for c in cli.trainer.callbacks if type(c).__module__.startswith("lightning.")]
    cli.trainer.callbacks = [*kept, clock]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return clock.times


def work(name: str, way: str, steps: int, images: str) -> None:
    """Measure one run in this process."""
    cls, defaults = RECIPES[name]
    folder = str(Path(images).parent)
    arguments = [
        *("--config", str(CONFIGS / f"{name}_cifar10_cpu.yaml"), "--data", f"npz:{images}"),
        *("--data.num_workers", "0", "--trainer.max_steps", str(steps)),
        *("--trainer.accelerator", "cpu", "--trainer.logger.init_args.save_dir", folder),
        *("--trainer.enable_model_summary", "false", "--trainer.limit_val_batches", "0"),
    ]
    cli = parse(cls, name, 1, arguments, defaults)
    times = bare(name, cli, steps) if way == "bare" else fitted(cli)
    seconds = (times[-1] - times[WARM - 1]) / (len(times) - WARM)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    sys.stdout.write(json.dumps({"seconds": seconds, "mib": peak}) + "\n")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options.add_argument("--steps", type=int, default=40, help=f"of each run, over {WARM}")
    options.add_argument("--repeats", type=int, default=3, help="turns of both ways")
    options.add_argument("--one", nargs=3, metavar=("RECIPE", "WAY", "IMAGES"), help="one run")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        work(args.one[0], args.one[1], args.steps, args.one[2])
        return
    rows: dict[str, Any] = circumstances(args.threads) | {"steps": args.steps}
    print("| recipe | bare loop, s per step | recipe | ratio (each turn) | memory |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        images = str(Path(folder) / "noise.npz")
        noise = np.random.default_rng(0).integers(0, 256, (12_000, 32, 32, 3), dtype=np.uint8)
        classes = np.arange(12_000) % 10
        np.savez(
            images,
            train_images=noise[:10_000],
            train_labels=classes[:10_000],
            test_images=noise[10_000:],
            test_labels=classes[10_000:],
        )
        for name in args.recipes:
            found: dict[str, list[dict[str, float]]] = {"bare": [], "recipe": []}
            for _ in range(args.repeats):
                for way, results in found.items():
                    command = [sys.executable, __file__, "--one", name, way, images]
                    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    results.append(json.loads(done.stdout.splitlines()[-1]))
            pairs = list(zip(found["recipe"], found["bare"], strict=True))
            ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
            memory = statistics.median(a["mib"] / b["mib"] for a, b in pairs)
            rows[name] = found | {"ratio": statistics.median(ratios), "memory_ratio": memory}
            times = [statistics.median(r["seconds"] for r in found[w]) for w in ("bare", "recipe")]
            each = ", ".join(f"{r:.3f}" for r in ratios)
            cells = [name, *(f"{t:.3f}" for t in times), f"{rows[name]['ratio']:.3f} ({each})"]
            print("| " + " | ".join([*cells, f"{memory:.2f} x"]) + " |", flush=True)
    store(args.out, rows)


if __name__ == "__main__":
    main()
