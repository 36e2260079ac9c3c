"""Detectors against SciPy and scikit-learn, and detectors of one's own through the public API."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import images, mlp
from scipy.spatial.distance import mahalanobis
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from jepa_monitor import DensityMonitor
from jepa_monitor.detectors import (
    DETECTORS,
    Detector,
    Reference,
    ScoredSet,
    choose_detectors,
    fit_detectors,
)
from jepa_monitor.functional.gaussian import Gaussian

NAMES = ["jepa_score", "log_density", "knn", "mahalanobis"]


def cloud(count: int, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).double()


def scored(embeddings: Tensor, own: Tensor | None = None) -> ScoredSet:
    numbers = torch.arange(len(embeddings)).double()
    return ScoredSet(
        torch.zeros(len(embeddings), 1),
        embeddings,
        numbers,
        -numbers,
        torch.ones(len(embeddings), 3).double(),
        torch.zeros(len(embeddings)).double(),
        own,
    )


@pytest.fixture
def reference() -> Reference:
    base = cloud(60, 0)
    return Reference(base, Gaussian.fit(base))


def test_each_is_what_its_name_says(reference: Reference) -> None:
    assert [detector.name for detector in choose_detectors()] == [*NAMES, "combined"]
    data = scored(cloud(20, 1))
    fitted = fit_detectors(choose_detectors(), reference)
    found = {name: detector.score(data) for name, detector in fitted.items()}
    assert list(found) == NAMES
    assert torch.equal(found["jepa_score"], data.scores)
    assert torch.equal(found["log_density"], data.log_density)
    nearest = NearestNeighbors(n_neighbors=10).fit(reference.embeddings)
    distances = nearest.kneighbors(data.embeddings)[0][:, -1]
    assert found["knn"].tolist() == pytest.approx((-distances).tolist())
    inverse = torch.linalg.inv(reference.law.covariance).numpy()
    mean = reference.law.mean.numpy()
    expected = [-(mahalanobis(z, mean, inverse) ** 2) for z in data.embeddings.numpy()]
    assert found["mahalanobis"].tolist() == pytest.approx(expected)


def test_an_image_of_the_reference_is_not_its_own_neighbour(reference: Reference) -> None:
    (knn,) = fit_detectors(choose_detectors(["knn"]), reference).values()
    mixed = torch.cat([reference.embeddings[:4], cloud(3, 2)])
    own = torch.tensor([True] * 4 + [False] * 3)
    nearest = NearestNeighbors(n_neighbors=11).fit(reference.embeddings)
    distances = nearest.kneighbors(mixed)[0]
    expected = [-row[10 if mine else 9] for row, mine in zip(distances, own, strict=True)]
    assert knn.score(scored(mixed, own)).tolist() == pytest.approx(expected, abs=1e-7)


def test_embeddings_that_are_not_finite_have_no_score(reference: Reference) -> None:
    embeddings = cloud(4, 3)
    embeddings[1, 2] = math.inf
    for name in ("knn", "mahalanobis"):
        (detector,) = fit_detectors(choose_detectors([name]), reference).values()
        assert (
            torch.isnan(detector.score(scored(embeddings))).tolist() == [False, True] + [False] * 2
        )


def test_one_without_enough_reference_is_left_out(reference: Reference) -> None:
    few = Reference(reference.embeddings[:9], reference.law)
    assert list(fit_detectors(choose_detectors(), few)) == [
        "jepa_score",
        "log_density",
        "mahalanobis",
    ]
    assert list(fit_detectors(choose_detectors(), None)) == ["jepa_score"]


def test_fitting_leaves_the_registered_one_alone(reference: Reference) -> None:
    before = dict(vars(DETECTORS["knn"]))
    fit_detectors(choose_detectors(["knn"]), reference)
    assert vars(DETECTORS["knn"]) == before


class Bright(Detector):
    """The brightness of an image, as near to that of the reference's as can be."""

    name = "bright"

    def score(self, data: ScoredSet) -> Tensor:
        return -data.images.flatten(1).mean(1).double()


class Broken(Bright):
    name = "broken"

    def fit(self, reference: Reference) -> Any:
        raise ZeroDivisionError("no luck")


class Short(Bright):
    name = "short"

    def score(self, data: ScoredSet) -> Tensor:
        return super().score(data)[:3]


def test_one_of_ones_own_is_in_the_report() -> None:
    data = images(40)
    monitor = DensityMonitor(
        data, reference=images(40, 2), ood={"dark": data / 4}, detectors=["knn", Bright()],
        max_probe_samples=20,
    )  # fmt: skip
    scalars = monitor.evaluate(mlp(192)).scalars
    assert scalars["ood/dark/auroc_bright"] == 0  # the darker, the more usual
    reference = images(40, 2)[:20].flatten(1).mean(1)
    below = (data[:20].flatten(1).mean(1) > reference.max()).double().mean()
    assert scalars["outliers/bright"] == pytest.approx(below.item())
    assert "ood/dark/auroc_knn" in scalars
    assert "ood/dark/auroc_mahalanobis" not in scalars


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Broken, "ZeroDivisionError: no luck"),
        (Short, r"Short.score must return \(20,\), got \(3,\)"),
    ],
)
def test_one_that_fails_is_counted_and_the_others_go_on(kind: type[Detector], why: str) -> None:
    settings = {"reference": images(40, 2), "max_probe_samples": 20}
    sound = DensityMonitor(images(40), **settings).evaluate(mlp(192)).scalars
    monitor = DensityMonitor(images(40), detectors=[*NAMES, kind()], **settings)
    with pytest.warns(UserWarning, match=f"goes without 'detector {kind.name}': .*{why}"):
        report = monitor.evaluate(mlp(192))
    assert report.scalars["monitor/failed_insights"] == 1
    assert list(report.failed) == [f"detector {kind.name}"]
    assert set(report.scalars) == set(sound)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("knn", TypeError, "`detectors` must be a collection of names and detectors, got 'knn'"),
        (["lof"], ValueError, "`detectors` must be among jepa_score, log_density, knn, maha"),
        ([Bright], TypeError, "`detectors` must hold names and detectors, got ABCMeta"),
        (["knn", "knn"], ValueError, "`detectors` must have different names, got 'knn' twice"),
        ([type("Odd", (Bright,), {"name": "a/b"})()], ValueError, "letters, digits and under"),
    ],
)
def test_wrong_detectors_are_named(asked: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DensityMonitor(images(), detectors=asked)
