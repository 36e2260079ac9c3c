"""What tells whether a sketch can be trusted: halves of its rows, or a few exact scores (docs/sketching.md).

    OMP_NUM_THREADS=1 JEPA_MONITOR_DATA=… python benchmarks/sketch_trust.py

Small encoders on CIFAR-10 (cifar10_subset.npz), untrained and after 200 steps of VICReg; 80 held-out
images with all rows and with sketches, mean over 4 draws of the rows.
"""

from __future__ import annotations

import argparse
import os
import pathlib

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.trust import sketch_agreement


def _conv(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, width))


def _mlp(width: int) -> nn.Module:
    layers = [nn.Linear(3072, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(256, width))


def _view(images: Tensor) -> Tensor:
    across, down = torch.randint(-3, 4, (2,)).tolist()
    gain = 1 + 0.2 * torch.randn(len(images), 1, 1, 1)
    return images.roll((across, down), (2, 3)) * gain + 0.1 * torch.randn_like(images)


def _train(encoder: nn.Module, images: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (128,))]
        views = encoder(_view(batch)), encoder(_view(batch))
        loss = 25 * (views[0] - views[1]).square().mean()
        for z in views:
            centred = z - z.mean(0)
            covariance = centred.T @ centred / (len(z) - 1)
            off = covariance - covariance.diagonal().diag()
            loss += 25 * (1 - (centred.var(0) + 1e-4).sqrt()).relu().mean()
            loss += off.square().sum() / z.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval().requires_grad_(False)


def _grams(encoder: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    embeddings = encoder(leaf)
    rows = [
        torch.autograd.grad(embeddings[:, k].sum(), leaf, retain_graph=True)[0].flatten(1)
        for k in range(embeddings.shape[1])
    ]
    jacobians = torch.stack(rows, 1).double()
    return jacobians @ jacobians.mT


def _row(grams: Tensor, law: Gaussian, rows: int) -> str:
    exact = 0.5 * torch.linalg.slogdet(grams).logabsdet
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(len(grams[0]), rows, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(draw).Q.T @ law.whitening
        whole, one, two = (
            0.5 * torch.linalg.slogdet(part @ grams @ part.T).logabsdet
            for part in (basis, basis[::2], basis[1::2])
        )
        # Rulon's reliability of two halves; its root is the correlation that it implies.
        halves = (1 - float((one - two).var() / (one + two).var())) ** 0.5
        eight = sketch_agreement(whole[:8], exact[:8], rows, grams.shape[1]).correlation
        pearson = float(torch.corrcoef(torch.stack([whole, exact]))[0, 1])
        found.append((spearmanr(whole, exact).statistic, pearson, halves, eight))
    means = " | ".join(f"{value:.2f}" for value in np.mean(found, axis=0))
    return f"{rows} | {float(exact.std()):.1f} | {means}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    data = np.load(pathlib.Path(os.environ["JEPA_MONITOR_DATA"]) / "cifar10_subset.npz")
    images, held_out = (
        (torch.from_numpy(data[name][:3000]).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25
        for name in ("train_images", "test_images")
    )
    print("| encoder | steps | K | R | spread | Spearman | Pearson | halves say | 8 exact say |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make, count in (
        ("convolutions", _conv, 0),
        ("convolutions", _conv, steps),
        ("MLP", _mlp, steps),
    ):
        for width in (64, 192):
            torch.manual_seed(1)
            encoder = _train(make(width), images, count)
            with torch.no_grad():
                law = Gaussian.fit(encoder(images[:1000]))
            grams = _grams(encoder, held_out[:80])
            for rows in sorted({16, 32, width // 2}):
                print(f"| {name} | {count} | {width} | {_row(grams, law, rows)} |", flush=True)


if __name__ == "__main__":
    main()
