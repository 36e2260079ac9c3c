"""Groups and gains in AUROC against plain loops, enumeration and simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from jepa_monitor.functional import (
    auroc,
    auroc_gain,
    group_leak,
    group_neighbors,
    knn_predict,
)


def patients(spread, seed=0, count=24, each=8, classes=2, width=12):
    """Images of patients, each of one class, around points of classes and of patients."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count) % classes, each)
    groups = np.repeat(np.arange(count), each)
    z = 1.5 * rng.normal(size=(classes, width))[labels]
    z = z + spread * rng.normal(size=(count, width))[groups] + rng.normal(size=(len(z), width))
    return torch.from_numpy(z), torch.from_numpy(groups), torch.from_numpy(labels)


def test_nearest_neighbours_are_those_of_scikit_learn():
    z, groups, labels = patients(0.7)
    found = group_neighbors(5 * z, groups * 3 - 9, labels)
    search = KNeighborsClassifier(2, metric="cosine").fit(z, groups)
    nearest = search.kneighbors(z, return_distance=False)[:, 1]
    assert found.share.item() == pytest.approx((groups.numpy()[nearest] == groups.numpy()).mean())
    # The mean over shufflings within classes, by counting: of a neighbour of the same class 7 of the 95
    # others are of the own group, of one of another class none.
    alike = labels.numpy()[nearest] == labels.numpy()
    assert found.expected.item() == pytest.approx(alike.mean() * 7 / 95, abs=0.005)
    assert found.lower < found.expected < found.upper < found.share


def test_an_encoder_that_does_not_know_groups_lies_within_the_band():
    inside = []
    for seed in range(60):
        found = group_neighbors(*patients(0.0, seed), draws=100)
        inside.append(bool(found.lower <= found.share <= found.upper))
    assert binom.cdf(sum(inside), 60, 0.95) > 0.005
    # Without classes groups of one class each look known.
    z, groups, _ = patients(0.0)
    assert group_neighbors(z, groups).share > group_neighbors(z, groups).upper


def test_constant_embeddings_share_the_place():
    groups = torch.tensor([0, 0, 1, 1, 1])
    found = group_neighbors(torch.ones(5, 3), groups)
    assert found.share.item() == pytest.approx((2 * 1 / 4 + 3 * 2 / 4) / 5)
    assert found.share.item() == pytest.approx(found.upper.item())


def test_who_may_not_vote_is_as_if_absent():
    z, groups, labels = patients(1.0)
    may_vote = groups[:, None] != groups
    found = knn_predict(z, labels, z, may_vote=may_vote)
    for row in range(0, len(z), 17):
        rest = groups != groups[row]
        assert found[row] == knn_predict(z[rest], labels[rest], z[row : row + 1])[0]
    few = torch.zeros(1, len(z), dtype=torch.bool)
    few[0, [3, 100, 120]] = True  # fewer than k
    assert knn_predict(z, labels, z[:1], may_vote=few)[0] == knn_predict(
        z[[3, 100, 120]], labels[[3, 100, 120]], z[:1]
    )
    for wrong in (few.long(), few[:, 1:], torch.zeros_like(few)):
        with pytest.raises(ValueError, match="`may_vote` must"):
            knn_predict(z, labels, z[:1], may_vote=wrong)


def test_a_leak_is_found_where_patients_are_told_and_not_where_they_are_not():
    # Labels that nothing but the patient tells: other patients say nothing of them.
    z, groups, _ = patients(3.0, classes=1)
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, 24))[groups]
    found = group_leak(z, groups, labels, k=5)
    assert found.within > 0.95
    assert abs(found.across - 0.5) < 0.25
    assert found.lower > 0.2
    assert found.asked == len(z)
    assert found.leak.item() == pytest.approx((found.within - found.across).item())
    ringing = sum(bool(group_leak(*patients(0.0, seed), k=5).lower > 0) for seed in range(40))
    assert binom.sf(ringing - 1, 40, 0.025) > 0.005


def test_a_group_is_asked_only_where_its_classes_are_known_elsewhere():
    z = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 7, 7, 1])
    found = group_leak(z, groups, labels, k=3)
    # Class 0 is in group 0 alone, 7 in group 4; number 5 has one image.
    assert found.asked == 6
    alone = group_leak(z, torch.zeros(12, dtype=torch.long), labels)
    assert alone.asked == 0
    assert math.isnan(alone.leak)


def test_a_gain_in_auroc_is_that_of_delong_by_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)) @ [[1, 0.6], [0, 0.8]] + [1.2, 0.6], rng.normal(size=(30, 2))
    x, y = np.round(x, 1), np.round(y, 1)  # with ties
    truth = np.r_[np.ones(40), np.zeros(30)]
    areas = [roc_auc_score(truth, np.r_[x[:, i], y[:, i]]) for i in range(2)]
    above = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # (40, 30, 2)
    places = above.mean(1), above.mean(0)
    contrast = np.array([1, -1])
    variance = sum(contrast @ np.cov(p.T) @ contrast / len(p) for p in places)
    sets = [torch.from_numpy(part) for part in (x[:, 0], y[:, 0], x[:, 1], y[:, 1])]
    found = auroc_gain(*sets)
    assert found.gain.item() == pytest.approx(areas[0] - areas[1])
    assert found.gain.item() == pytest.approx((auroc(*sets[:2]) - auroc(*sets[2:])).item())
    half = 1.959964 * math.sqrt(variance)
    assert found.upper.item() == pytest.approx(found.gain.item() + half, abs=1e-6)
    assert found.lower.item() == pytest.approx(found.gain.item() - half, abs=1e-6)


def test_errors():
    z, groups, labels = patients(0.0)
    with pytest.raises(TypeError, match=r"`groups` must be a torch\.Tensor, got list"):
        group_neighbors(z, groups.tolist())
    with pytest.raises(ValueError, match=r"`groups` must be integers of shape \(192,\)"):
        group_leak(z, groups.double(), labels)
    with pytest.raises(ValueError, match=r"`labels` must be integers of shape \(192,\)"):
        group_neighbors(z, groups, labels[:5])
    with pytest.raises(ValueError, match="`embeddings` must have at least 2 rows"):
        group_neighbors(z[:1], groups[:1])
    with pytest.raises(ValueError, match="`scores` and `other` must be of the same 2 samples"):
        auroc_gain(z[:5, 0], z[:5, 1], z[:4, 0], z[:5, 0])
    with pytest.raises(ValueError, match="`ood_scores` and `other_ood` must be of the same 2"):
        auroc_gain(z[:5, 0], z[:1, 1], z[:5, 0], z[:1, 0])
