"""How large does rounding make singular values that are zero? The 2 ε σ₁ of `noise_floor`.

    python benchmarks/noise_floor.py    # prints the table; --out FILE writes it

Encoders with random weights that end in a LayerNorm: whatever goes in, their Jacobians have exactly
singular directions. The smallest singular value of the float32 Jacobian is therefore pure rounding
error. It is given in units of ε σ₁, ε = 2⁻²³, beside the spectral norm of the whole rounding error
(float32 minus float64 Jacobian).
"""

from __future__ import annotations

import timm
import torch
from _results import circumstances, parser, store
from torch import nn

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian.rows import jacobian_rows

EPS = torch.finfo(torch.float32).eps


def scaled(encoder: nn.Module, factor: float) -> nn.Module:
    """Multiply all matrices, which makes the Jacobian worse conditioned."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return encoder


def encoders() -> dict[str, tuple[nn.Module, int]]:
    """Encoders and the side of their images."""
    torch.manual_seed(0)

    def vit() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8)

    mlp = nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 256),
        nn.GELU(),
        nn.Linear(256, 256),
        nn.GELU(),
        nn.Linear(256, 64),
        nn.LayerNorm(64),
    )
    convnext = timm.create_model("convnext_atto", num_classes=0)
    return {
        "ViT-Ti/8": (vit(), 32),
        "ViT-Ti/8, weights × 4": (scaled(vit(), 4.0), 32),
        "ConvNeXt-Atto": (convnext, 32),
        "MLP": (mlp, 8),
    }


def rows(encoder: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The Jacobians, (B, K, D), in float64, computed in ``dtype``."""
    embedder = Embedder(encoder, dtype=dtype)
    inputs = images.to(dtype)
    return embedder.run(lambda: jacobian_rows(embedder, inputs, None)[1], images.device).double()


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    results = circumstances(args.threads)
    print("| encoder | K | smallest singular value / ε σ₁ | norm of the rounding error / ε σ₁ |")
    print("|---|---|---|---|")
    for name, (encoder, side) in encoders().items():
        images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
        single = rows(encoder.eval(), images, torch.float32)
        exact = rows(encoder, images, torch.float64)
        largest = torch.linalg.svdvals(exact)[:, 0]
        smallest = torch.linalg.svdvals(single)[:, -1] / (EPS * largest)
        error = torch.linalg.matrix_norm(single - exact, 2) / (EPS * largest)
        results[name] = {"smallest": smallest.tolist(), "error": error.tolist()}
        spans = [f"{v.min().item():.2f} to {v.max().item():.2f}" for v in (smallest, error)]
        print(f"| {name} | {single.shape[1]} | {spans[0]} | {spans[1]} |", flush=True)
    store(args.out, results)


if __name__ == "__main__":
    main()
