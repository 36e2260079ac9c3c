import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from jepa_monitor.functional import knn_distance, knn_score, neighbors


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5])
def test_knn_against_sklearn(k, monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK", 16)
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
