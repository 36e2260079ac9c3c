"""How far are scores from the truth? Against a float64 Jacobian and LAPACK's singular values.

    python benchmarks/score_agreement.py    # prints the table; --out FILE writes it

The truth is the listing of arXiv 2510.05949, app. B, in float64, image by image. Encoders have random
weights, drawn anew for each seed, and so have the images, four a seed. Given is the largest difference
of all seeds and images, in nats, of the plain listing in float32, of `jepa_score` as it is by default
(float32, the singular values that float32 cannot resolve computed again in float64), and of
`jepa_score(..., precision="float64")`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm
import torch
from _results import circumstances, parser, store
from score_speed import plain
from torch import Tensor, nn

from jepa_monitor import jepa_score

EPS = 1e-6


def mlp(inputs: int, outputs: int, *after: nn.Module, width: int = 24) -> nn.Sequential:
    """A small perceptron."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs), *after
    )


def with_statistics(encoder: nn.Module) -> nn.Module:
    """Give BatchNorm layers the running statistics of a trained network."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def timm_model(name: str, **options: int) -> nn.Module:
    """A model of timm without a classifier."""
    return timm.create_model(name, num_classes=0, **options)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ViT (timm test_vit), 32 px": (
        lambda: timm_model("test_vit", img_size=32, patch_size=8),
        32,
    ),
    "ConvNeXt (test_convnext), 32 px": (lambda: timm_model("test_convnext"), 32),
    "ResNet (test_resnet), 32 px": (lambda: with_statistics(timm_model("test_resnet")), 32),
    "MLP": (lambda: mlp(48, 8), 4),
    "MLP of rank 5": (lambda: mlp(48, 16, width=5), 4),
    "MLP that ends in a LayerNorm": (lambda: mlp(48, 16, nn.LayerNorm(16)), 4),
}


def truth(encoder: nn.Module, images: Tensor) -> Tensor:
    """The listing in float64."""
    wide = copy.deepcopy(encoder).double()
    scores = []
    for image in images.double():
        jacobian = torch.autograd.functional.jacobian(lambda x: wide(x[None])[0], image)
        scores.append(torch.linalg.svdvals(jacobian.flatten(1)).clamp_min(EPS).log().sum())
    return torch.stack(scores)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = circumstances(args.threads) | {"seeds": args.seeds}
    print(
        "| encoder | K | the listing in float32 | `jepa_score` | in float64 |\n|---|---|---|---|---|"
    )
    for name, (build, side) in ENCODERS.items():
        worst = {"plain": 0.0, "float32": 0.0, "float64": 0.0}
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            encoder = build().eval()
            images = torch.randn(4, 3, side, side)
            expected = truth(encoder, images)
            width = encoder(images[:1]).shape[1]
            found = {
                "plain": plain(encoder, images),
                "float32": jepa_score(encoder, images),
                "float64": jepa_score(encoder, images, precision="float64"),
            }
            for way, scores in found.items():
                worst[way] = max(worst[way], (scores - expected).abs().max().item())
        results[name] = worst
        cells = " | ".join(f"{value:.2g}" for value in worst.values())
        print(f"| {name} | {width} | {cells} |", flush=True)
    store(args.out, results)


if __name__ == "__main__":
    main()
