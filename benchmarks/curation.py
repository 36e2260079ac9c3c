"""What do the scores of a data set find? Trouble is planted in handwritten digits and looked for.

    python -m jepa_monitor.recipes.ijepa
    python benchmarks/curation.py --model runs/ijepa/version_0/checkpoints/last.ckpt

Images are handwritten digits, most of which the encoder was trained on. Foreign images are CIFAR-10's
in grey, from the folder JEPA_MONITOR_DATA; corrupted ones are other digits with noise, blur or shuffled
tiles, at the highest severity of `jepa_monitor.corruptions`. Nothing is told to a score: the law of the
embeddings, k-NN and the isolation forest see the data with the trouble in them. Exact rows; a fixed
encoder.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from jepa_monitor import jepa_score
from jepa_monitor.cli import load_encoder
from jepa_monitor.corruptions import CORRUPTIONS
from jepa_monitor.functional.neighbors import knn_distance
from jepa_monitor.gaussian import Gaussian

CLEAN, PLANTED, DRAWS = 400, 60, 20
SHARES = (0.01, 0.05, 0.10)


def detectors(z: torch.Tensor, score: torch.Tensor) -> dict[str, np.ndarray]:
    """Score images by everything; higher is more usual."""
    law = Gaussian.fit(z)
    prior = law.log_prob(z)
    forest = IsolationForest(random_state=0).fit(z.numpy())
    return {
        "jepa_score": score.numpy(),
        "log_density": (score + prior).numpy(),
        "mahalanobis": prior.numpy(),  # the same order
        "knn": -knn_distance(z, z, 10, exclude_self=True).numpy(),
        "isolation forest": forest.score_samples(z.numpy()),
    }


def find(clean: tuple, trouble: dict[str, tuple]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Average precision and precision at k of each detector, over draws of what is planted."""
    generator, results = np.random.default_rng(0), {}
    for kind, (z, score) in trouble.items():
        for share in SHARES:
            count = round(share * CLEAN)
            precisions: dict[str, list[tuple[float, float]]] = {}
            for _ in range(DRAWS):
                chosen = generator.choice(len(z), count, replace=False)
                both = [
                    torch.cat([one, other[chosen]])
                    for one, other in zip(clean, (z, score), strict=True)
                ]
                truth = np.arange(CLEAN + count) >= CLEAN
                for name, values in detectors(both[0], both[1]).items():
                    least = np.argsort(values, kind="stable")[:count]
                    pair = average_precision_score(truth, -values), truth[least].mean()
                    precisions.setdefault(name, []).append(pair)
            results[f"{kind}, {share:.0%}"] = {
                name: {
                    "average precision": np.mean([p for p, _ in pairs]),
                    "standard deviation": np.std([p for p, _ in pairs]),
                    "precision at k": np.mean([p for _, p in pairs]),
                }
                for name, pairs in precisions.items()
            }
    return results


def probe(clean: tuple, foreign: tuple, labels: np.ndarray, test: tuple) -> dict[str, list[float]]:
    """Accuracy of a linear probe after 10 % foreign images of random labels, and their dropping."""
    generator, results = np.random.default_rng(0), {}
    count = round(SHARES[-1] * CLEAN)
    for _ in range(DRAWS):
        chosen = generator.choice(len(foreign[0]), count, replace=False)
        z, score = (
            torch.cat([one, other[chosen]]) for one, other in zip(clean, foreign, strict=True)
        )
        y = np.concatenate([labels, generator.integers(0, 10, count)])
        orders = {name: np.argsort(values) for name, values in detectors(z, score).items()}
        orders["at random"] = generator.permutation(len(z))
        orders["nothing dropped"] = np.r_[[-1] * count, np.arange(len(z))]
        orders["the planted ones"] = np.arange(len(z))[::-1].copy()
        for name, order in orders.items():
            kept = order[count:]
            mean, std = z[kept].mean(0), z[kept].std(0).clamp_min(1e-6)
            model = LogisticRegression(max_iter=300).fit(((z[kept] - mean) / std).numpy(), y[kept])
            accuracy = model.score(((test[0] - mean) / std).numpy(), test[1])
            results.setdefault(name, []).append(accuracy)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", required=True, help="a checkpoint of the I-JEPA recipe, on digits"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loaded = load_encoder(options.model)
    prepare = loaded.transform
    assert prepare is not None

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(1).permutation(len(pixels))
    images = torch.stack([prepare(Image.fromarray(pixels[i]).convert("RGB")) for i in order])
    labels = digits.target[order]
    archive = np.load(Path(os.environ["JEPA_MONITOR_DATA"]) / "cifar10_subset.npz")
    photos = [Image.fromarray(one) for one in archive["test_images"][:PLANTED]]
    others = images[CLEAN : CLEAN + PLANTED]
    worse = {name: corrupt(others, 3) for name, corrupt in CORRUPTIONS.items()}
    sets = {"foreign": torch.stack([prepare(photo) for photo in photos]), **worse}

    def embed(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return loaded.encoder(batch).double()

    scored = {
        name: (embed(batch), jepa_score(loaded.encoder, batch))
        for name, batch in {"clean": images[:CLEAN], **sets}.items()
    }
    clean = scored.pop("clean")
    results = find(clean, scored)
    names = list(next(iter(results.values())))
    print("average precision (precision at k)\n| planted |", " | ".join(names), "|")
    for kind, row in results.items():
        cells = (f"{v['average precision']:.2f} ({v['precision at k']:.2f})" for v in row.values())
        print(f"| {kind} |", " | ".join(cells), "|")
    test = slice(CLEAN + PLANTED, None)
    accuracies = probe(
        clean, scored["foreign"], labels[:CLEAN], (embed(images[test]), labels[test])
    )
    for name, values in accuracies.items():
        print(f"| {name} | {np.mean(values):.3f} | {np.std(values):.3f} |")
    means = {name: [np.mean(values), np.std(values)] for name, values in accuracies.items()}
    options.out.write_text(json.dumps({"found": results, "probe": means}, indent=1) + "\n")


if __name__ == "__main__":
    main()
