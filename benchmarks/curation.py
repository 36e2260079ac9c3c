"""What do the scores of a data set find? Trouble is planted in handwritten digits and looked for.

    for seed in 0 1; do python -m jepa_monitor.recipes.ijepa --config recipes/configs/ijepa_digits.yaml --seed_everything $seed; done
    python benchmarks/curation.py --first runs/ijepa/version_0/checkpoints/last.ckpt \
        --second runs/ijepa/version_1/checkpoints/last.ckpt

Images are handwritten digits, most of which the encoders were trained on. Foreign images are CIFAR-10's
in grey, from the folder JEPA_MONITOR_DATA; corrupted ones are other digits with noise, blur or shuffled
tiles, at the highest severity of `jepa_monitor.probes.corruptions`. Near-duplicates are images of the set
itself, moved by a pixel or darkened; wrong labels are drawn from the other nine. Nothing is told to a
score: the law of the embeddings, k-NN and the isolation forest see the data with the trouble in them.

Images are scored as `jepa-monitor score` scores a set that is its own reference, by the detectors of the
registry: those that learn from examples learn from a drawn part of the set, trouble and all.

There are two halves without a digit, a photo or an encoder in common (name several of each to average
over them). The rule that tells outliers (a score and the width of its fence) is chosen on the first and
measured on the second; both encoders learned from the same digits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import circumstances, parser, store
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from jepa_monitor import ScoreOptions
from jepa_monitor.cli import Settings, load_encoder
from jepa_monitor.cli.fits import fit_all
from jepa_monitor.cli.reference import Law
from jepa_monitor.detectors import DETECTORS, ScoredSet, choose_detectors, most_scored
from jepa_monitor.encoders import Embedder
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.neighbors import knn_distance
from jepa_monitor.functional.outliers import robust_fence
from jepa_monitor.jacobian.rows import jacobian_rows
from jepa_monitor.jacobian.score import density_terms
from jepa_monitor.jacobian.sketch import sketch_matrix
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.trust import settle
from jepa_monitor.probes.corruptions import CORRUPTIONS

CLEAN, PLANTED, DRAWS = 400, 60, 5
SHARES = (0.01, 0.05, 0.10)
FENCES = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0)
SHOWN = ("combined, 3", "log_density, 5", "mahalanobis, 5", "knn, 3", "jepa_score, 3")

Values = dict[str, np.ndarray]


class Scored(NamedTuple):
    """Images, their embeddings (N, K), and J Jᵀ of their Jacobians (N, K, K), which has any sketch."""

    images: Tensor
    embeddings: Tensor
    gram: Tensor

    def plus(self, other: Scored, rows: np.ndarray) -> Scored:
        """Add some of other images."""
        pairs = zip(self, other, strict=True)
        return Scored(*(torch.cat([mine, theirs[rows]]) for mine, theirs in pairs))


class Half(NamedTuple):
    """What one encoder makes of one half of the images."""

    clean: Scored
    labels: np.ndarray
    trouble: dict[str, Scored]
    copies: dict[str, Scored]  # of the first images of `clean`, in their order
    test: tuple[Tensor, np.ndarray]


def sketched(data: Scored, rows: Tensor, options: ScoreOptions, law: Gaussian) -> Spectra:
    """Take the singular values of some images, as the command takes them."""
    z = data.embeddings[rows]
    basis = sketch_matrix(options, z.shape[1], data.images[0].numel(), law)
    gram = data.gram[rows] if basis is None else basis @ data.gram[rows] @ basis.T
    values = torch.linalg.eigvalsh(gram).flip(1).clamp_min(0).sqrt()
    return Spectra(z, values, torch.zeros(len(z)), torch.zeros(len(z)), basis)


def detectors(data: Scored) -> Values:
    """Score images by everything, as the command does where they are their own reference."""
    z = data.embeddings
    law, numbers = Gaussian.fit(z), torch.arange(len(z))
    drawn = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    learned = drawn[: most_scored(len(z), Settings().reference_scored, 0)]
    options, _ = settle(
        ScoreOptions(method="auto"), drawn, lambda rows, how: sketched(data, rows, how, law)
    )
    found = sketched(data, numbers, options, law)
    terms = density_terms(found, law, options.eps)
    within = torch.ones(len(z), dtype=torch.bool)
    known = ScoredSet(
        data.images,
        z,
        terms.jepa_score,
        terms.log_density,
        found.singular_values,
        found.noise_floors,
        within,
    )
    reference = Law(z, numbers, z, law, learned, own=True)
    fits = fit_all(
        choose_detectors(DETECTORS), reference, known.take(learned), learned, len(learned)
    )
    forest = IsolationForest(random_state=0).fit(z.numpy())
    return {
        **{name: values.numpy() for name, values in fits.score(known, numbers).items()},
        "isolation forest": forest.score_samples(z.numpy()),
    }


def label_detectors(z: Tensor, labels: np.ndarray) -> Values:
    """Score labels by embeddings: by the distance of Lee et al. (arXiv 1807.03888), and by k-NN."""
    y = torch.from_numpy(labels)
    means = torch.stack([z[y == c].mean(0) for c in range(10)])
    within = Gaussian.fit(z - means[y])
    distances = torch.stack([within.mahalanobis_squared(z - mean) for mean in means], 1)
    own = distances.gather(1, y[:, None])[:, 0]
    others = distances.scatter(1, y[:, None], torch.inf).min(1).values
    apart = torch.cdist(z, z).fill_diagonal_(torch.inf)
    neighbours = y[apart.topk(10, largest=False).indices]
    return {
        "own class": -own.numpy(),
        "own against next class": (others - own).numpy(),
        "neighbours of its label": (neighbours == y[:, None]).double().mean(1).numpy(),
    }


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average dictionaries of numbers, however deep."""
    return {
        key: means([row[key] for row in rows])
        if isinstance(rows[0][key], dict)
        else float(np.mean([row[key] for row in rows]))
        for key in rows[0]
    }


def found(truth: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """How well the lowest values tell the trouble."""
    least = np.argsort(values, kind="stable")[: truth.sum()]
    precision = float(average_precision_score(truth, -values))
    return {"average precision": precision, "precision at k": float(truth[least].mean())}


def under_fence(values: np.ndarray, width: float) -> np.ndarray:
    return values < float(robust_fence(torch.from_numpy(values), width))


def flagged(truth: np.ndarray, values: np.ndarray) -> dict[str, dict[str, float]]:
    """What lies under each fence: precision, recall, F1, and the share of sound images."""
    results = {}
    for width in FENCES:
        under = under_fence(values, width)
        right = int((under & truth).sum())
        results[f"{width:g}"] = {
            "precision": right / under.sum() if under.any() else 1.0,
            "recall": right / truth.sum(),
            "F1": 2 * right / (under.sum() + truth.sum()),
            "sound images flagged": float(under[~truth].mean()),
        }
    return results


def look_for_trouble(half: Half, generator: np.random.Generator) -> dict[str, Any]:
    """Plant what does not belong to the set."""
    results = {}
    for kind, other in half.trouble.items():
        for share in SHARES:
            count, draws = round(share * CLEAN), []
            truth = np.arange(CLEAN + count) >= CLEAN
            for _ in range(DRAWS):
                chosen = generator.choice(PLANTED, count, replace=False)
                scores = detectors(half.clean.plus(other, chosen))
                draws.append(
                    {n: {**found(truth, v), "fence": flagged(truth, v)} for n, v in scores.items()}
                )
            results[f"{kind}, {share:.0%}"] = means(draws)
    return results


def look_for_copies(half: Half, generator: np.random.Generator) -> dict[str, Any]:
    """Plant near-duplicates; what is to be found are the copies and their originals alike."""
    results = {}
    for kind, copies in half.copies.items():
        for share in SHARES:
            count, draws = round(share * CLEAN), []
            for _ in range(DRAWS):
                chosen = generator.choice(PLANTED, count, replace=False)
                truth = np.isin(np.arange(CLEAN + count), chosen)
                truth[CLEAN:] = True
                data = half.clean.plus(copies, chosen)
                nearest = knn_distance(data.embeddings, data.embeddings, 1, exclude_self=True)
                ends = {"nearest neighbour": nearest.numpy()}
                for name, values in detectors(data).items():
                    ends |= {f"{name}, low end": values, f"{name}, high end": -values}
                draws.append({name: found(truth, values) for name, values in ends.items()})
            results[f"{kind}, {share:.0%}"] = means(draws)
    return results


def look_for_labels(half: Half, generator: np.random.Generator) -> dict[str, Any]:
    """Make some labels wrong."""
    results, blind = {}, detectors(half.clean)
    for share in SHARES:
        count, draws = round(share * CLEAN), []
        for _ in range(DRAWS):
            chosen = generator.choice(CLEAN, count, replace=False)
            labels = half.labels.copy()
            labels[chosen] = (labels[chosen] + generator.integers(1, 10, count)) % 10
            truth = np.isin(np.arange(CLEAN), chosen)
            scores = {**blind, **label_detectors(half.clean.embeddings, labels)}
            draws.append({name: found(truth, values) for name, values in scores.items()})
        results[f"{share:.0%}"] = means(draws)
    return results


def probe(half: Half, generator: np.random.Generator) -> dict[str, float]:
    """Accuracy of a linear probe after 10 % foreign images of random labels, and their dropping."""
    draws, count = [], round(SHARES[-1] * CLEAN)
    test, truth = half.test
    for _ in range(DRAWS):
        data = half.clean.plus(half.trouble["foreign"], generator.choice(PLANTED, count, False))
        z, y = data.embeddings, np.concatenate([half.labels, generator.integers(0, 10, count)])
        orders = {name: np.argsort(values) for name, values in detectors(data).items()}
        orders["at random"] = generator.permutation(len(z))
        orders["nothing"] = np.r_[[-1] * count, np.arange(len(z))]
        orders["the planted ones"] = np.arange(len(z))[::-1].copy()
        accuracies = {}
        for name, order in orders.items():
            kept = order[count:]
            mean, std = z[kept].mean(0), z[kept].std(0).clamp_min(1e-6)
            model = LogisticRegression(max_iter=300).fit(((z[kept] - mean) / std).numpy(), y[kept])
            accuracies[name] = float(model.score(((test - mean) / std).numpy(), truth))
        draws.append(accuracies)
    return means(draws)


def digit_images(prepare: Callable[[Image.Image], Tensor], pixels: np.ndarray) -> Tensor:
    return torch.stack([prepare(Image.fromarray(one).convert("RGB")) for one in pixels])


def look_through(model: str, number: int) -> Half:
    """Embed and score one half of the images by an encoder."""
    loaded = load_encoder(model)
    prepare = loaded.transform
    assert prepare is not None
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.images))
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[order]
    labels = digits.target[order]
    start = number * (CLEAN + PLANTED)
    clean = pixels[start : start + CLEAN]
    others = digit_images(prepare, pixels[start + CLEAN : start + CLEAN + PLANTED])
    archive = np.load(Path(os.environ["JEPA_MONITOR_DATA"]) / "cifar10_subset.npz")
    photos = archive["test_images"][number * PLANTED : (number + 1) * PLANTED]
    moved = np.zeros_like(clean[:PLANTED])
    moved[:, :, 1:] = clean[:PLANTED, :, :-1]
    darker = np.round(clean[:PLANTED] * 0.8).astype(np.uint8)

    def embed(images: Tensor) -> Tensor:
        with torch.no_grad():
            return loaded.encoder(images).double()

    sound = digit_images(prepare, clean)
    embedder = Embedder(loaded.encoder)

    def scored(images: Tensor) -> Scored:
        def work() -> Tensor:
            parts = (
                jacobian_rows(embedder, part, None)[1].double() for part in torch.split(images, 20)
            )
            return torch.cat([rows @ rows.mT for rows in parts])

        return Scored(images, embed(images), embedder.run(work, torch.device("cpu")))

    test = slice(2 * (CLEAN + PLANTED), None)
    return Half(
        clean=scored(sound),
        labels=labels[start : start + CLEAN],
        trouble={
            "foreign": scored(torch.stack([prepare(Image.fromarray(one)) for one in photos])),
            **{name: scored(corrupt(others, 3)) for name, corrupt in CORRUPTIONS.items()},
        },
        copies={
            "moved": scored(digit_images(prepare, moved)),
            "darker": scored(digit_images(prepare, darker)),
        },
        test=(embed(digit_images(prepare, pixels[test])), labels[test]),
    )


def measure(model: str, number: int) -> dict[str, Any]:
    half, generator = look_through(model, number), np.random.default_rng(number)
    return {
        "trouble": look_for_trouble(half, generator),
        "none planted": {
            name: {f"{width:g}": float(under_fence(values, width).mean()) for width in FENCES}
            for name, values in detectors(half.clean).items()
        },
        "near-duplicates": look_for_copies(half, generator),
        "wrong labels": look_for_labels(half, generator),
        "probe": probe(half, generator),
    }


def rules(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Average what is under each fence over all that was planted."""
    average = means(list(results["trouble"].values()))
    return {
        f"{name}, {width}": {**row, "flagged, none planted": results["none planted"][name][width]}
        for name in average
        for width, row in average[name]["fence"].items()
    }


def table(title: str, rows: dict[str, dict[str, Any]], cell: Callable[[Any], str]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n| {title} | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(cell(row[key]) for key in names)} |", flush=True)


def pair(value: dict[str, float]) -> str:
    return f"{value['average precision']:.2f} ({value['precision at k']:.2f})"


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--first", nargs="+", required=True, help="checkpoints to choose a rule by")
    asked.add_argument("--second", nargs="+", required=True, help="checkpoints to measure it by")
    options = asked.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    halves, each = [], {}
    for number, models in enumerate((options.first, options.second)):
        measured = [measure(model, number) for model in models]
        halves.append(means(measured))
        each |= {f"half {number}, encoder {i}": rules(one) for i, one in enumerate(measured)}
    chosen, confirmed = (rules(half) for half in halves)
    best = max(chosen, key=lambda rule: chosen[rule]["F1"])
    results = {"first": halves[0], "second": halves[1], "rules": each, "chosen rule": best}
    for row in (row for half in halves for row in half["trouble"].values()):
        for detector in row.values():
            del detector["fence"]  # the rules have their averages
    store(options.out, circumstances(options.threads) | results)
    for name, half in zip(("first half", "second half"), halves, strict=True):
        average = means(list(half["trouble"].values()))
        table(f"planted, {name}", {**half["trouble"], "mean of all": average}, pair)
        table(f"near-duplicates, {name}", half["near-duplicates"], pair)
        table(f"wrong labels, {name}", half["wrong labels"], pair)
        table(f"dropped, {name}", {"accuracy": half["probe"]}, "{:.3f}".format)
    for name, every in (("first half", chosen), ("second half", confirmed)):
        shown = sorted(every, key=lambda rule: -every[rule]["F1"])[:5]
        shown += [rule for rule in dict.fromkeys([best, *SHOWN]) if rule not in shown]
        table(f"rule, {name}", {rule: every[rule] for rule in shown}, "{:.3f}".format)
    print(f"\nThe rule chosen on the first half: {best}.")


if __name__ == "__main__":
    main()
