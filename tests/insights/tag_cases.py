"""What the tests of tags share: images, encoders in float64, and what several references are made of."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from helpers import float64_spectrum, images, leave_one_out_law, mlp
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from jepa_monitor.functional import few_shot_accuracy
from jepa_monitor.probes.augmentations import augment, draw_distortions

Array = NDArray[np.float64]
PROBE, REFERENCE, DARK, SCORED, WIDTH, EPS = 40, 100, 25, 30, 16, 0.05
LABELS = torch.arange(PROBE) % 4


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


# ------------------------------------------------------------------------------- what is to be found
def quantiles(prefix: str, values: Array) -> dict[str, float]:
    return {
        f"{prefix}/mean": values.mean(),
        f"{prefix}/std": values.std(ddof=1),
        f"{prefix}/p05": np.quantile(values, 0.05),
        f"{prefix}/p50": np.median(values),
        f"{prefix}/p95": np.quantile(values, 0.95),
    }


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


def views(count: int) -> list[Tensor]:
    """Which have tests of their own (tests/probes/test_augmentations.py)."""
    return [augment(DATA["probe"], draw_distortions(PROBE, seed)) for seed in range(count)]
