import io
import math

import numpy as np
import pytest
import torch
from helpers import leave_one_out_law, seldom
from scipy import stats
from sklearn.covariance import LedoitWolf, ShrunkCovariance

from jepa_monitor.functional.gaussian import Gaussian


def mixed(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return z @ torch.randn(k, k, generator=generator, dtype=torch.float64) + 3


@pytest.mark.parametrize(("n", "k"), [(50, 5), (20, 40), (500, 64), (2, 3)])
def test_ledoit_wolf_as_in_sklearn(n, k):
    z = mixed(n, k)
    ours, theirs = Gaussian.fit(z, "ledoit_wolf"), LedoitWolf().fit(z.numpy())
    assert ours.shrinkage == pytest.approx(theirs.shrinkage_, abs=1e-12)
    torch.testing.assert_close(ours.covariance, torch.from_numpy(theirs.covariance_))
    distances = torch.from_numpy(theirs.mahalanobis(z.numpy()))
    torch.testing.assert_close(ours.mahalanobis_squared(z), distances, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("width", [1, 16])
def test_of_two_embeddings_the_law_is_isotropic(width: int) -> None:
    z = torch.randn(2, width, dtype=torch.float64)
    variance = (z[0] - z[1]).square().mean() / 4
    expected = -0.5 * width * (1 + (2 * math.pi * variance).log())
    torch.testing.assert_close(Gaussian.fit(z).log_prob(z), expected.expand(2))


@pytest.mark.parametrize(("n", "k"), [(40, 5), (12, 20), *seldom((60, 60), (200, 8))])
def test_default_shrinkage_makes_each_embedding_likeliest_by_the_others(n, k):
    z = mixed(n, k).numpy() * np.logspace(0, -3, k)
    ours, theirs = Gaussian.fit(torch.from_numpy(z)), leave_one_out_law(z)
    np.testing.assert_allclose(ours.covariance, theirs.cov, rtol=1e-9)


def test_held_out_distances_are_as_large_as_they_should_be():
    # A spectrum that falls by four decades: what Ledoit and Wolf's shrinkage is not made for.
    scales = torch.logspace(0, -4, 32, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(4000, 32, generator=generator, dtype=torch.float64) * scales
    reference, held_out = z[:500], z[500:]
    distances = Gaussian.fit(reference).mahalanobis_squared(held_out)
    # With the empirical covariance of N embeddings the mean is K (N + 1) / (N − K − 2).
    assert distances.mean().item() / 32 == pytest.approx(501 / 466, rel=0.03)
    shrunk = Gaussian.fit(reference, "ledoit_wolf").mahalanobis_squared(held_out)
    assert shrunk.mean().item() / 32 < 0.7


def test_all_but_one_equal_leave_nothing_to_leave_out():
    z = torch.zeros(10, 3)
    z[0] = 1
    law = Gaussian.fit(z)
    assert torch.isfinite(law.log_prob(z)).all()


def test_fixed_shrinkage_as_in_sklearn():
    z = mixed(30, 6)
    theirs = ShrunkCovariance(shrinkage=0.3).fit(z.numpy())
    ours = Gaussian.fit(z, shrinkage=0.3)
    torch.testing.assert_close(ours.covariance, torch.from_numpy(theirs.covariance_))
    assert ours.shrinkage == 0.3
    assert ours.count == 30


def test_log_prob_as_in_scipy():
    z = mixed(100, 5)
    law = Gaussian.fit(z, shrinkage=0.1)
    reference = stats.multivariate_normal(law.mean.numpy(), law.covariance.numpy())
    torch.testing.assert_close(law.log_prob(z), torch.from_numpy(reference.logpdf(z.numpy())))


def test_whitening_is_the_symmetric_inverse_root():
    z = mixed(200, 6)
    law = Gaussian.fit(z, shrinkage=0.0)
    w = law.whitening
    torch.testing.assert_close(w, w.T)
    torch.testing.assert_close(w @ law.covariance @ w, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(law.whiten(z).T, correction=0), torch.eye(6).double())
    torch.testing.assert_close(law.log_det, float(torch.linalg.slogdet(law.covariance)[1]))


def test_singular_directions_are_counted_and_penalised():
    z = mixed(100, 4)
    z = torch.cat([z, z[:, :2]], dim=1)  # 6 dimensions, rank 4
    law = Gaussian.fit(z, shrinkage=0.0)
    assert law.floored == 2
    assert torch.isfinite(torch.tensor(law.log_det))
    assert law.mahalanobis_squared(z).max() < 100
    off_support = z[:1].clone()
    off_support[:, 0] += 0.1
    assert law.mahalanobis_squared(off_support) > 1e10


def test_more_dimensions_than_samples():
    z = mixed(10, 30)
    assert Gaussian.fit(z, shrinkage=0.0).floored == 21
    assert Gaussian.fit(z).floored == 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
@pytest.mark.parametrize("shrinkage", ["leave_one_out", "ledoit_wolf", 0.5])
def test_point_mass(value, shrinkage):
    z = torch.full((10, 3), value)
    law = Gaussian.fit(z, shrinkage)
    assert law.floored == 3
    assert torch.isfinite(law.log_prob(z)).all()
    assert law.mahalanobis_squared(z + 0.01 * (1 + value)).min() > 1e6


def test_point_mass_whose_mean_rounds():
    z = torch.full((37, 3), 100_000.1, dtype=torch.float64)
    assert (z - z.mean(dim=0)).abs().max() > 1e-12  # the mean of equal numbers is not that number
    assert Gaussian.fit(z).floored == 3


def test_checkpoint_round_trip():
    law = Gaussian.fit(mixed(50, 4))
    buffer = io.BytesIO()
    torch.save(law.to_dict(), buffer)
    buffer.seek(0)
    restored = Gaussian.from_dict(torch.load(buffer, weights_only=True))
    z = mixed(5, 4, seed=1)
    assert torch.equal(restored.log_prob(z), law.log_prob(z))
    assert (restored.count, restored.shrinkage) == (law.count, law.shrinkage)
    assert torch.equal(law.to("cpu").mean, law.mean)


def test_input_dtype_and_gradients():
    z = mixed(50, 4).half().requires_grad_()
    law = Gaussian.fit(z)
    assert law.mean.dtype == torch.float64
    assert not law.mean.requires_grad
    law.log_prob(z).sum().backward()
    assert z.grad is not None


def test_errors():
    law = Gaussian.fit(mixed(50, 4))
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 4\), got \(2, 3\)\."):
        law.whiten(torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        Gaussian.fit(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"`shrinkage` must lie in \[0, 1\], got 2"):
        Gaussian.fit(torch.ones(3, 4), shrinkage=2.0)
    with pytest.raises(
        ValueError, match="`shrinkage` must be one of leave_one_out, ledoit_wolf, got 'oas'"
    ):
        Gaussian.fit(torch.ones(3, 4), shrinkage="oas")


@pytest.mark.parametrize("size", [1e76, 1e160, 1e200, 1e300])
def test_embeddings_whose_powers_overflow_are_an_error_that_says_so(size: float) -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`embeddings` must lie within 1e\+75 of their mean"):
        Gaussian.fit(size * z)
    small = Gaussian.fit(z).log_prob(z)
    large = Gaussian.fit(1e70 * z).log_prob(1e70 * z)
    torch.testing.assert_close(large, small - 3 * 70 * math.log(10), rtol=0, atol=1e-6)
