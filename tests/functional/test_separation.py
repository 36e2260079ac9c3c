import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestCentroid

from jepa_monitor.functional import separation


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def blobs(centres, count=40, spread=1.0):
    centres = torch.as_tensor(centres, dtype=torch.float64)
    classes = torch.arange(len(centres)).repeat(count)
    return centres[classes] + spread * normal(len(classes), centres.shape[1]), classes


def left_out_accuracy(z, classes):
    predicted = cross_val_predict(NearestCentroid(), z, classes, cv=LeaveOneOut())
    return balanced_accuracy_score(classes, predicted)


def test_all_five_against_sklearn_and_scipy():
    # Unequal classes with names of their own
    z = normal(60, 3)
    classes = torch.tensor([5] * 30 + [-2] * 20 + [11] * 10)
    z[:30, 0] += 2.5
    z[30:50, 1] += 3
    found = separation(z, classes)
    points, names = z.numpy(), classes.numpy()

    assert found.accuracy.item() == pytest.approx(left_out_accuracy(points, names))

    means = {c: points[names == c].mean(0) for c in set(names.tolist())}
    radii = [np.sqrt(((points[names == c] - m) ** 2).sum(1).mean()) for c, m in means.items()]
    gap = min(np.linalg.norm(a - b) for a, b in itertools.combinations(means.values(), 2))
    assert found.gap_ratio.item() == pytest.approx(gap / (2 * max(radii)))

    distances = pdist(points)
    other = squareform(names[:, None] != names[None], checks=False)
    assert found.auroc.item() == pytest.approx(roc_auc_score(other, distances))
    usual = np.quantile(distances[~other], 0.95, method="inverted_cdf")
    assert found.collapse_rate.item() == pytest.approx((distances[other] <= usual).mean())

    alone = [
        left_out_accuracy(points[np.isin(names, pair)], names[np.isin(names, pair)])
        for pair in itertools.combinations(means, 2)
    ]
    assert min(alone) > 0.75  # so that no two are merged
    assert found.merged == 0
    merged = separation(z, classes, merge_below=min(alone) + 1e-6).merged
    assert merged == 1


@pytest.mark.parametrize(
    ("centres", "merged"),
    [
        ([[0.0], [10.0], [20.0]], 0),
        ([[0.0], [10.0], [10.1]], 1),
        ([[0.0], [0.1], [10.0], [10.1]], 2),
        ([[0.0], [0.9], [1.8], [2.7], [3.6]], 4),  # a chain: its ends are 3.6 apart
    ],
)
def test_merged_classes_are_counted(centres, merged):
    assert separation(*blobs(centres, count=120)).merged == merged


def test_levels_of_apart_and_of_indistinguishable():
    apart = separation(*blobs(20 * torch.eye(5)))
    assert apart.accuracy == 1
    assert apart.gap_ratio > 1
    assert apart.collapse_rate == 0
    assert apart.auroc == 1
    assert apart.merged == 0
    same = separation(*blobs(torch.zeros(5, 8), count=100))
    assert same.accuracy.item() == pytest.approx(1 / 5, abs=0.06)
    assert same.gap_ratio < 0.2
    assert same.collapse_rate.item() == pytest.approx(0.95, abs=0.01)
    assert same.auroc.item() == pytest.approx(0.5, abs=0.01)
    assert same.merged == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_constant_embeddings_never_look_healthy(dtype, value):
    z = torch.full((40, 3), value, dtype=dtype)
    z[1::2] *= 1 + torch.finfo(dtype).eps  # classes differ by a rounding, and nothing else
    found = separation(z, torch.arange(40) % 2)
    assert [x.item() for x in found] == pytest.approx([0.5, 0, 1, 0.5, 1])


def test_classes_that_are_points():
    found = separation(normal(3, 2).repeat(4, 1), torch.arange(3).repeat(4))
    assert [x.item() for x in found] == [1, math.inf, 0, 1, 0]


def test_scale_rotation_and_order_do_not_matter():
    z, classes = blobs([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])
    found = separation(z, classes)
    rotation = torch.linalg.qr(normal(3, 3, seed=1)).Q
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(separation(1e-6 * (z @ rotation) + 1, classes), found)
    torch.testing.assert_close(separation(z[order], 100 - classes[order]), found)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([0, 0, 1, 1], TypeError, "`classes` must be a torch.Tensor, got list"),
        (
            torch.tensor([0.0, 0, 1, 1]),
            ValueError,
            r"`classes` must be integers of shape \(4,\), one for each row .* got torch.float32",
        ),
        (torch.tensor([0, 0, 1]), ValueError, r"got torch.int64 of shape \(3,\)"),
        (torch.zeros(4).long(), ValueError, "`classes` must hold at least 2 classes, got 1"),
        (
            torch.tensor([0, 0, 3, 7]),
            ValueError,
            r"at least 2 samples of each class, got a single one of \[3, 7\]",
        ),
    ],
)
def test_errors(classes, error, message):
    with pytest.raises(error, match=message):
        separation(normal(4, 2), classes)


def test_threshold_is_checked():
    with pytest.raises(ValueError, match=r"`merge_below` must lie in \[0.5, 1\], got 0.2"):
        separation(normal(4, 2), torch.tensor([0, 0, 1, 1]), merge_below=0.2)
