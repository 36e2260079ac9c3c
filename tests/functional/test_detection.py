import numpy as np
import pytest
import torch
from sklearn import metrics

from jepa_monitor.functional import auroc, average_precision, fpr_at_tpr


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


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
    assert auroc(inside, outside).item() == pytest.approx(expected, abs=1e-12)
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


def test_errors():
    with pytest.raises(ValueError, match=r"`tpr` must lie in \[0, 1\], got 2"):
        fpr_at_tpr(normal(3), normal(3), tpr=2)
    with pytest.raises(ValueError, match="`ood_scores` must have at least 1 row, got 0"):
        auroc(normal(3), normal(0))
