import math

import numpy as np
import pytest
import torch
from scipy import stats

from jepa_monitor.functional import hdr_pit, kolmogorov_smirnov, predictive_pit, sequential
from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional.gaussian import Gaussian


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def naive_levels(z, start):
    """Each row by mean and covariance of the rows before it, and SciPy's F law."""
    levels = []
    for n in range(start, len(z)):
        before, k = z[:n], z.shape[1]
        deviation = z[n] - before.mean(0)
        covariance = np.cov(before.T).reshape(k, k)
        squared = deviation @ np.linalg.solve(covariance, deviation)
        levels.append(stats.f.cdf(squared * (n - k) * n / ((n**2 - 1) * k), k, n - k))
    return torch.tensor(levels)


@pytest.mark.parametrize(("n", "k", "start"), [(30, 1, 2), (60, 5, 6), (90, 20, 40)])
def test_levels_are_those_of_the_definition(n, k, start, monkeypatch):
    monkeypatch.setattr(sequential, "_BLOCK", 7)
    z = normal(n, k) @ normal(k, k, seed=1) + 5
    lower, upper = sequential.sequential_tails(z, start)
    torch.testing.assert_close(lower, naive_levels(z.numpy(), start), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(upper, 1 - lower, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "k"), [(64, 8), (64, 31), (64, 64), (64, 128), (200, 96)])
def test_levels_are_uniform_and_independent_whatever_n_and_k(m, k):
    scale = torch.logspace(0, -3, k, dtype=torch.float64)
    together, errors = [], []
    for seed in range(60):
        z = normal(m + 64, k, seed) * scale + 3
        levels, axes = predictive_pit(z[m:], z[:m])
        assert axes == min(k, (m - 1) // 2)
        together.append(levels)
        errors.append(kolmogorov_smirnov(levels).p_value)
    assert stats.kstest(torch.cat(together).numpy(), "uniform").pvalue > 0.005
    assert stats.kstest(torch.stack(errors).numpy(), "uniform").pvalue > 0.005
    series = torch.stack(together) - 0.5
    neighbours = (series[:, 1:] * series[:, :-1]).mean() * 12
    assert abs(neighbours) < 4 / math.sqrt(60 * 63)


def test_the_law_as_fitted_reads_the_number_of_embeddings_and_these_levels_do_not():
    z = normal(1024, 192) * torch.logspace(0, -2, 192, dtype=torch.float64)
    reference, probe = z[:512], z[512:]
    assert kolmogorov_smirnov(hdr_pit(probe, Gaussian.fit(reference))).p_value < 1e-6
    assert kolmogorov_smirnov(predictive_pit(probe, reference).levels).p_value > 0.01


@pytest.mark.parametrize(("scale", "sign"), [(1.2, 1), (0.8, -1)])
def test_wider_and_narrower_probes_are_seen(scale, sign):
    z = normal(600, 16)
    levels = predictive_pit(scale * z[300:], z[:300]).levels
    assert sign * (levels.mean() - 0.5) > 0.05
    assert kolmogorov_smirnov(levels).p_value < 1e-3


def test_directions_without_variance_are_left_out():
    z = normal(120, 3) @ normal(3, 9, seed=1)
    flat, axes = predictive_pit(z[60:], z[:60])
    assert axes == 3
    full = predictive_pit(z[60:, :3], z[:60, :3]).levels
    torch.testing.assert_close(flat, full, rtol=1e-6, atol=1e-9)
    levels, axes = predictive_pit(torch.ones(5, 4), torch.ones(8, 4))
    assert axes == 0
    assert (levels == 0.5).all()


@pytest.mark.parametrize(("n", "k"), [(40, 6), (12, 30)])
def test_principal_scores_against_svd(n, k):
    z = normal(n, k) * torch.logspace(0, -2, k, dtype=torch.float64) + 7
    scores, variances = principal_scores(z, 2**-52)
    left, values, _ = np.linalg.svd((z - z.mean(0)).numpy(), full_matrices=False)
    rank = min(n - 1, k)
    assert scores.shape == (n, rank)
    np.testing.assert_allclose(variances[:rank], values[:rank] ** 2 / n, rtol=1e-8)
    overlap = np.abs(left[:, :rank].T @ scores.numpy()) / math.sqrt(n)
    np.testing.assert_allclose(overlap, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_a_reference_without_a_direction_of_the_embeddings_has_no_law_for_them(rounding):
    generator = torch.Generator().manual_seed(0)
    known, others = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (60, 20))
    known[:, 4] = known[:, 3] + rounding * known[:, 4]
    with pytest.raises(
        ValueError, match="first 60 embeddings do not vary in all of the 5 directions"
    ):
        predictive_pit(others, known)
    known[:, 4] = known[:, 3] + 1e-3 * torch.randn(60, generator=generator, dtype=torch.float64)
    assert predictive_pit(others, known).levels[0] > 0.999


def test_errors():
    with pytest.raises(ValueError, match="`reference` must have at least 4 rows, got 3"):
        predictive_pit(normal(5, 2), normal(3, 2))
    with pytest.raises(ValueError, match="`embeddings` and `reference` must have the same last"):
        predictive_pit(normal(5, 2), normal(9, 3))
