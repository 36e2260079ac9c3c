"""How well do sketches order the images of the I-JEPA recipe's own run? A table of docs/sketching.md.

    python -m jepa_monitor.recipes.ijepa --config recipes/configs/ijepa_digits.yaml        # trains; 4 minutes on two cores
    python benchmarks/sketch_recipe.py runs/ijepa/version_0/checkpoints/last.ckpt

Spearman correlation with the exact score, mean and range over five seeds of the sketch: on 100 held-out
digits, and on these with 100 outliers (inverted, blurred, of shuffled pixels, and noise; 25 each).
"""

from __future__ import annotations

import torch
from _results import parser
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor import jepa_score
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.ijepa import IJepa

ROWS = (8, 16, 24, 32)
SEEDS = range(5)


def outliers(images: Tensor) -> Tensor:
    """Four kinds of outliers, (100, 1, H, W), from 100 images."""
    generator = torch.Generator().manual_seed(0)
    inverted, blurred, shuffled, noise = images.split(25)
    order = torch.randperm(images[0].numel(), generator=generator)
    return torch.cat(
        [
            -inverted,
            F.avg_pool2d(blurred, 7, stride=1, padding=3),
            shuffled.flatten(1)[:, order].view_as(shuffled),
            torch.randn(noise.shape, generator=generator),
        ]
    )


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("checkpoint", help="of the I-JEPA recipe")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = ImageDataModule("digits", image_size=24)
    data.setup()
    seen = torch.stack([data.train_set[(1, i)][0] for i in range(1000)])
    held_out = torch.stack([data.val_set[i][0] for i in range(200)])
    images = torch.cat([held_out[:100], outliers(held_out[100:])])
    trained = IJepa.load_from_checkpoint(args.checkpoint, map_location="cpu").target_encoder.eval()
    torch.manual_seed(0)
    print("| training | R of 64 rows | held-out images | with outliers |")
    print("|---|---|---|---|")
    for name, encoder in (("before", IJepa(depth=6).target_encoder.eval()), ("after", trained)):
        with torch.no_grad():
            law = Gaussian.fit(torch.cat([encoder(batch) for batch in seen.split(100)]))
        exact = jepa_score(encoder, images)
        for rows in ROWS:
            sketches = [
                jepa_score(encoder, images, method="sketch", rows=rows, reference=law, seed=seed)
                for seed in SEEDS
            ]
            cells = []
            for part in (slice(100), slice(None)):
                found = [spearmanr(exact[part], sketch[part]).statistic for sketch in sketches]
                mean = sum(found) / len(found)
                cells.append(f"{mean:.3f} ({min(found):.3f} to {max(found):.3f})")
            print(f"| {name} | {rows} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
