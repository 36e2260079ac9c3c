"""Images a second of `jepa-monitor score`, beside the plain method, in one interleaved run.

    python benchmarks/scoring_throughput.py          # prints the table
    python benchmarks/scoring_throughput.py --cases vit_ti8_32 --repeats 5 --out FILE    # updates FILE

Both read the same PNG files. *Plain* takes one image at a time, one `torch.autograd.grad` for each of
the K outputs and `torch.linalg.svdvals`, and knows nothing else of an image. The command embeds the
reference (the images themselves), scores by all five scores, keeps every batch on the disk and writes
the table; its check of polarity, 144 images more once a run, is switched off. They take turns, the
first of which is not counted, and the median of the ratios counts. On a CPU, seconds are those of the
processor, which other work on the machine disturbs least. Random weights: the cost does not depend on
them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from _results import circumstances, kept, parser, store
from PIL import Image
from score_speed import clock, plain
from torch import Tensor, nn
from torchvision.transforms import v2

from jepa_monitor.cli.entry import main as jepa_monitor_main

# name: (timm model, its options, side, images, turns)
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "vit_ti8_32": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32, 16, 3),
    "vit_ti8_64": ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 8}, 64, 4, 3),
    "vit_s16_224": ("vit_small_patch16_224", {}, 224, 2, 1),
}

prepare = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


@functools.cache
def build(case: str) -> nn.Module:
    torch.manual_seed(0)
    name, options, *_ = CASES[case]
    return timm.create_model(name, num_classes=0, **options).eval()


Encoder = tuple[nn.Module, Callable[[Image.Image], Tensor]]


# What the command loads, as `--model scoring_throughput:NAME`.
def vit_ti8_32() -> Encoder:
    return build("vit_ti8_32"), prepare


def vit_ti8_64() -> Encoder:
    return build("vit_ti8_64"), prepare


def vit_s16_224() -> Encoder:
    return build("vit_s16_224"), prepare


def score_plainly(case: str, folder: Path, device: str) -> None:
    model = build(case).to(device)
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            plain(model, prepare(image.convert("RGB"))[None].to(device))


def score_by_command(case: str, folder: Path, device: str, method: str) -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as silence:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            silence.enter_context(redirect(io.StringIO()))
        words = (
            f"score --model scoring_throughput:{case} --method {method} --device {device}".split()
        )
        status = jepa_monitor_main(
            [
                *words,
                "--data",
                str(folder),
                "--out",
                f"{place}/s.parquet",
                "--polarity-samples",
                "0",
            ]
        )
    if status:
        raise RuntimeError(f"jepa-monitor score has failed with status {status}")


def measure(case: str, images: int | None, repeats: int | None, device: str) -> dict[str, Any]:
    _, _, side, count, turns = CASES[case]
    count, turns = images or count, repeats or turns
    methods: dict[str, Callable[..., None]] = {
        "plain": score_plainly,
        "exact": functools.partial(score_by_command, method="exact"),
        "auto": functools.partial(score_by_command, method="auto"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    probe = torch.zeros(1, device=device)
    with tempfile.TemporaryDirectory() as place:
        generator = np.random.default_rng(0)
        for i in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{place}/{i:04d}.png")
        for turn in range(turns + 1):
            for name, method in methods.items():
                start = clock(probe)
                method(case, Path(place), device)
                if turn:  # the first one builds the model and imports
                    seconds[name].append(clock(probe) - start)
    pairs = {name: zip(each, seconds["plain"], strict=True) for name, each in seconds.items()}
    return {
        "images": count,
        "K": build(case).num_features,
        "images a second": {n: count / statistics.median(each) for n, each in seconds.items()},
        "ratio to plain": {n: statistics.median(p / t for t, p in pairs[n]) for n in pairs},
        "turns": turns,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--repeats", type=int, default=None, help="instead of the case's own")
    options.add_argument("--images", type=int, default=None, help="instead of the case's own")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = kept(args.out, circumstances(args.threads, args.device))  # other cases stay
    print("| encoder | K | plain | exact | auto |\n|---|---|---|---|---|")
    for case in args.cases:
        found = results[case] = measure(case, args.images, args.repeats, args.device)
        rates, ratios = found["images a second"], found["ratio to plain"]
        cells = [f"{rates[n]:.3g}/s ({ratios[n]:.2f} ×)" for n in ("plain", "exact", "auto")]
        print(
            f"| {case}, {found['images']} images | {found['K']} | {' | '.join(cells)} |", flush=True
        )
        store(args.out, results)


if __name__ == "__main__":
    main()
