"""What tags of embeddings, neighbours and classes are to be: NumPy, SciPy and scikit-learn in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from tag_cases import DATA, LABELS, PROBE, WIDTH, Array, embed, encoder, quality, views, wilson
from torch import nn

from jepa_monitor.functional import cluster_agreement, cluster_learnability, lidar


def marchenko_pastur(function: Any, ratio: float) -> float:
    """Expectation over the eigenvalues of isotropic embeddings, n and k large with this ratio."""
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    density = lambda x: np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x)
    return integrate.quad(lambda x: function(x) * density(x), low, high)[0]


def of_collapse() -> dict[str, float]:
    z = embed(encoder(0), DATA["probe"])
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    singular = np.linalg.svd(z, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T))[::-1]
    ratio = WIDTH / PROBE
    root, power = (marchenko_pastur(lambda x, a=a: x**a, ratio) for a in (0.5, 1.0))
    entropies = [marchenko_pastur(lambda x, a=a: x**a * np.log(x**a), ratio) for a in (0.5, 1.0)]
    isotropic = {
        "rankme": WIDTH * root * np.exp(-entropies[0] / root),
        "effective_rank": WIDTH * power * np.exp(-entropies[1] / power),
        "participation_ratio": WIDTH / (1 + WIDTH / PROBE),
        "stable_rank": WIDTH / (1 + ratio**0.5) ** 2,  # the edge of the law
    }
    ranks = {
        "rankme": np.exp(-(p * np.log(p)).sum()),
        "effective_rank": np.exp(stats.entropy(eigenvalues)),
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "stable_rank": eigenvalues.sum() / eigenvalues[0],
    }
    index = np.arange(11, WIDTH + 1)
    x, y = np.log(index), np.log(eigenvalues[10:])
    line = np.polyfit(x, y, 1, w=np.sqrt(1 / index))
    residual = y - np.polyval(line, x)
    cosines = cosine_similarity(z)[np.triu_indices(PROBE, 1)]
    apart = pdist(unit, "sqeuclidean")
    usual = 2 * unit.var(0).sum()
    return {
        "collapse/same_pairs": (
            apart <= 0.01 * usual
        ).mean(),  # see the planted clusters of test_cause
        **{f"collapse/{name}": value for name, value in ranks.items()},
        **{f"collapse/{n}_relative": value / isotropic[n] for n, value in ranks.items()},
        "collapse/normalized_std": np.sqrt(WIDTH) * unit.std(0, ddof=1).mean(),
        "collapse/mean_cosine": cosines.mean(),
        "collapse/uniformity": np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()),
        "collapse/alpha_req": -line[0],
        "collapse/alpha_req_r2": 1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum(),
    }


def of_the_neighbours() -> dict[str, float]:
    def neighbours(module: nn.Module) -> list[set[int]]:
        z = embed(module, DATA["probe"])
        found = NearestNeighbors(n_neighbors=10, metric="cosine").fit(z).kneighbors()[1]
        return [set(row) for row in found.tolist()]

    own, chance = neighbours(encoder(0)), 10 / (PROBE - 1)
    found = {}
    for name, seed in (("drift", 1), ("reference", 2)):
        pairs = zip(own, neighbours(encoder(seed)), strict=True)
        share = np.mean([len(a & b) / 10 for a, b in pairs])
        found[f"neighbors/{name}"] = (share - chance) / (1 - chance)
    return found


def u_centred(similarity: Array) -> Array:
    """What no sum a_i + a_j explains of the pairs, by least squares, of root mean square 1."""
    pairs = list(itertools.combinations(range(PROBE), 2))
    design = np.zeros((len(pairs), PROBE))
    for row, pair in enumerate(pairs):
        design[row, list(pair)] = 1
    target = np.array([similarity[pair] for pair in pairs])
    return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]


def of_the_tasks() -> dict[str, float]:
    labels = LABELS.numpy()
    model = u_centred(cosine_similarity(embed(encoder(0), DATA["probe"])))
    prior = u_centred((labels[:, None] == labels).astype(float))
    model, prior = (x / np.sqrt((x**2).mean()) for x in (model, prior))
    probability = 1 / (1 + np.exp(-prior / 0.1))
    graph = np.zeros((PROBE, PROBE))
    graph[np.triu_indices(PROBE, 1)] = 2 * probability - 1
    suited = u_centred(graph + graph.T)
    variances = model**2 * 4 * probability * (1 - probability)
    return {
        "tasks/mean": (model * (2 * probability - 1)).mean(),
        "tasks/sd": np.sqrt(variances.sum()) / len(model),
        "tasks/best": np.sqrt((suited**2).mean()),
    }


def nearest_left_out(z: Array, labels: NDArray[np.int64], classes: list[int]) -> list[int]:
    guesses = []
    for i in range(len(z)):
        others = np.arange(len(z)) != i
        means = np.stack([z[others & (labels == c)].mean(0) for c in classes])
        guesses.append(classes[int(cdist(z[i : i + 1], means).argmin())])
    return guesses


def of_the_classes() -> dict[str, float]:
    z, labels = embed(encoder(0), DATA["probe"]), LABELS.numpy()
    means = np.stack([z[labels == c].mean(0) for c in range(4)])
    radii = [np.sqrt(((z[labels == c] - means[c]) ** 2).sum(1).mean()) for c in range(4)]
    same = pdist(labels[:, None]) == 0
    distances = pdist(z)
    usual = np.quantile(distances[same], 0.95, method="inverted_cdf")
    merged = np.eye(4, dtype=bool)
    for pair in itertools.combinations(range(4), 2):
        some = np.isin(labels, pair)
        guesses = nearest_left_out(z[some], labels[some], list(pair))
        merged[pair] = merged[pair[::-1]] = balanced_accuracy_score(labels[some], guesses) < 0.75
    groups = {tuple(row) for row in np.linalg.matrix_power(merged.astype(int), 4) > 0}
    guesses = nearest_left_out(z, labels, [0, 1, 2, 3])
    return {
        "separation/accuracy": accuracy_score(labels, guesses),  # all classes are as large
        "separation/gap_ratio": pdist(means).min() / (2 * max(radii)),
        "separation/collapse_rate": (distances[~same] <= usual).mean(),
        "separation/auroc": roc_auc_score(~same, distances),
        "separation/merged": 4 - len(groups),
    }


def of_the_quality() -> dict[str, float]:
    z, pixels = embed(encoder(0), DATA["probe"]), DATA["probe"].flatten(1).numpy()
    return quality(z, pixels, LABELS)


def of_the_views() -> dict[str, float]:
    def retrieval(a: Array, b: Array) -> float:
        return (cosine_similarity(a, b).argmax(1) == np.arange(PROBE)).mean()

    def neighbours(z: Array) -> list[set[int]]:
        found = NearestNeighbors(n_neighbors=10, metric="cosine").fit(z).kneighbors()[1]
        return [set(row) for row in found.tolist()]

    both = views(2)
    a, b = (embed(encoder(0), view) for view in both)
    share, chance = retrieval(a, b), 1 / PROBE
    pixels = retrieval(*(view.flatten(1).numpy() for view in both))
    common = np.mean([len(x & y) / 10 for x, y in zip(neighbours(a), neighbours(b), strict=True)])
    ends = (share, *wilson(share, PROBE))
    found = {
        f"views/retrieval{name}": (value - chance) / (1 - chance)
        for name, value in zip(("", "_low", "_high", "_pixels"), (*ends, pixels), strict=True)
    }
    usual = 10 / (PROBE - 1)
    return found | {"views/overlap": (common - usual) / (1 - usual)}


def of_the_clusters() -> dict[str, float]:
    z = embed(encoder(0), DATA["probe"])
    squares = cosine_similarity(z)[np.triu_indices(PROBE, 1)] ** 2
    null = 2 / np.sqrt(PROBE * (PROBE - 1) * (WIDTH - 1) * (WIDTH + 2))
    # Of learnability and agreement tests/functional/test_label_free.py.
    learned = cluster_learnability(torch.from_numpy(z))
    accuracy, chance = learned.accuracy.item(), learned.chance.item()
    low, high = ((end - chance) / (1 - chance) for end in wilson(accuracy, PROBE / 2))
    a, b = (torch.from_numpy(embed(encoder(0), view)) for view in views(2))
    return {
        "clusters/self_clustering": (WIDTH * squares.mean() - 1) / (WIDTH - 1),
        "clusters/self_clustering_isotropic": stats.norm.ppf(0.975) * null,
        "clusters/learnability": (accuracy - chance) / (1 - chance),
        "clusters/learnability_low": low,
        "clusters/learnability_high": high,
        "clusters/agreement": cluster_agreement(a, b).item(),
    }


def of_the_average() -> dict[str, float]:
    mine, other = (
        torch.cat([p.flatten() for p in encoder(s).parameters()]).detach().numpy() for s in (0, 3)
    )
    z, trained = (embed(encoder(seed), DATA["probe"][:32]) for seed in (0, 3))
    return {
        "ema/lag": np.linalg.norm(other - mine) / np.linalg.norm(mine),
        "ema/functional_lag": ((trained - z) ** 2).sum(1).mean() / np.trace(np.cov(z.T)),
    }


def of_lidar() -> dict[str, float]:
    z = np.stack([embed(encoder(0), view) for view in views(10)], 1)
    means = z.mean(1)
    within = ((z - means[:, None]) ** 2).sum() / (PROBE * 9)
    return {
        "lidar/rank": lidar(torch.from_numpy(z)).item(),  # tests/functional/test_lidar.py
        "lidar/ratio": np.trace(np.cov(means.T)) / within,
        "lidar/ratio_noise": 1 / 10,
        "lidar/needed": np.ceil(5 * WIDTH / 9),
    }
