import numpy as np
import pytest
import torch
from scipy import stats

from jepa_monitor.functional import outlier_fraction, robust_fence
from jepa_monitor.functional._intervals import clopper_pearson_interval


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("successes", "total"), [(0, 10), (10, 10), (1, 1), (3, 17), (50, 1000), (900, 100_000)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_clopper_pearson_against_scipy(successes, total, confidence):
    expected = stats.binomtest(successes, total).proportion_ci(confidence, method="exact")
    found = clopper_pearson_interval(successes, total, confidence)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-12)


def test_expected_share_is_exact_over_draws():
    fractions = [
        outlier_fraction(normal(500, seed=seed), normal(30, seed=seed + 1000), alpha=0.1)
        for seed in range(300)
    ]
    assert fractions[0].expected.item() == pytest.approx(3 / 31)
    mean = np.mean([value.fraction for value in fractions])
    sd = (0.1 * 0.9 * (1 / 500 + 1 / 30)) ** 0.5
    assert mean == pytest.approx(3 / 31, abs=4 * sd / 300**0.5)


def test_outlier_fraction_against_counting():
    scores, reference = normal(200) - 0.5, normal(99, seed=1)
    found = outlier_fraction(scores, reference, alpha=0.05)
    assert found.threshold == reference.sort().values[4]
    below = int((scores < found.threshold).sum())
    law = stats.betabinom(200, 5, 95)
    assert found.fraction == below / 200
    assert (200 * found.lower.item(), 200 * found.upper.item()) == pytest.approx(law.interval(0.95))
    p_value = 2 * min(law.cdf(below), law.sf(below - 1))
    assert found.p_value.item() == pytest.approx(min(1, p_value), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(256, 256), (64, 40), (1000, 64)])
def test_the_share_stays_in_its_interval_under_one_law(n, m):
    inside = small = 0
    for seed in range(400):
        found = outlier_fraction(normal(n, seed=seed), normal(m, seed=seed + 1000))
        inside += bool(found.lower <= found.fraction <= found.upper)
        small += bool(found.p_value < 0.05)
    assert inside >= stats.binom.ppf(1e-3, 400, 0.95)
    assert small <= stats.binom.isf(1e-3, 400, 0.05)


def test_the_share_of_a_shifted_probe_leaves_its_interval():
    found = outlier_fraction(normal(256) - 1, normal(256, seed=1))
    assert found.fraction > found.upper
    assert found.p_value < 0.01


def test_constant_scores_do_not_look_expected():
    found = outlier_fraction(torch.ones(500), torch.ones(99))
    assert found.fraction == 0
    assert found.lower > 0
    assert found.p_value < 0.05


def test_reference_too_small():
    with pytest.raises(ValueError, match=r"at least 19 values for alpha=0\.05, got 18\."):
        outlier_fraction(normal(5), normal(18))
    assert outlier_fraction(normal(5), normal(19)).expected == 0.05


def test_robust_fence_against_scipy():
    for n in (40, 41):
        scores = normal(n) * 7 - 300
        mad = stats.median_abs_deviation(scores.numpy())
        expected = np.median(scores.numpy()) - 3 * 1.4826 * mad
        assert robust_fence(scores).item() == pytest.approx(expected)
    assert robust_fence(torch.ones(5)) == 1
    share = (normal(200_000) < robust_fence(normal(200_000, seed=1))).double().mean()
    assert share.item() == pytest.approx(stats.norm.cdf(-3), rel=0.15)


def test_errors():
    with pytest.raises(ValueError, match=r"`k` must lie in \(0, inf\), got 0"):
        robust_fence(normal(3), k=0)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\), got 0"):
        outlier_fraction(normal(3), normal(3), alpha=0)


@pytest.mark.parametrize("below", [0, 3, 20, 120, 200])
def test_both_tails_against_scipy_however_small(below):
    scores = torch.cat([torch.full((below,), -9.0), torch.full((200 - below,), 9.0)])
    law = stats.betabinom(200, 5, 95)
    expected = min(1.0, 2 * min(law.cdf(below), law.sf(below - 1)))
    found = outlier_fraction(scores, normal(99).clamp(-8, 8)).p_value.item()
    assert found == pytest.approx(expected, rel=1e-6)
    assert found > 0
