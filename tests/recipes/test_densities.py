"""The distributions are what they say: SciPy's density, an integral of 1, and samples that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from jepa_monitor.recipes.densities import NAMES, Bananas, GaussianMixture, Ring, make_density


def _samples(name: str, dim: int, count: int = 4000, seed: int = 3) -> torch.Tensor:
    return make_density(name, dim).sample(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_mixture_agrees_with_scipy(dim: int) -> None:
    mixture = GaussianMixture.random(dim)
    points = _samples("mixture", dim, 50)
    expected = sum(
        weight * stats.multivariate_normal(mean, scale**2).pdf(points)
        for mean, scale, weight in zip(
            mixture.means.double().numpy(),
            mixture.scales.double().numpy(),
            mixture.weights.double().numpy(),
            strict=True,
        )
    )
    np.testing.assert_allclose(mixture.log_prob(points), np.log(expected), rtol=1e-10)


@pytest.mark.parametrize("dim", [2, 5])
def test_ring_agrees_with_rices_law_of_the_radius(dim: int) -> None:
    ring = Ring(dim, radius=1.4, thickness=0.3)
    points = _samples("ring", dim, 50).double().numpy()
    r = np.linalg.norm(points[:, :2], axis=1)
    rice = stats.rice(1.4 / 0.3, scale=0.3).logpdf(r)
    expected = rice - np.log(2 * math.pi * r) + stats.norm.logpdf(points[:, 2:]).sum(1)
    np.testing.assert_allclose(ring.log_prob(torch.from_numpy(points)), expected, rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 5, 8])
def test_bananas_agree_with_the_law_of_one_coordinate_given_the_other(dim: int) -> None:
    points = _samples("bananas", dim, 50).double().numpy()
    expected = stats.norm.logpdf(points[:, 0::2]).sum(1)
    for i in range(dim // 2):
        u, v = points[:, 2 * i], points[:, 2 * i + 1]
        expected += stats.norm(0.6 * (u**2 - 1), 0.5).logpdf(v)
    found = Bananas(dim, 0.6, 0.5).log_prob(torch.from_numpy(points))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name: str) -> None:
    density = make_density(name, 2)
    axis = torch.linspace(-6, 10, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    values = density.log_prob(grid).exp().view(len(axis), len(axis)).numpy()
    total = integrate.simpson(integrate.simpson(values, x=axis.numpy()), x=axis.numpy())
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name: str) -> None:
    """Each marginal in the plane against the integral of the density, by Kolmogorov and Smirnov."""
    density, points = make_density(name, 2), _samples(name, 2).numpy()
    axis = torch.linspace(-6, 10, 401, dtype=torch.float64)
    values = density.log_prob(torch.cartesian_prod(axis, axis)).exp().view(401, 401).numpy()
    for i in range(2):
        marginal = integrate.simpson(values, x=axis.numpy(), axis=1 - i)
        cdf = integrate.cumulative_simpson(marginal, x=axis.numpy(), initial=0)
        found = stats.kstest(points[:, i], lambda x, cdf=cdf: np.interp(x, axis.numpy(), cdf))
        assert found.pvalue > 0.01


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_samples_follow_the_law_that_theory_gives_them(dim: int) -> None:
    """In any dimension: a projection of the mixture, the ring's radius, the bananas' straight u, v."""
    mixture = GaussianMixture.random(dim)
    direction = torch.nn.functional.normalize(torch.ones(dim), dim=0)
    centres = (mixture.means @ direction).numpy()

    def cdf(x: np.ndarray) -> np.ndarray:
        parts = stats.norm.cdf((x[:, None] - centres) / mixture.scales.numpy())
        return parts @ mixture.weights.numpy()

    assert stats.kstest((_samples("mixture", dim) @ direction).numpy(), cdf).pvalue > 0.01

    ring = _samples("ring", dim).numpy()
    radius = np.linalg.norm(ring[:, :2], axis=1)
    assert stats.kstest(radius, stats.rice(1.4 / 0.3, scale=0.3).cdf).pvalue > 0.01
    angle = np.arctan2(ring[:, 1], ring[:, 0])
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01
    if dim > 2:
        rest = (ring[:, 2:] ** 2).sum(1)
        assert stats.kstest(rest, stats.chi2(dim - 2).cdf).pvalue > 0.01

    bananas = _samples("bananas", dim).numpy()
    u, v = bananas[:, 0::2], bananas[:, 1::2]
    squares = (u**2).sum(1) + (((v - 0.6 * (u**2 - 1)) / 0.5) ** 2).sum(1)
    assert stats.kstest(squares, stats.chi2(dim).cdf).pvalue > 0.01


def test_points_depend_on_the_generator_alone() -> None:
    for name in NAMES:
        first, again, other = (_samples(name, 4, 10, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.dtype == torch.float32


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match="`name` must be one of mixture, ring, bananas, got 'cube'"
    ):
        make_density("cube", 2)
    for kind in (Ring, Bananas):
        with pytest.raises(ValueError, match="`dim` must be at least 2, got 1"):
            kind(1)
