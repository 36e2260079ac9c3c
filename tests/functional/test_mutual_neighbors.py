import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from jepa_monitor.functional import mutual_knn, mutual_neighbors


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 7, 58])
def test_against_sklearn(k, monkeypatch):
    monkeypatch.setattr(mutual_neighbors, "BLOCK", 16)
    a = normal(60, 6)
    b = a[:, :3] + 0.5 * normal(60, 3, seed=1)
    found = [
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(z.numpy()).kneighbors()[1]
        for z in (a, b)
    ]
    share = np.mean([len(set(x) & set(y)) / k for x, y in zip(*found, strict=True)])
    assert mutual_knn(a, b, k, chance_corrected=False).item() == pytest.approx(share)
    chance = k / 59
    expected = (share - chance) / (1 - chance)
    assert mutual_knn(a, b, k).item() == pytest.approx(expected)
    torch.testing.assert_close(mutual_knn(b, 100 * a, k), mutual_knn(a, b, k))


def test_levels_of_equal_and_of_unrelated_embeddings():
    a = normal(300, 8)
    rotation = torch.linalg.qr(normal(8, 8, seed=1)).Q
    assert mutual_knn(a, a @ rotation).item() == pytest.approx(1)
    unrelated = torch.stack([mutual_knn(a, normal(300, 8, seed=s)) for s in range(2, 22)])
    assert abs(unrelated.mean()) < 4 * unrelated.std() / 20**0.5


def test_ties_read_the_mean_over_random_choices():
    # Images that come up several times, and directions that agree
    a = normal(5, 3).repeat(4, 1)
    b = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]).double().repeat_interleave(5, 0)
    rng, k, shares = np.random.default_rng(0), 3, []
    for _ in range(1000):
        chosen = []
        for z in (a, b):
            similarity = cosine_similarity(z.numpy()).round(9)
            np.fill_diagonal(similarity, -9)
            noise = rng.random(similarity.shape)
            chosen.append(np.lexsort((noise, -similarity))[:, :k])
        shares.append(np.mean([len(set(x) & set(y)) / k for x, y in zip(*chosen, strict=True)]))
    expected, error = np.mean(shares), np.std(shares) / 1000**0.5
    found = mutual_knn(a, b, k, chance_corrected=False)
    assert found.item() == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_constant_embeddings_read_chance(value):
    constant = torch.full((40, 3), value)
    for other in (normal(40, 5), constant):
        assert mutual_knn(constant, other).item() == pytest.approx(0, abs=1e-12)


def test_errors():
    z = normal(12, 3)
    with pytest.raises(ValueError, match=r"the same number of rows, got \(12, 3\) and \(11, 3\)\."):
        mutual_knn(z, z[1:])
    with pytest.raises(ValueError, match="`k` must be at most N - 2 = 10, got 11"):
        mutual_knn(z, z, k=11)
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        mutual_knn(z, z, k=0)
