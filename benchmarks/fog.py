"""Joint embedding or reconstruction of foggy images, with and without fog among the views? docs/advise.md.

    JEPA_MONITOR_DATA=… python benchmarks/fog.py --seeds 2

Images: the first 2,000 training and 1,000 held-out images of the CIFAR-10 subset, 32 pixels, as they are (clean) and
with one draw of CIFAR-10-C's fog of severity 5 each, which stays. The recipes VICReg and MAE train on the one or the
other; `inject` adds `--data.inject fog:1` or `fog:2`, a draw of its own for every view, to the foggy images; the
control adds it to the clean ones. k-NN accuracy (k = 20) of held-out images, clean or foggy as those that are learned
from, among the training images, of the raw pixels, before training and after: mean and standard deviation over seeds.
The gain of injection is the difference of both, seed by seed; its 95 % interval is that over held-out images, of each
of which the seeds are averaged.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _encoders import data_folder, load_pixels
from _results import circumstances, parser, points, spread, store, table
from torch import Tensor

from jepa_monitor.probes.common_corruptions import corrupt
from jepa_monitor.recipes.cli import parse
from jepa_monitor.recipes.evaluation import OnlineKNN
from jepa_monitor.recipes.mae import DEFAULTS as MAE_DEFAULTS
from jepa_monitor.recipes.mae import Mae
from jepa_monitor.recipes.vicreg import DEFAULTS as VICREG_DEFAULTS
from jepa_monitor.recipes.vicreg import VicReg

SEVERITY = 5
RECIPES: dict[str, tuple[Any, Any, list[str]]] = {
    "vicreg": (
        VicReg,
        VICREG_DEFAULTS,
        [
            *("--data.crop_scale", "0.4", "--model.stem", "conv"),
            *("--model.patch_size", "8", "--model.width", "128", "--model.depth", "2"),
            *("--model.heads", "4", "--model.learning_rate", "2e-3"),
        ],
    ),
    "mae": (
        Mae,
        MAE_DEFAULTS,
        [
            *("--data.crop_scale", "0.4", "--model.width", "96", "--model.depth", "3"),
            *("--model.heads", "3", "--model.learning_rate", "2e-3"),
        ],
    ),
}
ARMS = (("clean", None), ("clean", "inject"), ("foggy", None), ("foggy", "inject"))


def write_images(folder: Path, train: int, test: int) -> dict[str, Path]:
    """Save the images as they are and in fog, in the form that recipes read."""
    found = load_pixels(data_folder())
    parts = {"train": found.train[:train], "test": found.test[:test]}
    labels = {
        "train_labels": np.asarray(found.train_labels[:train]),
        "test_labels": np.asarray(found.test_labels[:test]),
    }
    paths = {}
    for name in ("clean", "foggy"):
        arrays = {}
        for seed, (split, images) in enumerate(parts.items()):
            generator = torch.Generator().manual_seed(seed)
            seen = images if name == "clean" else corrupt(images, "fog", SEVERITY, generator)
            pixels = (255 * seen).round().byte().permute(0, 2, 3, 1)
            arrays[f"{split}_images"] = pixels.numpy()
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], **arrays, **labels)
    return paths


def run(
    name: str, images: Path, inject: str | None, seed: int, epochs: int, folder: Path
) -> dict[str, Any]:
    """Train one recipe without the monitor, and give what k-NN tells of it."""
    recipe, defaults, options = RECIPES[name]
    words = [
        *("--data", f"npz:{images}", "--data.image_size", "32", "--data.batch_size", "64"),
        *("--seed_everything", str(seed), "--trainer.max_epochs", str(epochs)),
        *("--trainer.accelerator", "cpu", "--trainer.logger", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.default_root_dir", str(folder), *options),
        *(["--data.inject", inject] if inject else []),
    ]
    made = parse(recipe, name, epochs, words, defaults)
    knn = next(c for c in made.trainer.callbacks if isinstance(c, OnlineKNN))
    knn.every_n_epochs, knn.linear = epochs, False
    made.trainer.callbacks = [knn]
    before: dict[str, Tensor] = {}
    start = time.process_time()

    def first(trainer: Any, pl_module: Any) -> None:
        OnlineKNN.on_train_start(knn, trainer, pl_module)
        before.update(knn.latest)

    knn.on_train_start = first  # type: ignore[method-assign]
    made.trainer.limit_val_batches = 0
    made.trainer.fit(made.model, datamodule=made.datamodule)
    tag = "eval/knn_accuracy"
    return {
        "pixels": knn.pixels[tag],
        "before": before[tag],
        "after": knn.latest[tag],
        "minutes": (time.process_time() - start) / 60,
    }


def percent(values: list[float]) -> str:
    return f"{spread([100 * value for value in values], 1)} %"


def gained(differences: Tensor) -> str:
    """Say how many points the mean of differences is, with its interval over images (n,)."""
    mean = differences.mean().item()
    half = 1.96 * differences.std().item() / len(differences) ** 0.5
    return points(mean, half)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=2, help="(default: %(default)s)")
    options.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    options.add_argument("--train", type=int, default=2_000, help="images (default: %(default)s)")
    options.add_argument("--test", type=int, default=1_000, help="images (default: %(default)s)")
    options.add_argument("--inject", default="fog:2", help="(default: %(default)s)")
    options.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    rows = []
    heads = ("raw pixels", "before", "after", "gain of injection", "minutes")
    print("\n".join(table("recipe", "images", "injected", *heads)))
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_images(Path(temporary), args.train, args.test)
        for name in args.recipes:
            without: list[Tensor] = []
            for images, injected in ARMS:
                inject = args.inject if injected else None
                runs = [
                    run(name, paths[images], inject, seed, args.epochs, Path(temporary))
                    for seed in range(args.seeds)
                ]
                hits = {
                    when: [found[when].double().mean().item() for found in runs]
                    for when in ("pixels", "before", "after")
                }
                told = ""
                if injected:
                    after = torch.stack([found["after"] for found in runs]).double()
                    told = gained(after.mean(0) - torch.stack(without).double().mean(0))
                without = [found["after"] for found in runs]
                minutes = statistics.mean(found["minutes"] for found in runs)
                cells = [
                    f"{100 * hits['pixels'][0]:.1f} %",
                    *map(percent, [hits["before"], hits["after"]]),
                ]
                print(
                    f"| {name} | {images} | {inject or '-'} | {' | '.join(cells)} | {told} | {minutes:.1f} |",
                    flush=True,
                )
                rows.append(
                    {"recipe": name, "images": images, "inject": inject, **hits, "minutes": minutes}
                )
    store(args.out, circumstances(args.threads) | {"epochs": args.epochs, "rows": rows})


if __name__ == "__main__":
    main()
