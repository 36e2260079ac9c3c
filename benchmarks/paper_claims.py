"""Do the claims of the JEPA-SCORE paper (arXiv 2510.05949) hold for our own models?

    python benchmarks/paper_claims.py lejepa=runs/lejepa/version_0/checkpoints/last.ckpt \
        vicreg=… dinov2=… ijepa=…    # JEPA_MONITOR_DATA; prints tables

For encoders that the recipes trained on the CIFAR-10 subset (`recipes/configs/*_cifar10_cpu.yaml`), on
held-out images, with exact rows:

1. Figure 1: `--sheets FOLDER` draws the least and most likely images of each class, a sheet per model.
2. Do models agree on which images are likely? Spearman correlation of the scores of the same images,
   also with how bright, how contrasted and how smooth an image is.
3. In against out of distribution: AUROC and FPR95 of JEPA-SCORE, log_density, Mahalanobis and k-NN for
   handwritten digits, noise, two classes that the law was not fitted to (the encoder did see them),
   corruptions of growing severity and, where torchvision finds it under `--root`, Fashion-MNIST.
   Beside them how Gaussian the embeddings are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import circumstances, parser, store
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from jepa_monitor import DensityMonitor, Report, ScoreOptions
from jepa_monitor.cli import ModelSettings, load_encoder
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

DETECTORS = ("jepa_score", "log_density", "mahalanobis", "knn")
KNOWN_CLASSES = 8  # of ten; the law is fitted to these, the others are held out
PARTS = {  # of a module: what is kept, and what the loss sees
    "lejepa": {"encoder": "network.encoder", "projector": "network"},
    "vicreg": {"encoder": "network.encoder", "projector": "network"},
    "dinov2": {"encoder": "teacher.backbone"},
    "ijepa": {"encoder": "target_encoder"},
}
Pixels = np.ndarray[Any, Any]


def grey_to_colour(images: Pixels) -> Pixels:
    """Repeat (N, H, W) bytes to (N, H, W, 3)."""
    return np.repeat(images[..., None], 3, axis=3)


def foreign_sets(count: int, root: str) -> dict[str, Pixels]:
    """Collect images of other domains, bytes (N, H, W, 3)."""
    digits = np.round(load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    found = {"digits": grey_to_colour(digits), "noise images": noise}
    try:
        clothes = datasets.FashionMNIST(root, train=False).data[:count]
        found["Fashion-MNIST"] = grey_to_colour(clothes.numpy())
    except RuntimeError:
        sys.stderr.write(f"Fashion-MNIST is not under {root!r}: left out.\n")
    return found


def evaluate(
    encoder: Any, prepare: Callable[[Pixels], Tensor], data: dict[str, Pixels], args: Any
) -> Report:
    """Score held-out images and all out-of-distribution sets with one encoder."""
    known = [data[f"{split}_labels"] < KNOWN_CLASSES for split in ("train", "test")]
    inside = prepare(data["test_images"][known[1]][: args.images])
    ood = {name: prepare(x) for name, x in foreign_sets(args.images, args.root).items()}
    ood["two other classes"] = prepare(data["test_images"][~known[1]][: args.images])
    for name, corrupt in CORRUPTIONS.items():
        for severity in SEVERITIES:
            ood[f"{name} {severity}"] = corrupt(inside, severity)
    monitor = DensityMonitor(
        inside,
        reference=prepare(data["train_images"][known[0]][: args.reference]),
        ood=ood,
        max_probe_samples=args.images,
        max_embedding_samples=args.reference,
        options=ScoreOptions(method="exact"),
    )
    return monitor.evaluate(encoder)


def features(images: Pixels) -> dict[str, Pixels]:
    """Say what a glance tells of images (N, H, W, 3): one number each."""
    grey = images.mean(3) / 255
    steps = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    return {"brightness": grey.mean((1, 2)), "contrast": grey.std((1, 2)), "smoothness": -steps}


def sheet(path: Path, images: Pixels, labels: Pixels, scores: Pixels, names: list[str]) -> None:
    """Draw the five least (left) and most likely images of each class."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(names), 10, figsize=(8, 0.9 * len(names)))
    for row, (name, cells) in enumerate(zip(names, axes, strict=True)):
        members = np.flatnonzero(labels == row)
        order = members[np.argsort(scores[members])]
        ends = min(5, len(order) // 2)  # no image on both sides
        for cell in cells:
            cell.set_xticks([])
            cell.set_yticks([])
        for cell in cells[ends : 10 - ends]:
            cell.set_axis_off()
        for cell, image in zip(cells[:ends], order[:ends], strict=True):
            cell.imshow(images[image])
        for cell, image in zip(cells[10 - ends :], order[len(order) - ends :], strict=True):
            cell.imshow(images[image])
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle("least likely | most likely")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("models", nargs="+", help="RECIPE=CHECKPOINT")
    options.add_argument("--images", type=int, default=300, help="of each set")
    options.add_argument("--reference", type=int, default=4096, help="images that the law is of")
    options.add_argument("--root", default="data", help="where torchvision looks")
    options.add_argument("--sheets", type=Path, help="folder for pictures")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with np.load(Path(os.environ["JEPA_MONITOR_DATA"]) / "cifar10_subset.npz") as arrays:
        data = {name: arrays[name] for name in arrays.files}
    known = data["test_labels"] < KNOWN_CLASSES
    shown = {k: data[f"test_{k}"][known][: args.images] for k in ("images", "labels")}
    scores: dict[str, Pixels] = {}
    result = circumstances(args.threads) | {"images": args.images, "models": {}}
    for recipe, path in (model.split("=", 1) for model in args.models):
        for part, attribute in PARTS[recipe].items():
            loaded = load_encoder(path, ModelSettings(encoder=attribute))
            transform = loaded.transform
            assert transform is not None

            def prepare(images: Pixels, transform: Any = transform) -> Tensor:
                return torch.stack([transform(torch.from_numpy(i).movedim(2, 0)) for i in images])

            report = evaluate(loaded.encoder, prepare, data, args)
            name = f"{recipe} {part}"
            scores[name] = report.probe.scores.numpy()
            wanted = ("ood/", "density/", "collapse/rankme")
            found = {k: round(v, 4) for k, v in report.scalars.items() if k.startswith(wanted)}
            result["models"][name] = found
            if args.sheets:
                args.sheets.mkdir(parents=True, exist_ok=True)
                classes = [str(c) for c in data["classes"][:KNOWN_CLASSES]]
                picture = args.sheets / f"{name.replace(' ', '_')}.png"
                sheet(picture, shown["images"], shown["labels"], scores[name], classes)
    columns = scores | features(shown["images"])
    result["spearman"] = {
        f"{a}, {b}": round(float(spearmanr(columns[a], columns[b]).statistic), 3)
        for a, b in combinations(columns, 2)
        if a in scores
    }
    report_tables(result)
    store(args.out, result)


def _told(name: str, value: float | None) -> str:
    return f"{name} {'not told' if value is None else f'{value:.3g}'}"


def report_tables(result: dict[str, Any]) -> None:
    """Print what the JSON file holds as Markdown."""
    models = result["models"]
    lines = ["| Spearman | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    names = dict.fromkeys(name for pair in result["spearman"] for name in pair.split(", "))
    for row in names:
        cells = [
            result["spearman"].get(f"{a}, {row}", result["spearman"].get(f"{row}, {a}", ""))
            for a in models
        ]
        lines.append(f"| {row} | " + " | ".join(str(cell) for cell in cells) + " |")
    for name, values in models.items():
        lines += [
            "",
            f"**{name}** (AUROC / FPR95)",
            "",
            "| against | " + " | ".join(DETECTORS) + " |",
        ]
        lines.append("|---" * (len(DETECTORS) + 1) + "|")
        for other in dict.fromkeys(k.split("/")[1] for k in values if k.startswith("ood/")):
            pairs = [
                [values[f"ood/{other}/{m}_{d}"] for m in ("auroc", "fpr95")] for d in DETECTORS
            ]
            lines.append(
                f"| {other} | " + " | ".join(f"{a:.2f} / {f:.2f}" for a, f in pairs) + " |"
            )
        told = ("calibration_error", "gaussianity_effect", "gaussianity_z", "precondition")
        lines.append("")
        lines.append(", ".join(_told(k, values.get(f"density/{k}")) for k in told))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
