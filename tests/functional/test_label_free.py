"""Consistency of neighbours, self-clustering, k-means and what is learned of its clusters."""

import importlib

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from jepa_monitor.functional import (
    cluster_agreement,
    cluster_learnability,
    mutual_knn,
    mutual_neighbors,
    neighbor_consistency,
    pair_retrieval,
    self_clustering,
)
from jepa_monitor.functional._kmeans import kmeans
from jepa_monitor.functional.cluster_agreement import adjusted_mutual_information


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("block", [16, 1024])
def test_consistency_against_sklearn(block, monkeypatch):
    monkeypatch.setattr(importlib.import_module(pair_retrieval.__module__), "BLOCK", block)
    monkeypatch.setattr(mutual_neighbors, "BLOCK", block)
    a = normal(60, 5)
    b = a + 0.8 * normal(60, 5, seed=2)
    share = (cosine_similarity(a, b).argmax(1) == np.arange(60)).mean()
    assert 0.2 < share < 0.8
    found = neighbor_consistency(a, 3 * b, k=4)
    assert found.retrieval.item() == pytest.approx((share - 1 / 60) / (1 - 1 / 60))
    torch.testing.assert_close(found.overlap, mutual_knn(a, b, 4))
    back = (cosine_similarity(b, a).argmax(1) == np.arange(60)).mean()
    assert back != share  # one view asks, the other is asked
    assert neighbor_consistency(b, a).retrieval.item() == pytest.approx((60 * back - 1) / 59)


def test_consistency_of_equal_and_unrelated_views():
    z = normal(200, 8)
    rotation = torch.linalg.qr(normal(8, 8, seed=1)).Q
    assert neighbor_consistency(z, z).retrieval == 1
    both = neighbor_consistency(z @ rotation, 7 * z @ rotation)
    assert both.overlap.item() == pytest.approx(1)
    unrelated = torch.stack(
        [torch.stack(neighbor_consistency(z, normal(200, 8, seed=s))) for s in range(2, 22)]
    )
    error = unrelated.std(dim=0) / 20**0.5
    assert bool((unrelated.mean(dim=0).abs() < 4 * error).all())


def test_ties_of_retrieval_share_the_credit():
    a = torch.eye(3).double()
    b = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]).double()
    a, b = torch.cat([a, -a]), torch.cat([b, -b])  # two tie, all tie, none does
    expected = ((1 / 2 + 1 / 6 + 1) / 3 - 1 / 6) / (1 - 1 / 6)
    assert neighbor_consistency(a, b, k=2).retrieval.item() == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_constant_embeddings_read_chance(value):
    constant = torch.full((40, 3), value)
    for pair in ((constant, constant), (normal(40, 3), constant), (constant, normal(40, 3))):
        for number in neighbor_consistency(*pair):
            assert number.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(50, 4), (30, 64)])
def test_self_clustering_against_the_formula(n, k):
    z = normal(n, k) + 0.5
    gram = cosine_similarity(z.numpy())
    least = n + n * (n - 1) / k
    expected = ((gram**2).sum() - least) / (n**2 - least)
    assert self_clustering(z).item() == pytest.approx(expected)


def test_levels_of_self_clustering():
    values = np.array([self_clustering(normal(60, 12, seed=s)).item() for s in range(300)])
    sd = 2 / np.sqrt(60 * 59 * 11 * 14)
    assert values.std() == pytest.approx(sd, rel=0.15)
    assert abs(values.mean()) < 4 * sd / 300**0.5
    for constant in (
        torch.zeros(9, 4),
        torch.full((9, 4), 0.1),
        torch.ones(9, 1) @ normal(1, 4).float(),
    ):
        assert self_clustering(constant).item() == pytest.approx(1)
    line = normal(50, 1) @ normal(1, 6, seed=1)
    assert self_clustering(line).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="K ≥ 2, got K = 1"):
        self_clustering(normal(5, 1))
    with pytest.raises(ValueError, match="at least 2 rows"):
        self_clustering(normal(1, 5))


def inertia(points, labels):
    return sum(
        ((points[labels == c] - points[labels == c].mean(0)) ** 2).sum()
        for c in set(labels.tolist())
    )


def test_kmeans_is_as_good_as_sklearn_on_each_of_several_sets():
    sets = torch.stack(
        [normal(80, 3, seed=s) + 4 * normal(80, 1, seed=9).round() for s in range(3)]
    )
    found = kmeans(sets, 6, seed=0, restarts=10)
    assert found.labels.shape == (3, 80)
    for points, labels, centroids in zip(sets.numpy(), *found, strict=True):
        best = KMeans(6, n_init=10, random_state=0).fit(points).inertia_
        assert inertia(points, labels.numpy()) <= 1.03 * best
        for cluster in range(6):
            members = points[labels.numpy() == cluster]
            assert centroids[cluster].numpy() == pytest.approx(members.mean(0))


def test_kmeans_finds_points_that_repeat_and_survives_too_few_of_them():
    masses = 10 * torch.eye(5).double()
    labels = kmeans(masses.repeat(8, 1)[None], 5, seed=3).labels[0]
    assert len(set(zip(labels.tolist(), (torch.arange(40) % 5).tolist(), strict=True))) == 5
    found = kmeans(masses[:2].repeat(4, 1)[None], 4, seed=0)
    same = found.labels[0].view(4, 2)
    assert bool((same == same[0]).all())
    assert same[0, 0] != same[0, 1]


def test_kmeans_fills_clusters_that_run_empty(monkeypatch):
    # Three seeds on one blob and a far-off point: with them the far point would share a cluster.
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [20.0]]).double()[None]
    start = torch.tensor([[[0.0], [100.0], [101.0]]]).double()
    monkeypatch.setattr("jepa_monitor.functional._kmeans._seeds", lambda *_: start)
    labels = kmeans(points, 3, seed=0).labels[0]
    assert len(labels.unique()) == 3
    assert len(labels[:3].unique()) == 1


def blobs(classes, count, gap=9.0, width=8):
    names = torch.arange(classes).repeat(count)
    return gap * torch.eye(width).double()[names] + normal(classes * count, width), names


def test_learnability_against_sklearn():
    z = normal(90, 4)
    unit = z / z.norm(dim=1, keepdim=True)
    unit = unit[unit[:, 0].argsort()]  # the order of the samples does not matter
    labels = kmeans(unit[None], 7, seed=5, restarts=2).labels[0].numpy()
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5)).numpy()
    known, asked = order[:45], order[45:]
    nearest = KNeighborsClassifier(1).fit(unit[known], labels[known])
    accuracy = (nearest.predict(unit[asked]) == labels[asked]).mean()
    shares = [np.bincount(labels[half], minlength=7) / 45 for half in (known, asked)]
    chance = shares[0] @ shares[1]
    found = cluster_learnability(z, 7, restarts=2, seed=5)
    assert found.accuracy.item() == pytest.approx(accuracy)
    assert found.chance.item() == pytest.approx(chance)
    assert found.learnability.item() == pytest.approx((accuracy - chance) / (1 - chance))
    assert 0.3 < accuracy < 1


def test_learnability_of_blobs_of_nothing_and_of_noise(monkeypatch):
    assert cluster_learnability(blobs(5, 40)[0], clusters=5).learnability == 1
    for constant in (torch.zeros(50, 3), torch.full((50, 3), 0.1)):
        assert [x.item() for x in cluster_learnability(constant)] == [0, 1, 1]

    def shuffled(points, clusters, seed, restarts):
        labels = torch.randint(clusters, points.shape[:2])
        return type("Found", (), {"labels": labels})

    module = importlib.import_module(cluster_learnability.__module__)
    monkeypatch.setattr(module, "kmeans", shuffled)
    values = torch.stack([cluster_learnability(normal(400, 5)).learnability for _ in range(40)])
    assert abs(values.mean()) < 4 * values.std() / 40**0.5


def test_the_order_of_samples_does_not_matter():
    z = torch.cat([normal(50, 4), normal(50, 4)[:9]])
    order = torch.randperm(59, generator=torch.Generator().manual_seed(1))
    assert cluster_learnability(z[order]) == cluster_learnability(z)


def test_default_number_of_clusters_is_the_root():
    z = normal(100, 5)
    assert cluster_learnability(z) == cluster_learnability(z, clusters=10)
    assert cluster_learnability(z, seed=1) != cluster_learnability(z)


def test_no_global_randomness():
    before = torch.get_rng_state()
    cluster_learnability(normal(60, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_errors():
    with pytest.raises(ValueError, match="`first` and `second` must have the same shape"):
        neighbor_consistency(normal(20, 3), normal(20, 4))
    with pytest.raises(ValueError, match="`k` must be at most N - 2 = 18, got 19"):
        neighbor_consistency(normal(20, 3), normal(20, 3), k=19)
    with pytest.raises(ValueError, match=r"`clusters` must lie in \[2, N/2 = 10\], got 11"):
        cluster_learnability(normal(20, 3), clusters=11)
    with pytest.raises(ValueError, match=r"`clusters` must lie in \[2, N/2 = 10\], got 1\."):
        cluster_learnability(normal(20, 3), clusters=1)
    with pytest.raises(ValueError, match="`restarts` must be at least 1"):
        cluster_learnability(normal(20, 3), restarts=0)
    with pytest.raises(ValueError, match="at least 4 rows"):
        cluster_learnability(normal(3, 3))


def test_agreement_of_clusters_against_sklearn():
    centres = 3 * normal(5, 4, seed=1)
    labels = torch.arange(150) % 5
    a = centres[labels] + normal(150, 4)
    b = a + 1.5 * normal(150, 4, seed=2)
    found = cluster_agreement(a, 3 * b, clusters=5).item()
    unit = [torch.nn.functional.normalize(z, dim=1).numpy() for z in (a, b)]
    model = KMeans(5, n_init=50, random_state=0).fit(unit[0])
    expected = adjusted_mutual_info_score(model.labels_, model.predict(unit[1]))
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.2 < found < 0.9
    assert cluster_agreement(a, a).item() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_adjusted_mutual_information_against_sklearn(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 7, 60), rng.integers(0, 4, 60)
    second[:20] = first[:20] % 4
    table = torch.from_numpy(contingency_matrix(first, second).astype("f8"))
    expected = adjusted_mutual_info_score(first, second)
    assert adjusted_mutual_information(table).item() == pytest.approx(expected, rel=1e-9)


def test_agreement_is_zero_by_chance_and_for_constant_embeddings():
    z = normal(200, 8)
    shuffled = [
        cluster_agreement(z, z[torch.randperm(200, generator=torch.Generator().manual_seed(s))])
        for s in range(20)
    ]
    values = torch.stack(shuffled)
    assert abs(values.mean()) < 4 * values.std() / 20**0.5
    for one, other in ((z, torch.ones(200, 8)), (torch.ones(200, 8), z), (z * 0, z)):
        assert cluster_agreement(one, other) == 0
    with pytest.raises(ValueError, match=r"`clusters` must lie in \[2, N/2 = 100\], got 101"):
        cluster_agreement(z, z, clusters=101)
    with pytest.raises(ValueError, match="`first` and `second` must have the same shape"):
        cluster_agreement(z, z[:100])
