"""Small encoders that the benchmarks train themselves, and the images to look at them with."""

from __future__ import annotations

import copy
import gzip
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.recipes.networks import set_stem

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
METHODS = ("lejepa", "vicreg", "ema")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's `dataset-fashion-mnist`


class Images(NamedTuple):
    """Images (N, 3, 32, 32), float32, with their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Snapshot(NamedTuple):
    """A training run at one step: copies in eval mode, whose parameters need no gradients."""

    step: int
    encoder: nn.Module
    projector: nn.Module


def data_folder() -> Path:
    """The folder with `cifar10_subset.npz`, from the environment."""
    folder = os.environ.get("JEPA_MONITOR_DATA")
    if not folder:
        raise SystemExit("Set JEPA_MONITOR_DATA to a folder with cifar10_subset.npz.")
    return Path(folder)


def normalise(pixels: Tensor) -> Tensor:
    """Scale pixels in [0, 1], (N, 3, H, W), to zero mean and unit variance a channel."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def load_images(folder: Path) -> Images:
    """Read the subset of CIFAR-10, normalised."""
    with np.load(folder / "cifar10_subset.npz") as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "classes"}
    train, test = (
        normalise(found[f"{split}_images"].permute(0, 3, 1, 2).float() / 255)
        for split in ("train", "test")
    )
    return Images(train, found["train_labels"], test, found["test_labels"])


def load_pixels(folder: Path) -> Images:
    """Read the subset of CIFAR-10 as pixels from 0 to 1."""
    found = load_images(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return found._replace(train=found.train * std + mean, test=found.test * std + mean)


def fashion_images(count: int, part: str = "t10k", folder: Path = FASHION) -> Tensor:
    """Read the first images of Fashion-MNIST, bytes (n, 28, 28)."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    return torch.from_numpy(pixels.reshape(count, 28, 28).copy())


def fashion_labels(count: int, part: str = "t10k", folder: Path = FASHION) -> Tensor:
    """Read the labels of the same, (n,), int64."""
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return torch.from_numpy(labels.copy()).long()


def in_colour(images: Tensor) -> Tensor:
    """Pad bytes (n, 28, 28) to 32 pixels, from 0 to 1, in three equal channels."""
    return F.pad(images[:, None].float() / 255, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def outliers(images: Tensor, fashion: Tensor) -> dict[str, Tensor]:
    """Five sets of outliers: other images, and four corruptions of images of the data set.

    Args:
        images: Normalised images, (5n or more, 3, H, W); no image serves twice.
        fashion: Normalised images of another data set, (n, 3, H, W).

    Returns:
        n images by name of the set.
    """
    n = len(fashion)
    generator = torch.Generator().manual_seed(0)
    shuffled, inverted, noise, blurred = images[: 4 * n].split(n)
    rows, columns = (torch.randperm(size, generator=generator) for size in images.shape[2:])
    pixels = torch.rand(noise.shape, generator=generator)
    white = normalise(torch.ones(1, 3, 1, 1))
    black = normalise(torch.zeros(1, 3, 1, 1))
    offsets = torch.arange(-6, 7)
    kernel = torch.exp(-offsets.square() / (2 * 2.0**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return {
        "fashion": fashion,
        "shuffled": shuffled[:, :, rows][..., columns],
        "inverted": white + black - inverted,
        "noise": normalise(pixels),
        "blur": F.conv2d(
            F.pad(blurred, (6, 6, 6, 6), mode="reflect"), kernel.expand(3, 1, -1, -1), groups=3
        ),
    }


def vit(depth: int = 4, stem: str = "patch") -> nn.Module:
    """A ViT-Ti/8 for 32 pixels whose embedding is the class token, K = 192; a stem of the recipes."""
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, depth=depth
    )
    set_stem(made, stem, 3)
    return made


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width, following))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(following), nn.ReLU()]
    return nn.Sequential(*layers)


def augment(images: Tensor, generator: torch.Generator, colours: bool = True) -> Tensor:
    """Crop 30 to 100 % of the area, mirror, change brightness, contrast and colours at random.

    Args:
        images: (N, C, H, W).
        generator: What draws.
        colours: Whether to change more than the place.

    Returns:
        (N, C, H, W).
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    side = uniform(0.3, 1.0).sqrt()
    mirror = uniform(-1, 1).sign()
    shift = [uniform(-1, 1) * (1 - side) for _ in "xy"]
    zero = torch.zeros_like(side)
    transform = [
        torch.cat(row, -1) for row in ((side * mirror, zero, shift[0]), (zero, side, shift[1]))
    ]
    grid = F.affine_grid(
        torch.cat([row.view(-1, 1, 3) for row in transform], 1), list(images.shape), False
    )
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if not colours:
        return views
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * torch.where(uniform(0, 1) < 0.2, 0.0, uniform(0.6, 1.4))
    average = views.mean((1, 2, 3), keepdim=True)
    return average + (views - average) * uniform(0.6, 1.4) + uniform(-0.4, 0.4)


def sigreg(z: Tensor, generator: torch.Generator, slices: int = 256) -> Tensor:
    """Epps-Pulley distance of random projections to N(0, 1), times N (arXiv 2511.08544)."""
    directions = torch.randn(z.shape[1], slices, generator=generator)
    t = torch.linspace(0, 3, 17)
    normal = torch.exp(-t.square() / 2)
    angles = (z @ F.normalize(directions, dim=0))[..., None] * t
    distance = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return 2 * len(z) * torch.trapezoid(distance * normal, t, dim=-1).mean()


def lejepa_loss(first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Invariance of two views and SIGReg of each, weighted 0.95 and 0.05."""
    centre = (first + second) / 2
    invariance = ((first - centre).square().mean() + (second - centre).square().mean()) / 2
    return 0.95 * invariance + 0.05 * (sigreg(first, generator) + sigreg(second, generator)) / 2


def vicreg_loss(first: Tensor, second: Tensor) -> Tensor:
    """Invariance, variance and covariance terms weighted 25, 25 and 1 (arXiv 2105.04906)."""
    loss = 25 * F.mse_loss(first, second)
    for z in (first, second):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)
        loss = loss + 12.5 * F.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
        off = covariance - torch.diag(covariance.diagonal())
        loss = loss + off.square().sum() / z.shape[1]
    return loss


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False)


def train(
    method: str,
    images: Tensor,
    stages: tuple[int, ...],
    *,
    batch_size: int = 64,
    seed: int = 0,
    stem: str = "patch",
) -> Iterator[Snapshot]:
    """Train an encoder with two views an image.

    Args:
        method: `lejepa`, `vicreg` or `ema` (a predictor of what a slow copy of the encoder makes of
            the other view, after BYOL).
        images: Normalised training images.
        stages: Steps after which to yield, ascending; 0 is the untrained encoder.
        batch_size: Images in a batch.
        seed: Of the weights, the order of the images and the augmentations.
        stem: How patches become tokens: `patch`, `conv` (GroupNorm) or `conv_batchnorm`.

    Yields:
        The encoder and its projector (to 64 dimensions) at each stage.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder, projector = vit(stem=stem), mlp(192, 512, 512, 64)
    student = nn.Sequential(encoder, projector)
    learning: list[nn.Module] = [student]
    step_teacher: Callable[[], None] | None = None
    if method == "ema":
        teacher, predictor = copy.deepcopy(student).requires_grad_(False), mlp(64, 512, 64)
        learning.append(predictor)

        def step_teacher() -> None:
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)

    parameters = [p for module in learning for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1e-3, max(stages[-1], 1), pct_start=0.1, cycle_momentum=False
    )
    for step in range(stages[-1] + 1):
        if step in stages:
            yield Snapshot(step, _frozen(encoder), _frozen(projector))
        if step == stages[-1]:
            return
        batch = images[torch.randint(len(images), (batch_size,), generator=generator)]
        views = torch.cat([augment(batch, generator), augment(batch, generator)])
        z = student(views)
        first, second = z.chunk(2)
        if method == "lejepa":
            loss = lejepa_loss(first, second, generator)
        elif method == "vicreg":
            loss = vicreg_loss(first, second)
        else:
            with torch.no_grad():
                target = teacher(views).roll(batch_size, 0)
            loss = 2 - 2 * F.cosine_similarity(predictor(z), target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step_teacher is not None:
            step_teacher()


def knn_accuracy(
    bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, k: int = 20
) -> float:
    """Share of queries that the majority of their k nearest neighbours (cosine) classifies right."""
    similarity = F.normalize(queries - bank.mean(0)) @ F.normalize(bank - bank.mean(0)).T
    votes = labels[similarity.topk(k).indices].mode(1).values
    return float((votes == truth).double().mean())
