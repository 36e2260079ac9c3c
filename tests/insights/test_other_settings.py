"""Tags that only other settings have, and looks at encoders that are not well: NumPy, SciPy and scikit-learn in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import images, leave_one_out_law
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from tag_cases import (
    DATA,
    EPS,
    SCORED,
    WIDTH,
    Array,
    clipped_sum,
    embed,
    encoder,
    quality,
    spectrum,
)
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional import mst_dimension, two_nn


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
