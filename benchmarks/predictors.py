"""Which number, without labels, tells the good checkpoints of a run from the bad ones?

    python benchmarks/predictors.py lejepa --seed 0 --out runs    # one file a run and seed
    python benchmarks/predictors.py --judge runs/*.json           # the tables of docs/advice.md

"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _encoders import data_folder, load_images, normalise
from _predictor_runs import RUNS, Checkpoint, checkpoints
from _results import circumstances
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.encoders.tokens import encoder_tokens
from jepa_monitor.functional import knn_predict, ridge_predict

FASHION = Path("/usr/share/datasets/fashion-mnist")
STEPS = (0, 4, 8, *range(15, 301, 15))
PATIENCE = 60
TARGETS = ("knn", "linear", "patches", "transfer")
PROBE, SCORED, HELD_OUT = 512, 12, 128


class Labelled:
    """What the targets are measured on; no predictor sees it."""

    def __init__(self, folder: Path) -> None:
        data = load_images(folder)
        self.training = data.train[:8000]
        self.probe = data.test[:PROBE]
        known, asked = data.train[8000:], data.test[PROBE:]
        self.known, self.known_labels = known, data.train_labels[8000:]
        self.asked, self.asked_labels = asked, data.test_labels[PROBE:]
        self.clothes, self.clothes_labels = fashion(2000)

    def accuracies(self, encoder: nn.Module) -> dict[str, float]:
        """Measure the four targets, each on both halves of its test set."""
        (known, patches), (asked, asked_patches), (clothes, _) = (
            embed(encoder, images) for images in (self.known, self.asked, self.clothes)
        )
        shared = (known, self.known_labels, asked)
        names, n = self.clothes_labels, len(clothes) // 2
        # A patch's class is its image's: can a single token, of any place, tell it?
        told = [
            knn_predict(patches[:, 0], self.known_labels, asked_patches[:, i]) == self.asked_labels
            for i in range(2)
        ]
        right = {
            "knn": knn_predict(*shared) == self.asked_labels,
            "linear": ridge_predict(*shared) == self.asked_labels,
            "patches": torch.stack(told, 1).double().mean(1),
            "transfer": knn_predict(clothes[:n], names[:n], clothes[n:]) == names[n:],
        }
        return {
            f"{name}_{half}": float(f"{hits[half::2].double().mean():.4f}")
            for name, hits in right.items()
            for half in (0, 1)
        }


def fashion(count: int) -> tuple[Tensor, Tensor]:
    """Read test images of Fashion-MNIST, padded to 32 pixels in three equal channels, and labels."""
    with gzip.open(FASHION / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    with gzip.open(FASHION / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    grey = torch.from_numpy(pixels.reshape(count, 1, 28, 28).copy()).float() / 255
    images = normalise(F.pad(grey, (2, 2, 2, 2)).expand(-1, 3, -1, -1))
    return images, torch.from_numpy(labels.copy()).long()


def embed(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed images: the mean of the patch tokens, as all encoders here pool, and two tokens each."""
    tokens = torch.cat([encoder_tokens(encoder, [encoder], x).patches for x in images.split(256)])
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(tokens.shape[1], (len(tokens), 2), generator=generator)
    return tokens.mean(1), tokens[torch.arange(len(tokens))[:, None], places]


def spectrum_shape(singular_values: Tensor) -> float:
    """Mean of log σ less half the log of the mean σ²: JEPA-SCORE a row of a Jacobian of unit scale."""
    values = singular_values.double().clamp_min(1e-6)
    return float((values.log().mean(1) - values.square().mean(1).log() / 2).mean())


def run(name: str, seed: int, out: Path) -> None:
    """Train one run, look at its checkpoints, and keep predictors and targets."""
    began = time.process_time()
    data = Labelled(data_folder())
    held_out = data.asked[-HELD_OUT:]
    monitor = DensityMonitor(
        data.probe,
        reference=data.training[:PROBE],
        max_probe_samples=SCORED,
        max_embedding_samples=PROBE,
        labels=None,
        detectors=(),
        insights=["dimension", "tokens"],
        options=ScoreOptions(method="exact"),
    )
    watch = monitor.watch(max_overhead=None, patience_steps=PATIENCE, strict=True)
    looks: list[dict[str, float]] = []
    targets: list[dict[str, float]] = []
    for at in checkpoints(name, seed, data.training, held_out, STEPS):
        t = time.process_time()
        monitor.online = at.online
        look = watch(at.encoder, at.step)
        assert look.evaluation is not None
        t1 = time.process_time()
        targets.append(data.accuracies(at.encoder))
        t2 = time.process_time()
        found = dict(look.scalars)
        values = look.evaluation.report.look.probe.singular_values
        found |= {
            "step": float(at.step), "loss": at.loss, "loss/held_out": at.held_out_loss,
            "jacobian/level_free": spectrum_shape(values),
        }  # fmt: skip
        looks.append({tag: float(f"{value:.5g}") for tag, value in found.items() if keeps(tag)})
        print(at.step, round(at.loss, 3), targets[-1], round(t1 - t, 1), round(t2 - t1, 1), round(t-began,1), file=sys.stderr, flush=True)
    tags = list(dict.fromkeys(tag for look in looks for tag in look))
    result = {
        "run": name, "seed": seed, "cpu_seconds": round(time.process_time() - began),
        "settings": circumstances(threads=1),
        "targets": {n: [t[n] for t in targets] for n in targets[0]},
        "looks": {tag: [look.get(tag) for look in looks] for tag in tags},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}-{seed}.json").write_text(json.dumps(result) + "\n")


def keeps(tag: str) -> bool:
    """Say whether a tag is worth its place in the file."""
    return not tag.startswith(("monitor/", "data/", "outliers/")) and not tag.endswith(("_low", "_high"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
