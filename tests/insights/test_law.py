"""What a monitor says of laws that are known: normal and other embeddings, many and few references."""

from __future__ import annotations

import pytest
import torch
from helpers import seldom
from scipy import stats
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.functional import normality


def normal(n: int, k: int, seed: int = 0, decades: float = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -decades, k, dtype=torch.float64)
    return torch.randn(n, k, generator=generator, dtype=torch.float64) * scale


def clusters(n: int, k: int, seed: int = 0) -> Tensor:
    labels = torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))
    return normal(n, k, seed) + 5 * normal(10, k, 99)[labels]


def look(probe: Tensor, reference: Tensor, **settings: object) -> dict[str, float]:
    settings = {"max_probe_samples": 4, "max_embedding_samples": 5000} | settings
    monitor = DensityMonitor(probe, reference=reference, **settings)
    return monitor.evaluate(nn.Identity()).scalars


@pytest.mark.parametrize("decades", [0, 2])
@pytest.mark.parametrize(("k", "said"), [(32, True), (96, True), (160, False), (320, False)])
def test_normal_embeddings_are_never_called_otherwise(k: int, said: bool, decades: float) -> None:
    found = look(normal(160, k, 1, decades), normal(160, k, 2, decades))
    assert found.get("density/precondition", 1.0) == 1.0
    assert ("density/precondition" in found) == said
    assert (found["density/precondition_needed"] <= 320) == said
    assert found["density/normality_p"] > 1e-3
    assert found["density/calibration_p"] > 1e-3
    assert found["density/calibration_error"] < 3.5 * 0.31 / 160**0.5


@pytest.mark.parametrize("k", [16, 96, 320])
def test_clusters_are_never_called_normal(k: int) -> None:
    found = look(clusters(160, k, 1), clusters(160, k, 2))
    assert found["density/precondition"] == 0
    assert found["density/normality_p"] < 1e-6
    assert found["density/normality_effect"] > 0.005


def test_normality_is_that_of_probe_and_reference_together() -> None:
    probe, reference = normal(100, 8, 1), normal(90, 8, 2).exp()
    verdict = normality(torch.cat([probe, reference]))
    found = look(probe, reference)
    assert found["density/normality_effect"] == pytest.approx(verdict.effect, rel=1e-3)
    assert found["density/precondition_needed"] == verdict.needed
    assert found["density/precondition"] == 0


def test_a_probe_of_another_law_is_not_calibrated() -> None:
    found = look(1.3 * normal(160, 32, 1), normal(160, 32, 2))
    assert found["density/calibration_p"] < 1e-4
    assert found["density/calibration_error"] > 0.05


def test_a_unit_that_fires_only_in_the_probe_is_told_and_fails_nothing() -> None:
    probe, reference = normal(128, 8, 1), normal(200, 8, 2)
    probe, reference = (
        (z - torch.eye(8)[0] * 3).relu() for z in (probe + 1, reference.clamp(max=2))
    )
    assert (reference[:, 0] == 0).all()
    assert (probe[:, 0] > 0).any()
    monitor = DensityMonitor(
        probe, reference=reference, max_probe_samples=4, max_embedding_samples=5000
    )
    found = monitor.evaluate(nn.Identity())
    assert found.failed == {}
    assert found.scalars["monitor/failed_insights"] == 0
    absent = {f"density/{name}" for name in ("calibration_error", "ks", "calibration_p")}
    assert absent.isdisjoint(found.scalars)
    assert found.scalars["density/precondition"] == 0  # what is cut off at zero is not normal
    assert "density/reliability" not in found.figures()
    assert "follow the law of the reference cannot be told" in str(found.verdict)


def test_no_size_of_the_reference_is_a_cliff() -> None:
    probe = normal(64, 16, 1)
    sizes = (3, 4, 5, 8, 20, 38, 63, 64, 65, 66, 70, 129, 400)
    found = {n: look(probe, normal(n, 16, 2), max_probe_samples=64) for n in sizes}
    truth = -8 * (1 + torch.log(torch.tensor(2 * torch.pi))).item()
    for n in sizes[5:]:
        assert found[n]["log_density/mean"] == pytest.approx(truth, abs=60 / n + 2)
    means = [found[n]["log_density/mean"] for n in (63, 64, 65, 66, 70)]
    assert max(means) - min(means) < 1
    for n in sizes:
        assert found[n].get("log_density/mean", truth) > -1000
        told = [tag for tag in found[n] if tag.startswith("outliers/")]
        assert ("outliers/knn" in told) == (n // 2 >= 19)
        assert ("outliers/expected" in told) == (n // 2 >= 19)


@pytest.mark.parametrize(("n", "k"), [(64, 64), *seldom((64, 16), (200, 128))])
def test_no_share_is_counted_in_sample(n: int, k: int) -> None:
    # Of 20 probes of the reference's law a detector's share leaves its interval once, on average.
    outside, rung = dict.fromkeys(("knn", "mahalanobis", "log_density"), 0), 0
    for seed in range(20):
        probe, reference = normal(64, k, seed), normal(n, k, seed + 100)
        found = look(probe, reference, max_probe_samples=64)
        rung += found["outliers/alarm"] == 1
        for name in outside:
            share, low, high = (found[f"outliers/{name}{end}"] for end in ("", "_low", "_high"))
            outside[name] += not low <= share <= high
    assert max(outside.values()) <= stats.binom.isf(1e-3, 20, 0.05)
    assert rung <= stats.binom.isf(1e-3, 20, 0.01)


def test_a_probe_far_from_the_reference_rings_and_is_listed() -> None:
    found = look(normal(64, 8, 1) + 5, normal(200, 8, 2), max_probe_samples=64)
    assert found["outliers/alarm"] == 1
    assert found["outliers/knn"] == 1 > found["outliers/knn_high"]
    assert found["outliers/knn_listed"] == 1
    calm = look(normal(64, 8, 1), normal(200, 8, 2), max_probe_samples=64)
    assert calm["outliers/alarm"] == 0
    assert calm["outliers/knn_listed"] == 0
