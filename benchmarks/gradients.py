"""What does the gradient of JEPA-SCORE cost, and is it right?

    python benchmarks/gradients.py                      # the table of docs/gradients.md
    python benchmarks/gradients.py --encoders resnet18_32 --rows 64

Models of timm with random weights, moved away from where they begin. Score alone, and score with gradients
to images and to all parameters, take turns `--repeats` times; the median of the processor's seconds
counts. The error: the slope of the mean score along random directions of images, and of all parameters,
against central differences in float64; the gradient itself is taken in float32, and once more with
`precision="float64"`. The largest relative error of `--directions` directions is shown; "none" where the
gradient is 0, as that of piecewise linear networks to images is.
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

from jepa_monitor import jepa_score

# name: (timm model, its options, side of the images)
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit_ti8_32": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    "resnet18_32": ("resnet18", {}, 32),
    "convnext_atto_64": ("convnext_atto", {}, 64),
}
STEP = 1e-6  # larger ones cross kinks of ReLU, where the score jumps


def load(name: str, count: int) -> tuple[nn.Module, Tensor]:
    """Make an encoder and its images."""
    torch.manual_seed(0)
    model, options, side = TIMM[name]
    encoder = timm.create_model(model, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5).add_(
                0.02 * torch.randn_like(parameter)
            )
    return encoder, torch.randn(count, 3, side, side)


def gradients(encoder: nn.Module, images: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Of the mean score, to images and parameters."""
    leaf = images.clone().requires_grad_()
    named = list(encoder.parameters())
    score = jepa_score(encoder, leaf, differentiable=True, **options).mean()
    found = torch.autograd.grad(score, [leaf, *named], allow_unused=True)
    pairs = zip([leaf, *named], found, strict=True)
    return [torch.zeros_like(t) if g is None else g for t, g in pairs]


def errors(
    encoder: nn.Module, images: Tensor, options: dict[str, Any], directions: int
) -> dict[str, float]:
    """Relative errors of slopes: to images and to parameters, in float32 and in float64."""
    precise = options | {"precision": "float64"}
    found = {"float32": gradients(encoder, images, options)}
    encoder = encoder.double()
    images = images.double()
    found["float64"] = gradients(encoder, images, precise)
    tensors = [images, *encoder.parameters()]
    result: dict[str, float] = {}
    for what, chosen in (("images", slice(0, 1)), ("parameters", slice(1, None))):
        for _ in range(directions):
            moves = [torch.randn_like(t) * t.std().nan_to_num(1.0) for t in tensors[chosen]]
            slopes = []
            for sign in (1, -1):
                with torch.no_grad():
                    for tensor, move in zip(tensors[chosen], moves, strict=True):
                        tensor.add_(sign * STEP * move)
                slopes.append(float(jepa_score(encoder, images, **precise).mean()))
                with torch.no_grad():
                    for tensor, move in zip(tensors[chosen], moves, strict=True):
                        tensor.sub_(sign * STEP * move)
            expected = (slopes[0] - slopes[1]) / (2 * STEP)
            for precision, values in found.items():
                pairs = zip(values[chosen], moves, strict=True)
                slope = sum(float((g.double() * m).sum()) for g, m in pairs)
                name = f"{what}, {precision}"
                error = abs(slope / expected - 1) if slope and expected else math.inf
                result[name] = max(result.get(name, 0.0), error)
    return result


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--encoders", nargs="+", choices=list(TIMM), default=list(TIMM))
    options.add_argument("--images", type=int, default=4)
    options.add_argument("--rows", type=int, default=16, help="of a plain sketch; 0: all")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--directions", type=int, default=3)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*not whitened.*|.*piecewise linear.*")
    how: dict[str, Any] = {"method": "sketch", "rows": args.rows} if args.rows else {}
    shown = [
        f"{what}, {kind}" for what in ("images", "parameters") for kind in ("float32", "float64")
    ]
    print(
        "| encoder | rows | score, s an image | with gradient | ratio | " + " | ".join(shown) + " |"
    )
    print("|---" * (len(shown) + 5) + "|")
    for name in args.encoders:
        encoder, images = load(name, args.images)
        works = [
            partial(jepa_score, encoder, images, **how),
            partial(gradients, encoder, images, how),
        ]
        score, gradient = (time / len(images) for time in in_turns(works, args.repeats))
        wrong = errors(encoder, images[:2], how, args.directions)
        cells = [f"{score:.3g}", f"{gradient:.3g}", f"{gradient / score:.1f}"]
        cells += [f"{x:.0e}" if math.isfinite(x := wrong[each]) else "none" for each in shown]
        rows = str(args.rows or "all")
        print("| " + " | ".join([name, rows, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
