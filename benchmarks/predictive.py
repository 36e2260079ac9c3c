"""Do directions by which I-JEPA predicts tell the class? The recipe on its textures, at the start and after training.

    python benchmarks/predictive.py

Pairs of the mean of a context's tokens and that of a hidden block's, four an image, of 512 held-out textures; their classes beside
shuffled ones.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from _results import parser, store, table
from torch import Tensor

from jepa_monitor.functional import Perception, predictive_overlap
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.ijepa import IJepa


def held_out(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """Textures that training does not see, and their classes."""
    data.prepare_data()
    data.setup("fit")
    images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    return images[:512], labels[:512]


def look(module: IJepa, images: Tensor, labels: Tensor, k: int) -> Perception:
    module.eval()
    pairs = module.predictive_pairs(images, module.masks(len(images), 0))
    with torch.no_grad():
        embeddings = module.encoder(images)
    return predictive_overlap(*pairs, embeddings, labels, k=k)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=20, help="(default: %(default)s)")
    options.add_argument("--seeds", type=int, default=2, help="runs (default: %(default)s)")
    options.add_argument("-k", type=int, default=8, help="directions (default: %(default)s)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for seed in range(args.seeds):
        pl.seed_everything(seed, verbose=False)
        data, module = ImageDataModule(crop_scale=1.0), IJepa(seed=seed)
        images, labels = held_out(data)
        found = {0: look(module, images, labels, args.k)}
        run = pl.Trainer(
            max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_model_summary=False,
        )  # fmt: skip
        run.fit(module.train(), data)
        found[args.epochs] = look(module, images, labels, args.k)
        results += [(seed, done, each) for done, each in found.items()]
    print("\n".join(table("seed", "epochs", "overlap", "k/d", "shuffled classes")))
    for seed, done, each in results:
        shuffled = f"{each.null:.3f} ± {each.null_std:.3f}"
        print(f"| {seed} | {done} | {each.value:.3f} | {each.chance:.3f} | {shuffled} |")
    rows = [
        {"seed": seed, "epochs": done, "value": float(each.value), "null": float(each.null)}
        for seed, done, each in results
    ]
    store(args.out, {"k": args.k, "rows": rows})


if __name__ == "__main__":
    main()
