import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors

from jepa_monitor.functional import (
    auroc,
    average_precision,
    fpr_at_tpr,
    knn_distance,
    knn_score,
    outlier_fraction,
    outliers,
    robust_fence,
)
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
    interval = stats.binomtest(below, 200).proportion_ci(method="exact")
    assert found.fraction == below / 200
    assert (found.lower.item(), found.upper.item()) == pytest.approx((interval.low, interval.high))


def test_constant_scores_do_not_look_expected():
    found = outlier_fraction(torch.ones(500), torch.ones(99))
    assert found.fraction == 0
    assert found.upper < found.expected


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


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-6])
@pytest.mark.parametrize("ties", [False, True])
def test_detection_against_sklearn(scale, ties):
    inside, outside = normal(80) + 0.7, normal(50, seed=1)
    if ties:
        inside, outside = inside.round(), outside.round()
    inside, outside = inside * scale - 300, outside * scale - 300
    labels = np.r_[np.ones(80), np.zeros(50)]
    scores = np.r_[inside.numpy(), outside.numpy()]
    expected = metrics.roc_auc_score(labels, scores)
    assert auroc(inside, outside).item() == pytest.approx(expected, abs=1e-6)
    expected = metrics.average_precision_score(labels, scores)
    assert average_precision(inside, outside).item() == pytest.approx(expected, abs=1e-6)
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    expected = fpr[tpr >= 0.95 - 1e-12].min()
    assert fpr_at_tpr(inside, outside).item() == pytest.approx(expected)


def test_detection_of_extremes():
    high, low = normal(20) + 100, normal(30)
    assert (auroc(high, low), fpr_at_tpr(high, low), average_precision(high, low)) == (1, 0, 1)
    assert (auroc(low, high), fpr_at_tpr(low, high)) == (0, 1)
    same = torch.full((10,), -300.0)
    assert auroc(same, same) == 0.5
    assert fpr_at_tpr(same, same) == 1
    assert average_precision(same, same) == 0.5
    for metric in (auroc, fpr_at_tpr, average_precision):
        assert metric(high.float(), low.half()).dtype == torch.float64


@pytest.mark.parametrize("k", [1, 5])
def test_knn_against_sklearn(k, monkeypatch):
    monkeypatch.setattr(outliers, "_BLOCK", 16)
    z, base = normal(40, 6), normal(50, 6, seed=1)
    search = NearestNeighbors(n_neighbors=k).fit(base.numpy())
    expected = search.kneighbors(z.numpy())[0][:, -1]
    assert knn_distance(z, base, k).tolist() == pytest.approx(expected, abs=1e-6)
    expected = search.kneighbors()[0][:, -1]  # without the point itself
    assert knn_distance(base, base, k, exclude_self=True).tolist() == pytest.approx(expected)


def test_knn_score_is_scale_free_and_ordered():
    base = normal(50, 6)
    score = knn_score(7 * base, base, k=1)
    torch.testing.assert_close(score, torch.zeros(50).double(), atol=1e-7, rtol=0)
    assert knn_score(-torch.ones(1, 3), torch.ones(4, 3), k=2).item() == pytest.approx(-2)


def test_errors():
    z = normal(4, 3)
    with pytest.raises(ValueError, match="`k` must be at most the 4 possible neighbours, got 5"):
        knn_distance(z, z, k=5)
    with pytest.raises(ValueError, match="`k` must be at most the 3 possible neighbours, got 4"):
        knn_distance(z, z, k=4, exclude_self=True)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3\) and \(4, 3\)"):
        knn_distance(z[:2], z, k=1, exclude_self=True)
    with pytest.raises(ValueError, match="`embeddings` and `reference` must have the same last"):
        knn_distance(z, z[:, :2], k=1)
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        knn_score(z, z, k=0)
    with pytest.raises(ValueError, match=r"`k` must lie in \(0, inf\), got 0"):
        robust_fence(normal(3), k=0)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \(0, 1\), got 0"):
        outlier_fraction(normal(3), normal(3), alpha=0)
    with pytest.raises(ValueError, match=r"`tpr` must lie in \[0, 1\], got 2"):
        fpr_at_tpr(normal(3), normal(3), tpr=2)
    with pytest.raises(ValueError, match="`ood_scores` must have at least 1 row, got 0"):
        auroc(normal(3), normal(0))
