import numpy as np
import pytest
import torch
from scipy import stats

from jepa_monitor.functional import benjamini_hochberg, conformal_p_values


def normal(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def test_p_values_by_counting():
    scores, known = normal(30).round(decimals=1), normal(40, 1).round(decimals=1)
    below = [(1 + sum(c <= s for c in known.tolist())) / 41 for s in scores.tolist()]
    above = [(1 + sum(c >= s for c in known.tolist())) / 41 for s in scores.tolist()]
    assert conformal_p_values(scores, known).tolist() == pytest.approx(below)
    both = [min(1, 2 * min(pair)) for pair in zip(below, above, strict=True)]
    assert conformal_p_values(scores, known, two_sided=True).tolist() == pytest.approx(both)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_no_level_is_undercut_by_images_of_the_same_law(two_sided, ties):
    found = []
    for seed in range(400):
        scores = normal(60, seed)
        scores = scores.round() if ties else scores
        found.append(conformal_p_values(scores[:21], scores[21:], two_sided=two_sided))
    p = torch.cat(found)
    for level in (0.025, 0.05, 0.1, 0.5):
        share = (p <= level + 1e-12).double().mean().item()
        assert share <= level + 4 * (level / len(p) * 21) ** 0.5
        if not ties:
            steps = level * 40 if not two_sided else 2 * int(level * 20)
            assert share == pytest.approx(int(steps) / 40, abs=4 * (level / len(p) * 21) ** 0.5)


def test_adjusted_p_values_as_in_scipy():
    p = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    p[10:14] = p[3]
    expected = stats.false_discovery_control(p.numpy())
    np.testing.assert_allclose(benjamini_hochberg(p).numpy(), expected)


def test_list_of_outliers_holds_as_few_false_ones_as_promised():
    shares, found = [], 0
    for seed in range(200):
        known, inside, outside = normal(400, seed), normal(90, seed + 1000), normal(10, seed + 2000)
        q = benjamini_hochberg(conformal_p_values(torch.cat([inside, outside - 5]), known))
        listed = q <= 0.2
        shares.append(listed[:90].sum().item() / max(1, listed.sum().item()))
        found += int(listed[90:].sum())
    assert sum(shares) / 200 <= 0.2
    assert found > 0.8 * 2000


def test_errors():
    with pytest.raises(ValueError, match="`calibration_scores` must have at least 1 row, got 0"):
        conformal_p_values(normal(3), normal(0))
    with pytest.raises(ValueError, match=r"`p_values` must lie in \[0, 1\]"):
        benjamini_hochberg(normal(5))
