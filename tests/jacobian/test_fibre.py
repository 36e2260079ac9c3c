"""The density along the fibre: exact for linear encoders of normal images, in SciPy's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, mlp
from scipy import stats
from torch import Tensor, nn

from jepa_monitor import jepa_score, log_density
from jepa_monitor.functional.frequency_gaussian import FrequencyGaussian
from jepa_monitor.functional.gaussian import Gaussian

DIM = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(width: int, dim: int = DIM) -> nn.Linear:
    made = nn.Linear(dim, width, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(normal(width, dim, seed=2))
        made.bias.copy_(normal(1, width, seed=3)[0])
    return made


def law_of_inputs() -> Gaussian:
    root = normal(DIM, DIM, seed=1) + 2 * torch.eye(DIM)
    return Gaussian(normal(1, DIM, seed=4)[0], root @ root.T, 2, 0.0)


def pushed(encoder: nn.Linear, law: Gaussian) -> Gaussian:
    """The law of the embeddings of such inputs."""
    weight = encoder.weight.detach()
    return Gaussian(encoder(law.mean).detach(), weight @ law.covariance @ weight.T, 2, 0.0)


@pytest.mark.parametrize("width", [1, 5, DIM - 1, DIM])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_prior_score_and_fibre_are_the_density_of_the_inputs(
    width: int, dtype: torch.dtype, error: float
) -> None:
    encoder, law = linear(width), law_of_inputs()
    points = law.mean + 2 * normal(40, DIM, seed=5)
    truth = stats.multivariate_normal(law.mean.numpy(), law.covariance.numpy()).logpdf(points)
    prior = pushed(encoder, law)
    found = log_density(encoder.to(dtype), points.to(dtype), prior, fibre=law)
    np.testing.assert_allclose(found.log_density, truth, rtol=1e-9, atol=error)
    assert found.log_fibre is not None
    together = found.log_prior + found.jepa_score + found.log_fibre
    np.testing.assert_allclose(together, found.log_density, rtol=0, atol=1e-9)
    if width == DIM:  # then the fibre is a point
        # The difference of numbers of up to 1e3, of a matrix whose digits are squared.
        np.testing.assert_allclose(found.log_fibre, 0, rtol=0, atol=max(error, 1e-6))


def test_the_fibre_has_the_conditional_density_of_what_is_not_seen() -> None:
    encoder, law = linear(5), law_of_inputs()
    points = law.mean + normal(20, DIM, seed=5)
    found = log_density(encoder, points, pushed(encoder, law), fibre=law)
    # By Schur complements, in orthonormal coordinates of the null space and of the rows.
    _, _, axes = np.linalg.svd(encoder.weight.detach().numpy())
    turned = axes @ law.covariance.numpy() @ axes.T
    centred = (points - law.mean).numpy() @ axes.T
    slope = turned[5:, :5] @ np.linalg.inv(turned[:5, :5])
    conditional = stats.multivariate_normal(
        np.zeros(DIM - 5), turned[5:, 5:] - slope @ turned[:5, 5:]
    )
    left = centred[:, 5:] - centred[:, :5] @ slope.T
    np.testing.assert_allclose(found.log_fibre, conditional.logpdf(left), rtol=0, atol=1e-9)
    squared = -2 * (conditional.logpdf(left) - conditional.logpdf(np.zeros(DIM - 5)))
    np.testing.assert_allclose(found.fibre_energy, squared / (DIM - 5), rtol=1e-9)


def test_a_sketch_is_the_same_equation_of_fewer_rows() -> None:
    encoder, law = linear(8), law_of_inputs()
    points, prior = law.mean + normal(20, DIM, seed=5), pushed(encoder, law)
    truth = stats.multivariate_normal(law.mean.numpy(), law.covariance.numpy()).logpdf(points)
    found = log_density(encoder, points, prior, fibre=law, method="sketch", rows=3)
    np.testing.assert_allclose(found.log_density, truth, rtol=0, atol=1e-9)


def test_a_sample_for_reference_is_within_the_error_of_its_laws() -> None:
    encoder, law = linear(5), law_of_inputs()
    root = torch.linalg.cholesky(law.covariance)
    reference = law.mean + normal(4096, DIM, seed=6) @ root.T
    points = law.mean + normal(300, DIM, seed=5) @ root.T
    truth = stats.multivariate_normal(law.mean.numpy(), law.covariance.numpy()).logpdf(points)
    found = log_density(encoder, points, reference, fibre="gaussian")
    difference = (found.log_density - torch.from_numpy(truth)).numpy()
    # ½ log det Σ and half the mean distance are both off by √(D/2N) = 0.04.
    assert abs(difference.mean()) < 0.15
    assert difference.std() < 0.25
    energy = found.fibre_energy
    assert energy is not None
    assert float(energy.mean()) == pytest.approx(1, abs=4 * (2 / (DIM - 5) / 300) ** 0.5)
    assert float(energy.std()) == pytest.approx((2 / (DIM - 5)) ** 0.5, rel=0.2)


def dense(law: FrequencyGaussian) -> np.ndarray[Any, Any]:
    """Its covariance, from outer products of SciPy's cosines."""
    from scipy.fft import idctn

    height, width, channels = law.spectrum.shape[:3]
    waves = [
        idctn(np.eye(height * width)[k].reshape(height, width), norm="ortho").ravel()
        for k in range(height * width)
    ]
    basis = np.stack(waves, 1)
    blocks = law.spectrum.reshape(-1, channels, channels).numpy()
    full = np.einsum("pk,kcd,qk->cpdq", basis, blocks, basis)
    return full.reshape(law.width, law.width)


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 5)])
def test_rows_are_weighted_by_frequency_as_by_the_dense_covariance(
    shape: tuple[int, ...],
) -> None:
    reference = normal(60, *shape).cumsum(2).cumsum(3) + 0.3 * normal(60, *shape, seed=1)
    law = FrequencyGaussian.fit(reference)
    covariance, numel = dense(law), int(np.prod(shape))
    rows, points = normal(7, numel, seed=2), reference[:9].flatten(1)
    scaled = law.scale_rows(rows)
    weighted = rows.numpy() @ covariance @ rows.numpy().T
    np.testing.assert_allclose(scaled @ scaled.T, weighted, rtol=1e-10)
    mean = reference.mean((0, 2, 3)).repeat_interleave(shape[1] * shape[2])
    truth = stats.multivariate_normal(mean.numpy(), covariance)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-12)
    squared = law.whiten(points).square().sum(1)
    own = -0.5 * (squared + law.log_det + numel * np.log(2 * np.pi))
    np.testing.assert_allclose(own, truth.logpdf(points.numpy()), rtol=1e-9)
    # Coordinates of both agree: what a row says of an image it says of the white image.
    centred = points - law.mean
    np.testing.assert_allclose(scaled @ law.whiten(points).T, rows @ centred.T, rtol=1e-9)
    # And through the encoder.
    encoder = nn.Sequential(nn.Flatten(), linear(6, numel))
    weight, bias = encoder[1].weight.detach(), encoder[1].bias.detach()
    prior = Gaussian(
        weight @ law.mean + bias, weight @ torch.from_numpy(covariance) @ weight.T, 2, 0.0
    )
    found = log_density(encoder, reference[:9], prior, fibre=law)
    np.testing.assert_allclose(found.log_density, truth.logpdf(points.numpy()), rtol=1e-8)


def test_each_frequency_has_the_variance_of_its_own_images() -> None:
    from scipy.fft import dctn

    data = normal(50, 2, 5, 4) * torch.tensor([1.0, 3.0]).view(2, 1, 1) + 7
    waves = dctn((data - data.mean((0, 2, 3), keepdim=True)).numpy(), axes=(2, 3), norm="ortho")
    expected = np.einsum("ncij,ndij->ijcd", waves, waves) / 50
    np.testing.assert_allclose(FrequencyGaussian.fit(data).spectrum, expected, rtol=1e-9, atol=1e-9)


def test_detail_that_enlarged_images_do_not_have_is_floored_and_counted() -> None:
    small = normal(80, 1, 4, 4)
    law = FrequencyGaussian.fit(small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    # Pairs of equal pixels have nothing of the cosine of four periods, along either side.
    assert law.floored == 8 + 8 - 1
    constant = FrequencyGaussian.fit(normal(80, 1, 1, 1).expand(80, 1, 8, 8).contiguous())
    assert constant.floored == 63
    assert np.isfinite(constant.log_det)
    assert torch.isfinite(constant.whiten(normal(3, 64))).all()


def test_energy_tells_dull_and_noisy_images_from_those_of_the_law() -> None:
    reference = normal(600, 1, 8, 8).cumsum(2).cumsum(3)
    usual = normal(40, 1, 8, 8, seed=1).cumsum(2).cumsum(3)
    encoder = nn.Sequential(nn.Flatten(), linear(4, 64))
    sets = {
        "usual": usual,
        "dull": usual.mean((2, 3), keepdim=True) + 0.5 * (usual - usual.mean((2, 3), keepdim=True)),
        "noisy": usual + normal(40, 1, 8, 8, seed=2),
    }
    energy = {
        name: float(log_density(encoder, data, reference, fibre="gaussian").fibre_energy.mean())
        for name, data in sets.items()
    }
    assert energy["dull"] < 0.6
    assert 0.8 < energy["usual"] < 1.3
    assert energy["noisy"] > 1.5


def test_rows_that_see_nothing_of_their_own_do_not_count_as_seen() -> None:
    encoder, law = linear(4), law_of_inputs()
    points = law.mean + normal(10, DIM, seed=5)
    twice = nn.Sequential(encoder, linear(8, 4))  # rank 4 of 8
    prior = Gaussian.fit(twice(points).detach() + 0.1 * normal(10, 8, seed=7))
    once = log_density(encoder, points, pushed(encoder, law), fibre=law)
    found = log_density(twice, points, prior, fibre=law)
    np.testing.assert_allclose(found.fibre_energy, once.fibre_energy, rtol=1e-6)


def test_wide_embeddings_leave_no_fibre() -> None:
    encoder, law = linear(DIM + 5), law_of_inputs()
    points = law.mean + normal(10, DIM, seed=5)
    prior = Gaussian.fit(normal(60, DIM + 5))
    found = log_density(encoder, points, prior, fibre=law)
    np.testing.assert_allclose(found.log_fibre, 0, rtol=0, atol=1e-8)
    assert found.fibre_energy is not None
    assert found.fibre_energy.isnan().all()


def test_without_it_nothing_changes() -> None:
    encoder, reference = mlp(192, 6), images(50, 2)
    plain = log_density(encoder, images(4), reference)
    assert plain.log_fibre is None
    assert plain.fibre_energy is None
    full = log_density(encoder, images(4), reference, fibre="gaussian")
    torch.testing.assert_close(full.jepa_score, jepa_score(encoder, images(4)))
    torch.testing.assert_close(full.log_prior, plain.log_prior)
    assert full.log_fibre is not None


LAW = Gaussian.fit(torch.rand(40, 6))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"fibre": "normal"}, "`fibre` must be one of gaussian, got 'normal'"),
    "no law": ({"fibre": 3}, "`fibre` must be 'gaussian', a Gaussian or a FrequencyGaussian"),
    "other inputs": ({"fibre": LAW}, "`fibre` must be a law of inputs of 192 numbers, got 6"),
    "no images": ({"fibre": "gaussian", "reference": LAW}, "needs `reference` images"),
    "no memory": ({"fibre": "gaussian", "max_memory": 1000}, "do not fit twice into 1000 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named(case: str) -> None:
    given, message = WRONG[case]
    arguments = {"reference": images(20, 2)} | given
    with pytest.raises((ValueError, TypeError, MemoryError), match=message):
        log_density(mlp(192, 6), images(4), **arguments)


def test_inputs_too_wide_for_a_covariance_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs of at most 4096 numbers, got"):
        log_density(mlp(5000, 3), torch.rand(2, 5000), torch.rand(9, 5000), fibre="gaussian")
    with pytest.raises(ValueError, match="`images` must have shape"):
        FrequencyGaussian.fit(torch.rand(5, 7))
    with pytest.raises(ValueError, match="equal constant ones"):
        FrequencyGaussian.fit(torch.ones(5, 1, 4, 4))
