"""Codes, cells and exact decoders against NumPy, SciPy, scikit-learn and the objective itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from jepa_monitor.functional import (
    batch_topk_codes,
    kmeans_pca,
    pam_decoder_step,
    power_cells,
    topk_codes,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------- codes
@pytest.mark.parametrize("signed", [False, True])
def test_topk_keeps_the_k_largest(signed):
    scores = normal(50, 12)
    codes = topk_codes(scores, 5, signed).numpy()
    for row, kept in zip(scores.numpy(), codes, strict=True):
        size = np.abs(row) if signed else row
        expected = np.zeros(12)
        for place in np.argsort(size)[-5:]:
            expected[place] = row[place] if signed else max(row[place], 0.0)
        np.testing.assert_array_equal(kept, expected)


def test_batch_topk_keeps_the_largest_of_the_batch():
    scores = normal(40, 12, seed=1)
    codes = batch_topk_codes(scores, 3)
    threshold = np.sort(scores.numpy().ravel())[-120]
    expected = np.where(scores.numpy() >= threshold, scores.numpy(), 0.0)
    np.testing.assert_array_equal(codes.numpy(), np.maximum(expected, 0.0))
    assert len(set((codes > 0).sum(1).tolist())) > 1


@pytest.mark.parametrize("code", [topk_codes, batch_topk_codes])
def test_gradients_pass_to_what_fires_alone(code):
    scores = normal(6, 8, seed=2).requires_grad_()
    codes = code(scores, 2)
    codes.sum().backward()
    assert torch.equal(scores.grad, (codes > 0).double())


def test_codes_of_constants_are_finite_and_sparse():
    for code in (topk_codes, batch_topk_codes):
        assert int((code(torch.ones(4, 6), 2) != 0).sum()) == 8
        assert not code(-torch.ones(4, 6), 2).any()


# ------------------------------------------------------------------------------------------- cells
@pytest.mark.parametrize("k", [1, 4])
def test_topk_fires_the_power_diagram(k):
    points, sites, biases = normal(10_000, 6), normal(24, 6, seed=1), normal(24, seed=2)
    scores = points @ sites.T + biases
    fired = scores.topk(k, dim=1).indices.sort(dim=1).values
    assert torch.equal(power_cells(points, sites, biases, k), fired)
    # Power distances as they are defined, in NumPy.
    weights = (sites**2).sum(1) + 2 * biases
    distances = ((points[:200, None] - sites) ** 2).sum(2) - weights
    nearest = np.sort(np.argsort(distances.numpy(), axis=1)[:, :k], axis=1)
    np.testing.assert_array_equal(power_cells(points[:200], sites, biases, k).numpy(), nearest)


def test_without_weights_cells_are_those_of_the_nearest_site():
    points, sites = normal(500, 3), normal(9, 3, seed=1)
    biases = -sites.square().sum(1) / 2
    nearest = torch.cdist(points, sites).argmin(1, keepdim=True)
    assert torch.equal(power_cells(points, sites, biases, 1), nearest)


# ----------------------------------------------------------------------------------------- decoder
X, Z = normal(60, 7, seed=3) + 2, topk_codes(normal(60, 10, seed=4) + 1, 4)
BEFORE, START = normal(10, 7, seed=5), normal(7, seed=6)
PENALTIES = {"alpha": 0.3, "beta": 0.7, "mu": 1.1, "nu": 0.4}


def objective(dictionary, bias, alpha=0.0, beta=0.0, mu=0.0, nu=0.0, scale=1.0):
    fit = (X - Z @ dictionary - bias).square().sum() * scale
    ridge = alpha * dictionary.square().sum() + beta * bias.square().sum()
    near = mu * (dictionary - BEFORE).square().sum() + nu * (bias - START).square().sum()
    return fit + ridge + near


@pytest.mark.parametrize(
    "penalties", [PENALTIES, {"mu": 2.0}, {"nu": 3.0, "alpha": 0.1}, {"beta": 5.0, "alpha": 1e-3}]
)
def test_decoder_step_equals_a_stacked_ridge_solve(penalties):
    found = pam_decoder_step(X, Z, BEFORE, START, **penalties)
    weight = {**dict.fromkeys(PENALTIES, 0.0), **penalties}
    # Rows of [Z, 1] and, below them, the penalties of [D; b] as rows of their own.
    design, target = [np.c_[Z, np.ones(60)]], [X.numpy()]
    for name, aim in (("alpha", np.zeros((10, 7))), ("mu", BEFORE.numpy())):
        design.append(np.sqrt(weight[name]) * np.eye(11)[:10])
        target.append(np.sqrt(weight[name]) * aim)
    for name, aim in (("beta", np.zeros((1, 7))), ("nu", START.numpy()[None])):
        design.append(np.sqrt(weight[name]) * np.eye(11)[10:])
        target.append(np.sqrt(weight[name]) * aim)
    solved = np.linalg.lstsq(np.concatenate(design), np.concatenate(target), rcond=None)[0]
    np.testing.assert_allclose(found.dictionary.numpy(), solved[:10], atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), solved[10], atol=1e-10)


def test_without_penalties_it_is_least_squares():
    found = pam_decoder_step(X.float(), Z.float(), BEFORE.float(), START.float())
    design = np.c_[Z.float().double(), np.ones(60)]
    solved = np.linalg.lstsq(design, X.float().double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.dictionary.numpy(), solved[:10], atol=1e-8)
    np.testing.assert_allclose(found.bias.numpy(), solved[10], atol=1e-8)


def test_the_gradient_vanishes_and_the_objective_falls():
    found = pam_decoder_step(X, Z, BEFORE, START, **PENALTIES)
    dictionary, bias = (part.clone().requires_grad_() for part in found)
    value = objective(dictionary, bias, **PENALTIES)
    value.backward()
    assert dictionary.grad.abs().max() < 1e-9
    assert bias.grad.abs().max() < 1e-9
    assert value < objective(BEFORE, START, **PENALTIES)


def test_a_batch_stands_for_more_points():
    found = pam_decoder_step(X, Z, BEFORE, START, **PENALTIES, total=600)
    dictionary, bias = (part.clone().requires_grad_() for part in found)
    objective(dictionary, bias, **PENALTIES, scale=10.0).backward()
    assert dictionary.grad.abs().max() < 1e-8
    assert bias.grad.abs().max() < 1e-8


def test_strong_pulls_keep_the_decoder():
    kept = pam_decoder_step(X, Z, BEFORE, START, mu=1e12, nu=1e12)
    torch.testing.assert_close(kept.dictionary, BEFORE, atol=1e-8, rtol=0)
    torch.testing.assert_close(kept.bias, START, atol=1e-8, rtol=0)


def test_atoms_that_never_fire_become_zero_or_stay():
    codes = Z.clone()
    codes[:, 3] = 0
    free = pam_decoder_step(X, codes, BEFORE, START)
    assert free.dictionary[3].abs().max() < 1e-12
    rest = [i for i in range(10) if i != 3]
    solved = np.linalg.lstsq(np.c_[codes[:, rest], np.ones(60)], X.numpy(), rcond=None)[0]
    np.testing.assert_allclose(free.dictionary[rest].numpy(), solved[:9], atol=1e-8)
    held = pam_decoder_step(X, codes, BEFORE, START, mu=0.1)
    torch.testing.assert_close(held.dictionary[3], BEFORE[3])


# ---------------------------------------------------------------------------------------- baseline
def test_one_cell_is_pca():
    points, others = normal(80, 6) @ normal(6, 6, seed=1) + 3, normal(20, 6, seed=2)
    reference = PCA(2).fit(points.numpy())
    expected = reference.inverse_transform(reference.transform(others.numpy()))
    found = kmeans_pca(points, 1, 2).reconstruct(others)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_cells_are_those_of_kmeans_with_pca_in_each():
    centres = 40 * normal(4, 5, seed=3)
    points = centres.repeat(50, 1) + normal(200, 5, seed=4)
    found = kmeans_pca(points, 4, 2, seed=1)
    labels = KMeans(4, n_init=5, random_state=0).fit(points.numpy()).labels_
    error = 0.0
    for number in range(4):
        inside = points.numpy()[labels == number]
        error += np.linalg.eigvalsh(np.cov(inside.T, bias=True))[:3].sum() * len(inside)
    residual = (points - found.reconstruct(points)).square().sum().item()
    assert residual == pytest.approx(error, rel=1e-9)


def test_equal_points_leave_cells_empty_and_do_no_harm():
    points = torch.ones(10, 3)
    torch.testing.assert_close(kmeans_pca(points, 4, 2).reconstruct(points), points.double())


# ------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: topk_codes(normal(3, 4), 5), ValueError, "`k` must be at most the 4 atoms, got 5"),
        (lambda: batch_topk_codes(normal(3, 4), 0), ValueError, "`k` must be at least 1"),
        (lambda: topk_codes(torch.ones(3, 4, dtype=torch.long), 1), TypeError, "floating-point"),
        (lambda: topk_codes(normal(4), 1), ValueError, r"shape \(N, c\), got \(4,\)"),
        (
            lambda: power_cells(normal(3, 2), normal(4, 2), normal(4), 5),
            ValueError,
            "at most the 4 sites",
        ),
        (
            lambda: power_cells(normal(3, 2), normal(4, 2), normal(3), 1),
            ValueError,
            "same number of rows",
        ),
        (
            lambda: pam_decoder_step(X, Z, BEFORE[:9], START),
            ValueError,
            r"`dictionary` must have shape \(10, 7\), got \(9, 7\)",
        ),
        (lambda: pam_decoder_step(X, Z, BEFORE, START[:3]), ValueError, r"`bias` must have shape"),
        (lambda: pam_decoder_step(X, Z, BEFORE, START, mu=-1.0), ValueError, "`mu` must lie in"),
        (lambda: pam_decoder_step(X, Z[:9], BEFORE, START), ValueError, "same number of rows"),
        (lambda: pam_decoder_step(X, Z, BEFORE, START, total=0), ValueError, "`total`"),
        (lambda: kmeans_pca(normal(5, 3), 6, 1), ValueError, "`cells` must be at most 5, got 6"),
        (lambda: kmeans_pca(normal(5, 3), 2, 4), ValueError, "`rank` must be at most 3, got 4"),
        (
            lambda: kmeans_pca(normal(5, 3) * torch.nan, 2, 1),
            ValueError,
            "`points` has 5 non-finite rows",
        ),
    ],
)
def test_errors_name_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
