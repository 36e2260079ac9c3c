import pytest
import torch
from scipy import stats

from jepa_monitor.functional import paired_polarity, severity_order
from jepa_monitor.insights.polarity import order_scalars, polarity_scalars


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_polarity_counts_pairs_and_half_of_ties():
    scores, worse = normal(40).round(), normal(3, 40, seed=1).round()
    wins = [
        (a > b) + 0.5 * (a == b)
        for version in worse.tolist()
        for a, b in zip(scores.tolist(), version, strict=True)
    ]
    assert paired_polarity(scores, worse).polarity.item() == pytest.approx(sum(wins) / 120)


def test_interval_is_wilsons_where_there_is_one_version():
    scores = torch.arange(20.0)
    worse = scores[None] + torch.where(torch.arange(20) < 14, -1.0, 1.0)
    found = paired_polarity(scores, worse, confidence=0.9)
    expected = stats.binomtest(14, 20).proportion_ci(0.9, method="wilson")
    assert found.lower.item() == pytest.approx(expected.low)
    assert found.upper.item() == pytest.approx(expected.high)


@pytest.mark.parametrize("alike", [0.0, 0.9])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_interval_covers_however_alike_the_versions_are(alike, shift):
    # Score differences of 3 versions with correlation `alike`: each is positive with Φ(shift).
    truth = stats.norm.cdf(shift)
    covered = 0
    for seed in range(300):
        common, own = normal(16, seed=seed), normal(3, 16, seed=seed + 1000)
        noise = alike**0.5 * common + (1 - alike) ** 0.5 * own
        found = paired_polarity(normal(16), normal(16) - shift + noise)
        covered += bool(found.lower <= truth <= found.upper)
    assert covered >= 0.93 * 300


def test_pairs_see_what_sets_do_not():
    # Images differ by 10 nats, each loses one half: a set's AUROC is about a half, every pair is right.
    scores = 10 * normal(16)
    found = paired_polarity(scores, scores[None] - 0.5)
    assert found.polarity == 1
    assert found.lower > 0.5


def test_order_is_kendalls_within_each_image_and_reaches_one():
    scores = normal(4, 25)
    expected = [-stats.kendalltau(range(4), scores[:, i]).statistic for i in range(25)]
    assert severity_order(scores).item() == pytest.approx(sum(expected) / 25)
    assert severity_order(normal(25) - torch.arange(4)[:, None]) == 1
    assert severity_order(torch.zeros(4, 25)) == 0


def test_scalars_leave_out_images_that_are_not_finite():
    scores = normal(12)
    down = {n: scores - n for n in (1, 2, 3)}
    up = {n: scores + n for n in (1, 2, 3)}
    found = polarity_scalars(scores, {"noise": down, "blur": up})
    assert found["density/polarity_noise"] == 1
    assert found["density/polarity_blur"] == 0
    assert found["density/polarity"] == 0.5
    assert found["density/polarity_low"] < 0.5 < found["density/polarity_high"]
    assert order_scalars(scores, {"noise": down, "blur": up}) == {"density/order": 0}
    broken = {n: torch.where(torch.arange(12) < 4, torch.nan, values) for n, values in up.items()}
    found = polarity_scalars(scores, {"blur": broken})
    expected = stats.binomtest(0, 8).proportion_ci(method="wilson").high
    assert found["density/polarity_high"] == pytest.approx(expected)
    assert order_scalars(scores, {"blur": broken}) == {"density/order": -1}
    nothing = {n: torch.full_like(scores, torch.nan) for n in (1, 2, 3)}
    assert polarity_scalars(scores, {"blur": nothing}) == {}
    assert order_scalars(scores, {"blur": nothing}) == {}


def test_errors():
    with pytest.raises(ValueError, match=r"`worse` must have shape \(C, 4\).*got \(2, 3\)"):
        paired_polarity(normal(4), normal(2, 3))
    with pytest.raises(ValueError, match="`scores` must have at least 2 rows, got 1"):
        severity_order(normal(1, 3))
