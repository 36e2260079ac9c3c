import numpy as np
import pytest
import torch
from scipy import stats

from jepa_monitor.functional import (
    calibration_error,
    coverage_curve,
    coverage_gap,
    density_agreement,
    hdr_pit,
    kolmogorov_smirnov,
    rank_pit,
    two_sample_kolmogorov_smirnov,
    wilson_interval,
)
from jepa_monitor.functional._intervals import ratio_interval
from jepa_monitor.functional.gaussian import Gaussian


def uniform(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator, dtype=torch.float64)


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 8, 64, 768])
def test_hdr_pit_against_scipy(k):
    law = Gaussian(torch.zeros(k).double(), 4 * torch.eye(k).double(), 100, 0.0)
    z = 2 * normal(50, k)
    expected = stats.chi2.cdf(z.square().sum(1).numpy() / 4, k)
    torch.testing.assert_close(hdr_pit(z, law), torch.from_numpy(expected), rtol=1e-7, atol=1e-9)


def test_hdr_pit_tells_wide_from_narrow():
    reference = normal(4000, 8)
    law = Gaussian.fit(reference)
    for scale, sign in ((0.8, 1), (1.0, 0), (1.25, -1)):
        u = hdr_pit(scale * normal(2000, 8, seed=1), law)
        gap = coverage_gap(u).item()
        assert abs(gap) < 0.03 if sign == 0 else sign * gap > 0.1
        assert (kolmogorov_smirnov(u).p_value > 0.01) == (sign == 0)


def test_hdr_pit_of_collapse_is_not_calibrated():
    law = Gaussian.fit(normal(500, 8))
    u = hdr_pit(torch.zeros(200, 8), law)
    assert calibration_error(u) > 0.45
    point = Gaussian.fit(torch.ones(100, 8))
    assert calibration_error(hdr_pit(torch.ones(50, 8), point)) > 0.45
    assert calibration_error(hdr_pit(normal(50, 8), point)) > 0.45


@pytest.mark.parametrize("n", [10, 37, 200, 3000])
@pytest.mark.parametrize("power", [1.0, 1.2, 2.0])
def test_kolmogorov_smirnov_against_scipy(n, power):
    u = uniform(n) ** power
    expected = stats.kstest(u.numpy(), "uniform")
    found = kolmogorov_smirnov(u)
    assert found.distance.item() == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p_value.item() == pytest.approx(expected.pvalue, abs=3e-3 if n < 50 else 3e-4)


def test_kolmogorov_smirnov_with_ties_and_bounds():
    u = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0])
    found = kolmogorov_smirnov(u)
    assert found.distance.item() == pytest.approx(stats.kstest(u.numpy(), "uniform").statistic)
    assert kolmogorov_smirnov(torch.zeros(100)).distance == 1
    assert kolmogorov_smirnov(torch.zeros(100)).p_value < 1e-10


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 9), (12, 12), (30, 17), (64, 64), (64, 400)])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("ties", [False, True])
def test_two_samples_against_scipy(n, m, shift, ties):
    scores, others = normal(n, 1, 1)[:, 0] + shift, normal(m, 1, 2)[:, 0]
    if ties:
        scores, others = scores.round(), others.round()
    expected = stats.ks_2samp(scores.numpy(), others.numpy(), method="exact")
    found = two_sample_kolmogorov_smirnov(scores, others)
    assert found.distance.item() == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p_value.item() == pytest.approx(expected.pvalue, rel=1e-9)


def test_equal_scores_of_one_law_are_not_rejected():
    found = two_sample_kolmogorov_smirnov(torch.ones(200), torch.ones(100))
    assert (found.distance, found.p_value) == (0, 1)


def test_ranks_that_share_a_reference_are_not_independent():
    rejected = naive = 0
    for seed in range(400):
        scores, reference = normal(100, 1, seed)[:, 0], normal(100, 1, seed + 1000)[:, 0]
        rejected += bool(two_sample_kolmogorov_smirnov(scores, reference).p_value < 0.05)
        naive += bool(kolmogorov_smirnov(rank_pit(scores, reference)).p_value < 0.05)
    assert 5 <= rejected <= 32  # 20 expected; discrete ranks make it a little conservative
    assert naive > 60  # what forgetting the reference costs


def test_rank_pit_against_counting():
    scores, reference = normal(30, 1)[:, 0].round(), normal(20, 1, 1)[:, 0].round()
    s, r = scores.numpy()[:, None], reference.numpy()
    expected = ((r < s).sum(1) + 0.5 * (r == s).sum(1) + 0.5) / 21
    torch.testing.assert_close(rank_pit(scores, reference), torch.from_numpy(expected))


def test_rank_pit_of_constant_scores_is_one_half_and_not_calibrated():
    u = rank_pit(torch.ones(200), torch.ones(100))
    assert (u == 0.5).all()
    assert calibration_error(u) > 0.2


def test_coverage_curve_and_wilson_intervals_against_scipy():
    u = uniform(200)
    curve = coverage_curve(u, num_levels=9)
    for level, coverage, lower, upper in zip(*curve, strict=True):
        successes = int((u <= level).sum())
        interval = stats.binomtest(successes, 200).proportion_ci(method="wilson")
        assert coverage == successes / 200
        assert (lower.item(), upper.item()) == pytest.approx((interval.low, interval.high))
    assert curve.level.tolist() == pytest.approx(np.arange(1, 10) / 10)


@pytest.mark.parametrize("successes", [0, 10])
def test_wilson_at_the_ends(successes):
    found = wilson_interval(torch.tensor(successes), 10, confidence=0.9)
    expected = stats.binomtest(successes, 10).proportion_ci(0.9, method="wilson")
    assert (found.lower.item(), found.upper.item()) == pytest.approx((expected.low, expected.high))


def test_wilson_takes_numbers_and_refuses_what_is_no_share():
    expected = stats.binomtest(3, 10).proportion_ci(method="wilson")
    found = wilson_interval(3, 10)
    assert (found.lower.item(), found.upper.item()) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="`total` must be above 0, got 0"):
        wilson_interval(0, 0)
    for successes in (11, -1, torch.tensor([3, 11])):
        with pytest.raises(ValueError, match=r"`successes` must lie in \[0, 10\]"):
            wilson_interval(successes, 10)


def test_a_ratio_of_sums_is_the_mean_where_all_denominators_are_one():
    values = normal(40, 1)[:, 0]
    ratio, (low, high) = ratio_interval(values, torch.ones(40))
    mean, error = values.mean().item(), stats.sem(values)
    found = [value.item() for value in (low, ratio, high)]
    z = stats.norm.ppf(0.975)
    assert found == pytest.approx([mean - z * error, mean, mean + z * error])


def test_the_interval_of_a_ratio_covers_it():
    """Weights that vary fourfold, and values that go with them: of 2000 samples of 40 pairs."""
    weights = 0.5 + 1.5 * uniform(80_000).view(2000, 40)
    numerators = weights * (2 + weights + normal(2000, 40, 1))
    second = (2.0**3 - 0.5**3) / (3 * 1.5)  # of a weight that is uniform from 0.5 to 2
    truth = 2 + second / 1.25
    inside = 0
    for a, b in zip(numerators, weights, strict=True):
        _, (low, high) = ratio_interval(a, b)
        inside += int(low <= truth <= high)
    assert 0.92 <= inside / 2000 <= 0.96


def test_error_and_gap_under_calibration():
    errors = torch.stack([calibration_error(uniform(400, seed), 99) for seed in range(200)])
    assert errors.mean().item() == pytest.approx(0.31 / 20, rel=0.1)
    gaps = torch.stack([coverage_gap(uniform(400, seed)) for seed in range(200)])
    assert gaps.std().item() == pytest.approx(0.289 / 20, rel=0.15)


def test_gap_is_the_area():
    u = uniform(50) ** 2
    curve = coverage_curve(u, num_levels=9999)
    area = (curve.coverage - curve.level).mean().item()
    assert coverage_gap(u).item() == pytest.approx(area, abs=1e-3)


def test_density_agreement_against_scipy():
    truth = normal(60, 1)[:, 0].round(decimals=1)
    score = (0.7 * truth + normal(60, 1, 1)[:, 0]).round()
    found = density_agreement(score, truth)
    assert found.spearman.item() == pytest.approx(stats.spearmanr(score, truth).statistic)
    assert found.pearson.item() == pytest.approx(stats.pearsonr(score, truth).statistic)
    assert found.slope.item() == pytest.approx(stats.linregress(truth, score).slope)


def test_constant_score_agrees_with_nothing():
    truth = normal(20, 1)[:, 0]
    for pair in ((torch.full((20,), 0.1), truth), (truth, torch.ones(20))):
        assert [value.item() for value in density_agreement(*pair)] == [0, 0, 0]


def test_errors():
    with pytest.raises(ValueError, match=r"`u` must lie in \[0, 1\], got values from -1 to 2"):
        coverage_gap(torch.tensor([-1.0, 2.0]))
    with pytest.raises(ValueError, match="`num_levels` must be at least 1"):
        coverage_curve(uniform(3), num_levels=0)
    with pytest.raises(ValueError, match=r"`confidence` must lie in \(0, 1\), got 1"):
        coverage_curve(uniform(3), confidence=1)
    with pytest.raises(ValueError, match="`scores` and `true_log_density` must have the same"):
        density_agreement(uniform(3), uniform(4))
    with pytest.raises(ValueError, match="`scores` must have at least 2 rows, got 1"):
        density_agreement(uniform(1), uniform(1))
    with pytest.raises(ValueError, match="`reference_scores` must have at least 1 row, got 0"):
        rank_pit(uniform(3), uniform(0))
    with pytest.raises(ValueError, match="`scores` must have at least 1 row, got 0"):
        two_sample_kolmogorov_smirnov(uniform(0), uniform(3))
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 3\)"):
        hdr_pit(torch.ones(2, 2), Gaussian.fit(normal(10, 3)))
