"""What a score costs against K, the side of the image and the number of images; what folding saves; what starting costs.

    python benchmarks/cost.py                            # tables
    python benchmarks/cost.py --picture docs/images/cost.png

One thing is changed at a time: K by a linear map behind a ViT-Ti/8 at 32 px, the side with the ViT's own K of
192, the number of images at 32 px. Random weights: the cost does not depend on them. Seconds are the
processor's, the median of `--repeats` turns; an exponent is the slope of log seconds over the last two points.
Folding is 64 rows of a few images, one a backward pass against as many as the engine chooses.
Starting is measured in fresh processes, by turns, in seconds of the wall.
"""

from __future__ import annotations

import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from _results import circumstances, in_turns, parser, store, table
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian.engine import fold_of
from jepa_monitor.jacobian.rows import jacobian_rows, measure

WIDTHS = (64, 128, 256, 512)
SIDES = (32, 64, 128)
COUNTS = (1, 4, 16, 64)
# title: (timm model, its options, side), of which rows are folded
FOLDED: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT-Ti/8, 32 px": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    "ResNet-18, 32 px": ("resnet18", {}, 32),
    "ResNet-18, 64 px": ("resnet18", {}, 64),
    "ViT-Ti/16, 224 px": ("vit_tiny_patch16_224", {}, 224),
}
STARTS = {
    "import torch": ["-c", "import torch"],
    "import jepa_monitor": ["-c", "import jepa_monitor"],
    "import lightning, torchmetrics": ["-c", "import lightning, torchmetrics"],
    "JepaScoreCallback()": [
        "-c",
        "from jepa_monitor import JepaScoreCallback; JepaScoreCallback()",
    ],
    "jepa-monitor --help": ["-m", "jepa_monitor", "--help"],
}


def vit(side: int, width: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=side, patch_size=8, num_classes=0
    ).eval()
    return backbone if width is None else nn.Sequential(backbone, nn.Linear(192, width)).eval()


def images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def exact(encoder: nn.Module, batch: Tensor) -> Callable[[], object]:
    return lambda: jepa_score(encoder, batch)


def cases(most: int | None) -> dict[str, list[tuple[int, Callable[[], object]]]]:
    """What is measured, at each of its sizes."""
    few = 4 if most is None else 1
    return {
        "K": [(k, exact(vit(32, k), images(few, 32))) for k in WIDTHS[:most]],
        "side": [(side, exact(vit(side), images(1, side))) for side in SIDES[:most]],
        "images": [(n, exact(vit(32), images(n, 32))) for n in COUNTS[:most]],
    }


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the last two points on logarithmic axes."""
    if len(sizes) < 2:
        return math.nan
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def folding(title: str, count: int, repeats: int) -> tuple[int, list[float]]:
    """How many rows a pass computes for so many images, and seconds with one and with as many."""
    name, settings, side = FOLDED[title]
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0, **settings).eval()
    embedder, batch = Embedder(encoder), images(count, side)

    def rows(fold: int) -> object:
        return embedder.run(lambda: jacobian_rows(embedder, batch, asked, fold), batch.device)

    width, graph = embedder.run(lambda: measure(embedder, batch[:1]), batch.device)
    asked = torch.randn(64, width, generator=torch.Generator().manual_seed(2))
    fold = fold_of(batch.device, count, 10**6, len(asked), graph)
    return fold, in_turns([partial(rows, 1), partial(rows, fold)], repeats)


def started(repeats: int) -> dict[str, float]:
    """Seconds of the wall, in fresh processes."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(repeats):
        for name, words in STARTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def draw(results: dict[str, Any], place: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained", dpi=110)
    for axes, (name, found) in zip(figure.subplots(1, 3), results["exact"].items(), strict=True):
        axes.loglog(found["sizes"], found["seconds"], "o-", color="#0072B2", linewidth=1.4)
        axes.set_xticks(found["sizes"], [str(size) for size in found["sizes"]])
        axes.minorticks_off()
        axes.set_title(f"against {name}: exponent {found['exponent']:.2f}", fontsize=9)
        axes.set_xlabel({"K": "K", "side": "side, pixels", "images": "images"}[name], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("processor seconds", fontsize=8)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    options.add_argument("--most", type=int, help="sizes of each kind at most (default: all)")
    options.add_argument("--picture", type=pathlib.Path, help="where to draw the curves")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = circumstances(args.threads)
    results["exact"] = {}
    lines = table("against", "sizes", "processor seconds", "exponent")
    for name, sized in cases(args.most).items():
        sizes, works = zip(*sized, strict=True)
        seconds = in_turns(works, args.repeats)
        slope = exponent(sizes, seconds)
        results["exact"][name] = {"sizes": sizes, "seconds": seconds, "exponent": slope}
        shown = ", ".join(f"{value:.2g}" for value in seconds)
        lines.append(f"| {name} | {', '.join(map(str, sizes))} | {shown} | {slope:.2f} |")
    results["folding"] = {}
    lines += ["", *table("encoder", "images", "rows a pass", "times as fast")]
    for title in list(FOLDED)[: args.most]:
        for count in (1, 4, 16)[: args.most]:
            fold, (one, many) = folding(title, count, args.repeats)
            results["folding"][f"{title} × {count}"] = {"fold": fold, "seconds": [one, many]}
            lines.append(f"| {title} | {count} | {fold} | {one / many:.1f} |")
    results["start"] = started(args.repeats)
    lines += ["", *table("start", "seconds")]
    lines += [f"| `{name}` | {seconds:.2f} |" for name, seconds in results["start"].items()]
    print("\n".join(lines))
    store(args.out, results)
    if args.picture is not None:
        draw(results, args.picture)


if __name__ == "__main__":
    main()
