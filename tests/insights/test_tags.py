"""Every tag that `evaluate` emits against a number of its own: NumPy, SciPy and scikit-learn in float64."""

from __future__ import annotations

import itertools
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import float64_spectrum, images, leave_one_out_law, mlp
from numpy.typing import NDArray
from scipy import integrate, stats
from scipy.spatial.distance import cdist, pdist
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
    roc_curve,
)
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional import (
    cluster_agreement,
    cluster_learnability,
    few_shot_accuracy,
    lidar,
    mst_dimension,
    normality,
    two_nn,
)
from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.insights import INSIGHTS
from jepa_monitor.insights.table import all_insights, tag_pattern
from jepa_monitor.monitor.tags import MONITOR_ROWS
from jepa_monitor.probes.augmentations import augment, draw_distortions
from jepa_monitor.probes.corruptions import CORRUPTIONS

Array = NDArray[np.float64]
PROBE, REFERENCE, DARK, SCORED, WIDTH, EPS = 40, 100, 25, 30, 16, 0.05
LABELS = torch.arange(PROBE) % 4
# test_token_health.py, test_layers_insight.py, test_mae_insight.py, test_attention_insight.py, test_text_pairs_insight.py,
# test_world_insight.py, test_groups_insight.py, test_generalist_insight.py
APART = (
    "tokens",
    "layers",
    "mae",
    "attention",
    "perception",
    "identifiability",
    "generalist",
    "groups",
    "text",
    "world",
)


def encoder(seed: int, width: int = 24) -> nn.Module:
    """Nonlinear enough for its Jacobians to differ; float64, so that nothing is lost to rounding."""
    torch.manual_seed(seed)
    made = mlp(192, WIDTH, width).double().eval()
    with torch.no_grad():
        made[1].weight.mul_(4)
    return made


def embed(module: nn.Module, data: Tensor) -> Array:
    with torch.no_grad():
        return module(data.double()).numpy()


def spectrum(module: nn.Module, data: Tensor) -> Array:
    return float64_spectrum(module, data).numpy()


def clipped_sum(values: Array) -> Array:
    return np.log(np.maximum(values, EPS)).sum(1)


DATA = {
    "probe": images(PROBE, 3),
    "reference": images(REFERENCE, 4),
    "dark": images(DARK, 5) / 3,
}


@cache
def report() -> dict[str, float]:
    monitor = DensityMonitor(
        DATA["probe"],
        reference=DATA["reference"],
        ood={"dark": DATA["dark"]},
        max_probe_samples=SCORED,
        polarity_samples=8,
        options=ScoreOptions(method="exact", eps=EPS),
        insights=[name for name in INSIGHTS if name not in APART],
        labels=LABELS,
        compare_with=encoder(2),
        online=encoder(3),
    )
    monitor.evaluate(encoder(1))  # from which neighbours drift
    return monitor.evaluate(encoder(0)).scalars


# ------------------------------------------------------------------------------- what is to be found
def quantiles(prefix: str, values: Array) -> dict[str, float]:
    return {
        f"{prefix}/mean": values.mean(),
        f"{prefix}/std": values.std(ddof=1),
        f"{prefix}/p05": np.quantile(values, 0.05),
        f"{prefix}/p50": np.median(values),
        f"{prefix}/p95": np.quantile(values, 0.95),
    }


def of_the_jacobians() -> dict[str, float]:
    values = spectrum(encoder(0), DATA["probe"][:SCORED])
    energy = values**2
    logs = np.sort(np.log(np.maximum(values, EPS)), axis=None)
    found = quantiles("jepa_score", clipped_sum(values))
    found["jepa_score/clipped"] = (values < EPS).sum(1).mean()
    found["jepa_score/below_noise_floor"] = 0.0  # see the encoder of rank 5 below
    for name, q in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
        found[f"jacobian/log_sigma_{name}"] = np.quantile(logs, q, method="nearest")
    found["jacobian/effective_rank"] = np.exp(stats.entropy(energy, axis=1)).mean()
    found["jacobian/rank_one_share"] = (energy[:, 0] / energy.sum(1)).mean()
    return found


def of_the_alignment() -> dict[str, float]:
    data = DATA["probe"][:16].double()
    module, inputs = encoder(0), data.flatten(1).numpy()
    found: dict[str, list[float]] = {}
    for image, own in zip(data, inputs, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], image)
        matrix = jacobian.flatten(1).numpy()
        summed = matrix.sum(0)  # the centroid
        for suffix, others in (("", own[None]), ("_shuffled", inputs)):
            lengths = np.linalg.norm(others, axis=1)
            along = np.linalg.norm(others @ matrix.T, axis=1) / np.linalg.norm(matrix) / lengths
            cosine = others @ summed / np.linalg.norm(summed) / lengths
            found.setdefault(f"jacobian/alignment{suffix}", []).append(along.mean())
            found.setdefault(f"jacobian/centroid_alignment{suffix}", []).append(cosine.mean())
    return {tag: float(np.mean(values)) for tag, values in found.items()}


@cache
def law() -> Any:
    """Of the reference images that are not scored."""
    return leave_one_out_law(embed(encoder(0), DATA["reference"][SCORED:]))


def squared_distances(z: Array) -> Array:
    centred = z - law().mean
    return np.einsum("ni,ij,nj->n", centred, np.linalg.inv(law().cov_object.covariance), centred)


@cache
def detected(name: str) -> dict[str, Array]:
    module, scored = encoder(0), DATA[name][:SCORED]
    z = embed(module, scored)
    scores = clipped_sum(spectrum(module, scored))
    base = embed(module, DATA["reference"][SCORED:])
    neighbours = NearestNeighbors(n_neighbors=10).fit(base)
    return {
        "jepa_score": scores,
        "log_density": scores + law().logpdf(z),
        "knn": -neighbours.kneighbors(z)[0][:, -1],
        "mahalanobis": -squared_distances(z),
    }


def levels_of_the_probe() -> Array:
    """Each by mean and covariance of the reference and of the embeddings before, and the F law."""
    reference = embed(encoder(0), DATA["reference"])
    z, found = np.concatenate([reference, embed(encoder(0), DATA["probe"])]), []
    for n in range(REFERENCE, len(z)):
        deviation = z[n] - z[:n].mean(0)
        squared = deviation @ np.linalg.solve(np.cov(z[:n].T), deviation)
        ratio = squared * (n - WIDTH) * n / ((n**2 - 1) * WIDTH)
        found.append(stats.f.cdf(ratio, WIDTH, n - WIDTH))
    return np.array(found)


def of_the_law() -> dict[str, float]:
    levels = levels_of_the_probe()
    nominal = np.arange(1, 20) / 20
    coverage = (levels[:, None] <= nominal).mean(0)
    test = stats.kstest(levels, "uniform")
    z = [embed(encoder(0), DATA[name]) for name in ("probe", "reference")]
    everything = np.concatenate(z)
    statistic = epps_pulley_of_slices(everything).mean()
    simulated = np.array([epps_pulley_of_slices(normal).mean() for normal in normal_samples()])
    # Its null laws have tests of their own (tests/functional/test_normality.py).
    verdict = normality(torch.from_numpy(everything))
    return {
        "density/calibration_error": np.abs(coverage - nominal).mean(),
        "density/ks": test.statistic,
        "density/calibration_p": test.pvalue,
        "density/gaussianity_effect": (statistic - 0.3289) / len(everything),
        "density/gaussianity_z": (statistic - 0.3289) / simulated.std(),
        "density/normality_effect": verdict.effect,
        "density/normality_p": verdict.p_value,
        "density/precondition_needed": verdict.needed,
    }


def normal_samples() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((200, WIDTH)) for _ in range(40)]


def epps_pulley_of_slices(z: Array) -> Array:
    """The statistic of each whitened slice, by a trapezoidal rule over [-3, 3]."""
    # Whitening is unique up to a rotation only, to which an average of 256 slices is not blind.
    whitened = principal_scores(torch.from_numpy(z), 1e-16).scores.numpy()
    np.testing.assert_allclose(whitened.T @ whitened / len(z), np.eye(WIDTH), atol=1e-9)
    spanned = np.linalg.lstsq(z - z.mean(0), whitened, rcond=None)[0]
    np.testing.assert_allclose((z - z.mean(0)) @ spanned, whitened, atol=1e-9)
    slices = whitened @ slice_directions(WIDTH, 256, 0).numpy()
    knots = np.linspace(-3, 3, 33)
    found = []
    for columns in np.split(slices, 8, axis=1):
        means = np.exp(1j * knots[:, None, None] * columns).mean(1)
        off = np.abs(means - np.exp(-(knots**2) / 2)[:, None]) ** 2
        found.append(integrate.trapezoid(off * np.exp(-(knots**2) / 2)[:, None], knots, axis=0))
    return len(z) * np.concatenate(found)


def of_generalisation() -> dict[str, float]:
    scores, others = detected("probe")["jepa_score"], detected("reference")["jepa_score"]
    ranks = [(stats.percentileofscore(others, s, "mean") / 100 * SCORED + 0.5) for s in scores]
    return {
        "density/generalisation_gap": 0.5 - np.mean(ranks) / (SCORED + 1),
        "density/generalisation_p": stats.ks_2samp(scores, others, method="exact").pvalue,
    }


def of_polarity() -> dict[str, float]:
    module, data = encoder(0), DATA["probe"][:8]
    clean = clipped_sum(spectrum(module, data))
    levels = {
        name: np.stack(
            [clean, *(clipped_sum(spectrum(module, corrupt(data, s))) for s in (1, 2, 3))]
        )
        for name, corrupt in CORRUPTIONS.items()
    }
    wins = {name: (scores[0] > scores[3]) for name, scores in levels.items()}
    share = np.mean(list(wins.values()))
    n, z = 8, stats.norm.ppf(0.975)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    taus = [stats.kendalltau(range(4), s[:, i])[0] for s in levels.values() for i in range(8)]
    return {
        "density/polarity": share,
        "density/polarity_low": centre - half,
        "density/polarity_high": centre + half,
        "density/order": -np.mean(taus),
        **{f"density/polarity_{name}": won.mean() for name, won in wins.items()},
    }


def marchenko_pastur(function: Any, ratio: float) -> float:
    """Expectation over the eigenvalues of isotropic embeddings, n and k large with this ratio."""
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    density = lambda x: np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x)
    return integrate.quad(lambda x: function(x) * density(x), low, high)[0]


def correlated(prefix: str, value: float, variance: float) -> dict[str, float]:
    """A correlation of the scored images with Fisher's interval."""
    half = stats.norm.ppf(0.975) * np.sqrt(variance / (SCORED - 3))
    low, high = np.tanh(np.arctanh(value) - half), np.tanh(np.arctanh(value) + half)
    return {prefix: value, f"{prefix}_low": low, f"{prefix}_high": high}


def of_contrast() -> dict[str, float]:
    data = DATA["probe"][:SCORED].double()
    mean = data.mean((2, 3), keepdim=True)
    logs = np.log(np.linalg.norm((data - mean).flatten(1).numpy(), axis=1))
    scores = clipped_sum(spectrum(encoder(0), data))
    changed = clipped_sum(spectrum(encoder(0), (mean + 1.05 * (data - mean))[:8]))
    slopes = (scores[:8] - changed) / np.log(1.05)
    free = scores + slopes.mean() * logs
    line = stats.linregress(logs, scores)
    low, high = stats.pearsonr(logs, scores).confidence_interval(0.95)
    found = quantiles("contrast_free", free) | {
        "contrast/kappa": slopes.mean(),
        "contrast/kappa_se": stats.sem(slopes),
        "contrast/share": 1 - np.var(scores - line.slope * logs) / np.var(scores),
        "contrast/share_low": 0 if low < 0 < high else min(low**2, high**2),
        "contrast/share_high": max(low**2, high**2),
    }
    for name, values in (("", scores), ("_free", free)):
        rho = stats.spearmanr(values, logs).statistic
        found |= correlated(f"contrast/spearman{name}", rho, 1 + rho**2 / 2)
    return found


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


def of_outliers() -> dict[str, float]:
    # The threshold is the lowest of 30, ⌊0.05 · 31⌋, and drawn like the scores: so many lie below.
    law = stats.betabinom(SCORED, 1, SCORED)
    found, p_values = {"outliers/expected": 1 / (SCORED + 1)}, []
    for name, values in detected("probe").items():
        others = detected("reference")[name]
        below = int((values < others.min()).sum())
        found[f"outliers/{name}"] = below / SCORED
        found[f"outliers/{name}_low"] = law.ppf(0.025) / SCORED
        found[f"outliers/{name}_high"] = law.ppf(0.975) / SCORED
        p_values.append(2 * min(law.cdf(below), law.sf(below - 1)))
        conformal = (1 + (others[:, None] <= values).sum(0)) / (SCORED + 1)
        found[f"outliers/{name}_listed"] = (stats.false_discovery_control(conformal) <= 0.1).mean()
    found["outliers/alarm"] = float(min(p_values) * len(p_values) < 0.01)
    return found


def of_the_dark() -> dict[str, float]:
    found = {}
    for name, values in detected("probe").items():
        truth = np.repeat([1, 0], [SCORED, DARK])
        scores = np.concatenate([values, detected("dark")[name]])
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        found[f"ood/dark/auroc_{name}"] = roc_auc_score(truth, scores)
        found[f"ood/dark/ap_{name}"] = average_precision_score(truth, scores)
        found[f"ood/dark/fpr95_{name}"] = false[true >= 0.95][0]
    return found


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


def halves(labels: Tensor) -> tuple[Array, Array]:
    """Each class in a random order, every second image to learn from."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    order.sort(key=lambda i: int(labels[i]))
    return np.sort(order[0::2]), np.sort(order[1::2])


def wilson(share: float, n: float) -> tuple[float, float]:
    z = stats.norm.ppf(0.975)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def quality(z: Array, pixels: Array, labels: Tensor) -> dict[str, float]:
    known, asked = halves(labels)
    truth = labels.numpy()
    votes = KNeighborsClassifier(
        min(20, len(known)), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    ridge = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=10.0 ** np.arange(-3, 7)))
    found = {"quality/chance": (truth[asked] == stats.mode(truth[known]).mode).mean()}
    found["quality/knn_pixels"] = votes.fit(pixels[known], truth[known]).score(
        pixels[asked], truth[asked]
    )
    for name, probe in (("knn", votes), ("linear", ridge)):
        share = probe.fit(z[known], truth[known]).score(z[asked], truth[asked])
        low, high = wilson(share, len(asked))
        found |= {
            f"quality/{name}": share,
            f"quality/{name}_low": low,
            f"quality/{name}_high": high,
        }
    for shots in (1, 5, 10):  # which have tests of their own (tests/functional/test_probing.py)
        if len(known) >= 4 * shots:
            bank, queries = ((torch.from_numpy(z[i]), labels[i]) for i in (known, asked))
            few = few_shot_accuracy(bank, queries, shots)
            ends = ("", "_low", "_high")
            found |= {
                f"quality/few_shot_{shots}{end}": float(x) for end, x in zip(ends, few, strict=True)
            }
    return found


def of_the_quality() -> dict[str, float]:
    z, pixels = embed(encoder(0), DATA["probe"]), DATA["probe"].flatten(1).numpy()
    return quality(z, pixels, LABELS)


def views(count: int) -> list[Tensor]:
    """Which have tests of their own (tests/probes/test_augmentations.py)."""
    return [augment(DATA["probe"], draw_distortions(PROBE, seed)) for seed in range(count)]


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


def of_the_monitor() -> dict[str, float]:
    return {
        "monitor/images": 2 * SCORED + DARK,
        "monitor/nonfinite": 0,
        "monitor/random": 0,
        "monitor/failed_insights": 0,
    }


EXPECTED = (
    of_the_jacobians, of_the_alignment, of_the_law, of_generalisation, of_polarity, of_contrast, of_collapse,
    of_outliers, of_the_dark, of_the_neighbours, of_the_tasks, of_the_classes, of_the_quality, of_the_views, of_the_clusters, of_the_average, of_lidar, of_the_monitor,
    lambda: quantiles("log_density", detected("probe")["log_density"]),
)  # fmt: skip
# The null mean has four digits, the spread is simulated, the p-value is exact only here.
ROUGH = {
    "density/gaussianity_effect": 2e-3,
    "density/gaussianity_z": 0.35,
    "density/calibration_p": 0.02,
    # Pixels of 24 bits, of which the slope divides a difference by log 1.05.
    **dict.fromkeys(("contrast/kappa", "contrast/kappa_se", "contrast_free/std"), 1e-4),
}
CLOCKS = {"monitor/seconds"}


@cache
def numbers(expected: Any) -> dict[str, float]:
    return expected()


# Tags that only other settings have, and the tests below that hold them to something.
ELSEWHERE = {
    "outliers/<detector>_fence": "test_fences_take_the_place_of_few_reference_scores",
    **{
        f"quality/few_shot_10{end}": "test_ten_shots_take_ten_images_of_each_class"
        for end in ("", "_low", "_high")
    },
    **{
        f"contrast/outliers{end}": "test_unusual_contrast_is_counted_on_both_sides"
        for end in ("", "_low", "_high")
    },
    **{
        f"dimension/{name}{end}": "test_dimensions_are_those_of_the_embeddings_and_of_isotropic_ones"
        for name in ("mst", "mst_raw", "two_nn")
        for end in ("", "_low", "_high", "_isotropic")
    },
    "dimension/withheld": "test_dimensions_are_those_of_the_embeddings_and_of_isotropic_ones",
    "density/precondition": "test_the_precondition_is_met_by_normal_embeddings_alone",
} | {
    f"sketch/{kind}": "test_a_sketch_is_held_against_exact_scores"
    for kind in ("correlation", "correlation_low", "correlation_high", "error", "spread", "rows")
}


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda f: f.__name__)
def test_tag_is_what_it_says(expected: Any) -> None:
    for tag, value in numbers(expected).items():
        found = report()[tag]
        assert found == pytest.approx(float(value), rel=ROUGH.get(tag, 1e-6), abs=1e-9), tag


def test_no_tag_is_missing_from_these_tests() -> None:
    told = {tag for expected in EXPECTED for tag in numbers(expected)}
    assert told == set(report()) - CLOCKS
    rows = [row for insight in all_insights() if insight.name not in APART for row in insight.rows]
    counts = ("overhead", "seconds", "failures", "skipped")  # of those who decide when to look
    by_callback = {
        f"monitor/{kind}{count}" for kind in ("", "collapse_", "shortcut_") for count in counts
    }
    ours = {tag for row in (*rows, *MONITOR_ROWS) for tag in row.tags} - CLOCKS - by_callback
    untold = {tag for tag in ours if not any(tag_pattern(tag).fullmatch(t) for t in told)}
    assert untold == set(ELSEWHERE)
    assert all(name in globals() for name in ELSEWHERE.values())


def test_values_are_not_at_a_symmetric_point() -> None:
    """A test that compares 0 with 0 holds for any code."""
    trivial = {tag for tag, value in report().items() if value in (0, 1)}
    assert trivial <= {
        "jepa_score/below_noise_floor", "monitor/nonfinite", "monitor/random",
        "monitor/failed_insights", "collapse/same_pairs", "density/polarity_noise",
        "density/polarity_blur", "density/polarity_shuffle", "contrast/share_low",
        *(t for t in report() if t.startswith(("outliers/", "ood/"))),
    }  # fmt: skip
    assert 0 < report()["jepa_score/clipped"] < WIDTH


def test_fences_take_the_place_of_few_reference_scores() -> None:
    monitor = DensityMonitor(
        DATA["probe"], reference=DATA["reference"], max_probe_samples=18,
        options=ScoreOptions(method="exact", eps=EPS),
    )  # fmt: skip
    module = encoder(0)
    with torch.no_grad():  # one image that stands out
        monitor.images[3] *= 30
    scalars = monitor.evaluate(module).scalars
    assert not any(tag.endswith(("_low", "expected")) and "outliers" in tag for tag in scalars)
    base = leave_one_out_law(embed(module, DATA["reference"][18:]))
    data = monitor.images[:18]
    z, scores = embed(module, data), clipped_sum(spectrum(module, data))
    neighbours = NearestNeighbors(n_neighbors=10).fit(embed(module, DATA["reference"][18:]))
    values = {
        "jepa_score": scores,
        "log_density": scores + base.logpdf(z),
        "knn": -neighbours.kneighbors(z)[0][:, -1],
        "mahalanobis": base.logpdf(z),  # the same up to a factor and an offset
    }
    for name, x in values.items():
        fence = np.median(x) - 3 * stats.median_abs_deviation(x, scale=1 / 1.4826)
        assert scalars[f"outliers/{name}_fence"] == (x < fence).mean(), name
    assert scalars["outliers/mahalanobis_fence"] > 0


def test_dimensions_are_those_of_the_embeddings_and_of_isotropic_ones() -> None:
    data = DATA["reference"]
    monitor = DensityMonitor(data, max_probe_samples=2, insights=["dimension"])
    monitor.memory["first_retrieval"] = -1.0  # as if views had not found each other at first
    scalars = monitor.evaluate(encoder(0)).scalars
    assert scalars["dimension/withheld"] == 0
    z = torch.from_numpy(embed(encoder(0), data))
    normal = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, estimate in (  # tests/functional/test_intrinsic_dimension.py
        ("mst", mst_dimension),
        ("mst_raw", partial(mst_dimension, normalized=False)),
        ("two_nn", two_nn),
    ):
        found = estimate(z)
        ends = [scalars[f"dimension/{name}{end}"] for end in ("_low", "", "_high")]
        expected = [(found.dimension + 1.96 * n * found.error).item() for n in (-1, 0, 1)]
        assert ends == pytest.approx(expected, rel=1e-6), name
        assert scalars[f"dimension/{name}_isotropic"] == estimate(normal).dimension.item()


def test_ten_shots_take_ten_images_of_each_class() -> None:
    labels = torch.arange(100) % 4
    data = DATA["reference"] + 0.5 * labels[:, None, None, None]
    scalars = DensityMonitor(data, max_probe_samples=2, labels=labels).evaluate(encoder(0)).scalars
    expected = quality(embed(encoder(0), data), data.flatten(1).numpy(), labels)
    assert {tag for tag in scalars if tag.startswith("quality/")} == set(expected)
    for tag, value in expected.items():
        assert scalars[tag] == pytest.approx(float(value), rel=1e-6), tag
    assert scalars["quality/few_shot_10"] > 0.3  # chance: 0.25


def test_unusual_contrast_is_counted_on_both_sides() -> None:
    probe, reference = images(60, 3), images(120, 4)
    # Most of them far too dull, some too contrasted.
    for some, factor in ((slice(20), 0.1), (slice(20, 25), 3.0)):
        mean = probe[some].mean((2, 3), keepdim=True)
        probe[some] = mean + factor * (probe[some] - mean)
    monitor = DensityMonitor(probe, reference=reference, max_probe_samples=60)
    scalars = monitor.evaluate(encoder(0)).scalars

    def logs(data: Tensor) -> Array:
        centred = data.double() - data.double().mean((2, 3), keepdim=True)
        return np.log(np.linalg.norm(centred.flatten(1).numpy(), axis=1))

    learned, usual = np.split(logs(reference[:60]), 2)
    # The threshold is the least usual of 30, ⌊0.05 · 31⌋.
    furthest = np.abs(usual - learned.mean()).max()
    share = (np.abs(logs(probe) - learned.mean()) > furthest).mean()
    assert 25 / 60 <= share < 1
    law = stats.betabinom(60, 1, 30)
    assert scalars["contrast/outliers"] == pytest.approx(share)
    assert scalars["contrast/outliers_low"] == pytest.approx(law.ppf(0.025) / 60)
    assert scalars["contrast/outliers_high"] == pytest.approx(law.ppf(0.975) / 60)


@pytest.mark.parametrize("power", [1, 5])
def test_the_precondition_is_met_by_normal_embeddings_alone(power: int) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(800, 4, generator=generator).double() ** power
    scalars = DensityMonitor(
        data[:400], reference=data[400:], max_probe_samples=20
    ).evaluate(nn.Linear(4, 3).double()).scalars  # fmt: skip
    assert scalars["density/precondition"] == (power == 1)
    assert scalars["density/precondition_needed"] < 800


def test_a_sketch_is_held_against_exact_scores() -> None:
    rows = 6
    found = DensityMonitor(
        DATA["probe"],
        reference=DATA["reference"],
        max_probe_samples=SCORED,
        options=ScoreOptions(method="sketch", rows=rows, eps=1e-12, precision="float64"),
    ).evaluate(encoder(0))
    law = leave_one_out_law(embed(encoder(0), DATA["reference"][SCORED:]))
    values, vectors = np.linalg.eigh(law.cov)
    draw = torch.randn(WIDTH, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = np.linalg.qr(draw.numpy())[0].T @ (vectors / np.sqrt(values)) @ vectors.T
    sketched, exact = [], []
    for image in DATA["probe"][:8].double():
        jacobian = torch.autograd.functional.jacobian(lambda x: encoder(0)(x[None])[0], image)
        matrix = jacobian.flatten(1).numpy()
        for scores, part in ((sketched, basis @ matrix), (exact, matrix)):
            scores.append(np.log(np.linalg.svd(part, compute_uv=False)).sum())
    truth = stats.pearsonr(sketched, exact)
    interval = truth.confidence_interval(0.95)
    expected = {
        "correlation": truth.statistic,
        "correlation_low": interval.low,
        "correlation_high": interval.high,
        "error": np.std(np.subtract(exact, WIDTH / rows * np.array(sketched)), ddof=1),
        "spread": np.std(exact, ddof=1),
        "rows": rows,
    }
    for kind, value in expected.items():
        assert found.scalars[f"sketch/{kind}"] == pytest.approx(value, rel=2e-4), kind
    assert 0.05 < abs(truth.statistic) < 0.999


def test_singular_values_that_are_rounding_error_are_counted() -> None:
    scalars = DensityMonitor(images(6)).evaluate(encoder(0, width=5)).scalars
    assert scalars["jepa_score/clipped"] == WIDTH - 5
    assert scalars["jepa_score/below_noise_floor"] == WIDTH - 5


class Broken(nn.Module):
    """NaN for bright images, put there, so that the Jacobian of such an image is zero, not NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder(0)

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1, keepdim=True) > 2
        return torch.where(bright, torch.nan, self.net(x))


def test_scores_that_are_not_finite_are_counted_and_left_out_in_every_set() -> None:
    sets = {name: DATA[name][:20].clone() for name in ("probe", "reference", "dark")}
    clean = DensityMonitor(sets["probe"][1:], ood={"dark": sets["dark"][2:]})
    expected = clean.evaluate(Broken()).scalars
    sets["probe"][0] += 3
    sets["dark"][:2] += 3
    monitor = DensityMonitor(sets["probe"], ood={"dark": sets["dark"]})
    scalars = monitor.evaluate(Broken()).scalars
    assert scalars["monitor/nonfinite"] == 3
    assert scalars["monitor/images"] == 40
    for tag in ("jepa_score/mean", "ood/dark/auroc_jepa_score", "collapse/rankme"):
        assert scalars[tag] == pytest.approx(expected[tag], rel=1e-9), tag


class Masking(nn.Module):
    """Drops at random, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (torch.rand_like(x) > 0.3))


def test_randomness_is_how_far_a_second_pass_moves_the_first_embeddings() -> None:
    module, data = Masking(), images(12)
    with pytest.warns(UserWarning, match="gives other embeddings at every pass"):
        scalars = DensityMonitor(data).evaluate(module).scalars
    passes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        passes.append(embed(module, data[:2]))  # which the check for mixing embeds
    expected = np.linalg.norm(passes[1] - passes[0]) / np.linalg.norm(passes[0])
    assert scalars["monitor/random"] == pytest.approx(expected, rel=1e-6)
