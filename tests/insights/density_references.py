"""What tags of Jacobians, scores and densities are to be: NumPy and SciPy in float64."""

from __future__ import annotations

import numpy as np
import torch
from scipy import integrate, stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from tag_cases import (
    DARK,
    DATA,
    EPS,
    REFERENCE,
    SCORED,
    WIDTH,
    Array,
    clipped_sum,
    detected,
    embed,
    encoder,
    quantiles,
    spectrum,
)

from jepa_monitor.functional import normality
from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional.gaussianity import slice_directions
from jepa_monitor.probes.corruptions import CORRUPTIONS


def of_the_jacobians() -> dict[str, float]:
    values = spectrum(encoder(0), DATA["probe"][:SCORED])
    energy = values**2
    logs = np.sort(np.log(np.maximum(values, EPS)), axis=None)
    found = quantiles("jepa_score", clipped_sum(values))
    found["jepa_score/terms"] = values.shape[1]
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
