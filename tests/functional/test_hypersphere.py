import numpy as np
import pytest
import torch
from scipy import special
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_similarity

from jepa_monitor.functional import (
    alignment,
    hypersphere,
    isotropic_baseline,
    mean_cosine,
    mean_squared_cosine,
    uniformity,
)


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def unit(z):
    return (z / z.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_against_pdist(t, monkeypatch):
    monkeypatch.setattr(hypersphere, "_BLOCK", 16)  # several blocks, the last one short
    z = normal(50, 6) + 0.5
    expected = np.log(np.exp(-t * pdist(unit(z)) ** 2).mean())
    assert uniformity(z, t).item() == pytest.approx(expected)


def test_uniformity_reaches_its_floor():
    for k in (16, 128):
        floor = -4 + np.log(special.hyp0f1(k / 2, 4))
        assert isotropic_baseline(10, k).uniformity == pytest.approx(floor)
        assert uniformity(normal(3000, k)).item() == pytest.approx(floor, abs=0.01)


def test_alignment_against_numpy():
    x, y = normal(40, 5), normal(40, 5, seed=1)
    distance = np.linalg.norm(unit(x) - unit(y), axis=1)
    assert alignment(x, y).item() == pytest.approx((distance**2).mean())
    assert alignment(x, y, exponent=1).item() == pytest.approx(distance.mean())
    assert alignment(x, 3 * x).item() == pytest.approx(0)
    assert alignment(x, -x).item() == pytest.approx(4)


def test_cosines_against_sklearn():
    z = normal(60, 7) + 0.3
    cosines = cosine_similarity(z.numpy())[~np.eye(60, dtype=bool)]
    assert mean_cosine(z).item() == pytest.approx(cosines.mean())
    assert mean_squared_cosine(z).item() == pytest.approx(7 * (cosines**2).mean())


def test_cosines_of_isotropic_embeddings():
    values = torch.stack([mean_cosine(normal(256, 64, seed)) for seed in range(200)])
    assert values.std().item() == pytest.approx((2 / (256 * 255 * 64)) ** 0.5, rel=0.15)
    assert mean_squared_cosine(normal(2000, 64)).item() == pytest.approx(1, abs=0.01)


def test_dimensional_collapse_shows_in_squared_cosines_only():
    z = normal(2000, 4) @ torch.linalg.qr(normal(64, 64, seed=1))[0][:4]
    assert mean_squared_cosine(z).item() == pytest.approx(64 / 4, rel=0.02)
    assert abs(mean_cosine(z)) < 0.01


@pytest.mark.parametrize("z", [torch.zeros(20, 8), torch.full((20, 8), 0.1)])
def test_constant_embeddings_are_never_healthy(z):
    assert uniformity(z).item() == pytest.approx(0, abs=1e-12)
    assert mean_cosine(z).item() == pytest.approx(1)
    assert mean_squared_cosine(z).item() == pytest.approx(8)
    assert alignment(z, z) == 0


def test_rows_of_zeros_count_as_collapsed():
    z = torch.cat([torch.eye(3), torch.zeros(1, 3)])  # 12 ordered pairs, 6 of them with the zero
    assert mean_cosine(z).item() == pytest.approx(0.5)
    assert mean_squared_cosine(z).item() == pytest.approx(1.5)


def test_errors():
    with pytest.raises(ValueError, match="`first` and `second` must have the same shape"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"`t` must lie in \(0, inf\), got 0"):
        uniformity(torch.ones(2, 3), t=0)
    with pytest.raises(ValueError, match=r"`exponent` must lie in \(0, inf\), got -1"):
        alignment(torch.ones(2, 3), torch.ones(2, 3), exponent=-1)
    for metric in (uniformity, mean_cosine, mean_squared_cosine):
        with pytest.raises(ValueError, match="at least 2 rows, got 1"):
            metric(torch.ones(1, 3))
