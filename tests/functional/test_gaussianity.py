import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from jepa_monitor.functional import _null_laws as null
from jepa_monitor.functional import epps_pulley, gaussianity, henze_zirkler, sliced_epps_pulley


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def test_epps_pulley_against_direct_integration():
    x = normal(30, 1, seed=3)[:, 0].numpy() * 1.3 + 0.2

    def integrand(t):
        deviation = abs(np.exp(1j * t * x).mean() - math.exp(-t * t / 2)) ** 2
        return deviation * math.exp(-t * t / 2)

    expected = 30 * integrate.quad(integrand, -3, 3)[0]
    value = epps_pulley(torch.from_numpy(x)[:, None]).item()
    assert value == pytest.approx(expected, rel=5e-3)  # the trapezoidal rule of the definition
    t = np.linspace(-3, 3, 33)
    trapezoid = 30 * integrate.trapezoid([integrand(s) for s in t], t)
    assert value == pytest.approx(trapezoid, rel=1e-12)


@pytest.mark.parametrize(
    ("estimated", "weights", "mean", "sd"),
    [
        (False, [0.5916, 0.3191, 0.0854, 0.0394, 0.0111, 0.0043], 1.0525, 0.960),
        (True, [0.1856, 0.1114, 0.0195, 0.0099, 0.0017], 0.3289, 0.308),
    ],
)
def test_null_constants(estimated, weights, mean, sd):
    found = null.null_eigenvalues(estimated)
    assert found[: len(weights)].tolist() == pytest.approx(weights, abs=6e-5)
    assert null.slice_mean(estimated) == pytest.approx(mean, abs=5e-5)
    assert null.average_sd(64, 1, estimated) == pytest.approx(sd, abs=5e-4)


def test_null_eigenvalues_are_those_of_the_simulated_process():
    x = normal(40_000, 1, seed=5)[:, 0].numpy()
    t = np.linspace(-3, 3, 33)
    weight = np.exp(-(t**2) / 2) * 3 / 16
    weight[[0, -1]] /= 2
    process = np.exp(1j * np.outer(x, t)) - np.exp(-(t**2) / 2)
    scaled = process * np.sqrt(weight)
    real = np.concatenate([scaled.real, scaled.imag], axis=1)
    eigenvalues = np.linalg.eigvalsh(real.T @ real / len(x))[::-1]
    assert null.null_eigenvalues(False)[:4].tolist() == pytest.approx(eigenvalues[:4], rel=0.03)


@pytest.mark.parametrize(
    ("estimated", "quantiles"),
    [(False, [0.76, 2.27, 2.95, 4.60, 6.95]), (True, [0.235, 0.72, 0.94, 1.45, 2.22])],
)
def test_null_quantiles(estimated, quantiles):
    tails = [null.slice_tail(quantile, estimated) for quantile in quantiles]
    assert tails == pytest.approx([0.5, 0.1, 0.05, 0.01, 0.001], rel=0.1)


def test_tail_is_a_decreasing_probability_everywhere():
    for estimated in (False, True):
        grid = np.concatenate([np.linspace(0, 30, 61), [100, 1e3, 1e6]])
        tails = [null.slice_tail(x, estimated) for x in grid]
        assert tails[0] == pytest.approx(1, abs=1e-6)
        assert all(a >= b >= 0 for a, b in itertools.pairwise(tails))


def test_tail_of_one_weight_is_chi_square(monkeypatch):
    monkeypatch.setattr(null, "null_eigenvalues", lambda *_, **__: torch.full((4,), 0.5).double())
    monkeypatch.setattr(null, "_imhof_tables", null._imhof_tables.__wrapped__)
    for x in (0.5, 2.0, 6.0):
        assert null.slice_tail(x, False) == pytest.approx(stats.chi2.sf(x / 0.5, 4), abs=1e-6)
    for copies in (1, 3):  # of a single weight the approximation by three moments is exact
        tail = stats.chi2.sf(3.0 / 0.5, 4 * copies)
        assert null.sum_tail(3.0, copies) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("copies", [2, 8, 64])
def test_tail_of_a_sum_by_simulation(copies):
    weights = null.null_eigenvalues(True)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(20_000, copies * len(weights), generator=generator, dtype=torch.float64)
    totals = draws.square() @ weights.repeat(copies)
    for level in (0.5, 0.1, 0.01):
        tail = null.sum_tail(float(totals.quantile(1 - level)), copies)
        assert tail == pytest.approx(level, rel=0.25 if level < 0.1 else 0.08)


def test_blocks_of_columns_make_no_difference(monkeypatch):
    x = normal(50, 7)
    whole = gaussianity.characteristic_sums(x)
    monkeypatch.setattr(gaussianity, "_CACHED", 100)
    torch.testing.assert_close(gaussianity.characteristic_sums(x), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("width", "slices", "estimated", "sd"),
    [
        (64, 1024, False, 0.0915),
        (512, 1024, False, 0.0426),
        (768, 1024, False, 0.0388),
        (2, 10**6, False, 0.62),
        (16, 256, True, 0.022),
        (64, 1024, True, 0.308 / 32),
    ],
)
def test_sd_of_the_average(width, slices, estimated, sd):
    assert null.average_sd(width, slices, estimated) == pytest.approx(sd, rel=0.015)


@pytest.mark.parametrize("mode", ["none", "whitened"])
def test_null_law_by_simulation(mode):
    runs = [
        sliced_epps_pulley(normal(200, 16, seed), 128, seed, standardized=mode)
        for seed in range(200)
    ]
    scores = torch.stack([run.z_score for run in runs])
    assert abs(scores.mean()) < 4 / 200**0.5
    assert scores.std().item() == pytest.approx(1, abs=0.2)
    p_values = torch.stack([run.max_p_value for run in runs])
    assert (p_values < 0.05).double().mean() < 0.1


@pytest.mark.parametrize(
    ("scale", "shift", "effect"),
    [(0.0, 0.0, 0.402), (0.5, 0.0, 0.151), (2.0, 0.0, 0.234), (1.0, 0.5, 0.118)],
)
@pytest.mark.parametrize("n", [1000, 8000])
def test_effect_size_does_not_depend_on_n(scale, shift, effect, n):
    z = scale * normal(n, 1) + shift
    found = sliced_epps_pulley(z, num_slices=4)
    assert found.effect_size.item() == pytest.approx(effect, abs=0.015)
    assert found.z_score > 10


@pytest.mark.parametrize("make", [lambda u: (u - 0.5) * 12**0.5, stats.laplace.ppf])
def test_shapes_of_unit_variance_are_seen_whitened(make):
    u = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sliced_epps_pulley(torch.as_tensor(make(u)), 4, standardized="whitened")
    assert found.z_score > 10
    assert found.effect_size.item() == pytest.approx(0.0164, abs=0.006)


def test_whitened_is_affine_invariant():
    z = normal(300, 4).exp()
    moved = z * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 7
    first, second = (
        sliced_epps_pulley(x, 4000, standardized="whitened").statistic for x in (z, moved)
    )
    assert first.item() == pytest.approx(second.item(), rel=0.05)  # up to the rotation


def test_one_bad_direction_shows_in_the_maximum():
    z = normal(4000, 2)
    z[:, 0] = z[:, 0].sign()
    found = sliced_epps_pulley(z, 64)
    assert found.max_p_value < 1e-6
    assert found.max_statistic > 2 * found.statistic


@pytest.mark.parametrize("mode", ["none", "whitened"])
@pytest.mark.parametrize("value", [0.0, 0.1, 50.0])
def test_constant_embeddings_are_never_normal(mode, value):
    found = sliced_epps_pulley(torch.full((100, 8), value), standardized=mode)
    assert found.z_score > 10
    assert found.max_p_value < 1e-6


def test_dimensional_collapse_is_not_normal():
    z = normal(500, 2) @ normal(2, 16, seed=1)
    assert sliced_epps_pulley(z, standardized="whitened").z_score > 10
    assert sliced_epps_pulley(z.float(), standardized="whitened").z_score > 10


def test_directions_are_seeded_and_leave_the_global_generator_alone():
    z = normal(100, 8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sliced_epps_pulley(z, 16, seed=3).statistic
    assert torch.equal(torch.get_rng_state(), before)
    assert first == sliced_epps_pulley(z, 16, seed=3).statistic
    assert first != sliced_epps_pulley(z, 16, seed=4).statistic
    directions = gaussianity.slice_directions(8, 16, 3)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(16).double())


def naive_henze_zirkler(x):
    """Double loop over the definition, with the log-normal law of the paper."""
    n, d = x.shape
    y = (x - x.mean(0)) @ np.linalg.inv(np.cov(x.T, bias=True).reshape(d, d)) @ (x - x.mean(0)).T
    b = ((2 * d + 1) * n / 4) ** (1 / (d + 4)) / np.sqrt(2)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += np.exp(-(b**2) / 2 * (y[i, i] - 2 * y[i, j] + y[j, j])) / n
        total -= 2 * (1 + b**2) ** (-d / 2) * np.exp(-(b**2) / (2 * (1 + b**2)) * y[i, i])
    hz = total + n * (1 + 2 * b**2) ** (-d / 2)
    wb, a = (1 + b**2) * (1 + 3 * b**2), 1 + 2 * b**2
    mu = 1 - a ** (-d / 2) * (1 + d * b**2 / a + d * (d + 2) * b**4 / (2 * a**2))
    si2 = (
        2 * (1 + 4 * b**2) ** (-d / 2)
        + 2 * a ** (-d) * (1 + 2 * d * b**4 / a**2 + 3 * d * (d + 2) * b**8 / (4 * a**4))
        - 4 * wb ** (-d / 2) * (1 + 3 * d * b**4 / (2 * wb) + d * (d + 2) * b**8 / (2 * wb**2))
    )
    psi = np.sqrt(np.log(1 + si2 / mu**2))
    return hz, stats.lognorm.sf(hz, psi, scale=np.sqrt(mu**4 / (si2 + mu**2)))


@pytest.mark.parametrize(("n", "d"), [(40, 1), (50, 3), (60, 10)])
def test_henze_zirkler_against_the_definition(n, d, monkeypatch):
    monkeypatch.setattr(gaussianity, "_BLOCK", 16)
    x = normal(n, d) @ normal(d, d, seed=1) + 0.3 * normal(n, d, seed=2) ** 2
    statistic, p_value = naive_henze_zirkler(x.numpy())
    found = henze_zirkler(x)
    assert found.statistic.item() == pytest.approx(statistic, rel=1e-9)
    assert found.p_value.item() == pytest.approx(p_value, rel=1e-6)


def test_henze_zirkler_size():
    rejected = [bool(henze_zirkler(normal(200, 3, seed)).p_value < 0.05) for seed in range(300)]
    assert 0.02 < np.mean(rejected) < 0.09


@pytest.mark.parametrize(
    "z", [torch.ones(20, 3), torch.zeros(20, 3), torch.ones(20, 1) * torch.eye(3)[0], normal(3, 5)]
)
def test_henze_zirkler_of_singular_embeddings(z):
    found = henze_zirkler(z)
    assert found.statistic == 4 * len(z)
    assert found.p_value == 0


def test_errors():
    z = normal(10, 4)
    with pytest.raises(ValueError, match="`standardized` must be one of none, whitened, got 'zca'"):
        sliced_epps_pulley(z, standardized="zca")
    with pytest.raises(ValueError, match=r"more rows than columns to be whitened, got \(4, 4\)"):
        sliced_epps_pulley(z[:4], standardized="whitened")
    with pytest.raises(ValueError, match="`num_slices` must be at least 1, got 0"):
        sliced_epps_pulley(z, num_slices=0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        sliced_epps_pulley(z[:1])
