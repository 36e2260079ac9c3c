"""Where the law of the embeddings is known exactly, the log-density is the truth, not just a score.

References are SciPy's densities and closed forms, never the package's own.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from jepa_monitor import log_density
from jepa_monitor.functional import density_agreement
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.recipes import known_density
from jepa_monitor.recipes.densities import make_density

DIM = 6


def _normal(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


class _Linear:
    """x ~ N(m, S), and an encoder f(x) = A x + b with K = D."""

    def __init__(self) -> None:
        self.mean, self.root = _normal(1, DIM, 0)[0], _normal(DIM, DIM, 1) + 2 * torch.eye(DIM)
        self.encoder = nn.Linear(DIM, DIM, dtype=torch.float64)
        with torch.no_grad():
            self.encoder.weight.copy_(_normal(DIM, DIM, 2) + 2 * torch.eye(DIM))
            self.encoder.bias.copy_(_normal(1, DIM, 3)[0])

    def sample(self, count: int, seed: int) -> Tensor:
        return self.mean + _normal(count, DIM, seed) @ self.root.T

    def log_prob(self, points: Tensor) -> np.ndarray:
        law = stats.multivariate_normal(self.mean.numpy(), (self.root @ self.root.T).numpy())
        return law.logpdf(points.numpy())

    def law_of_embeddings(self) -> Gaussian:
        weight, bias = self.encoder.weight.detach(), self.encoder.bias.detach()
        mixed = weight @ self.root
        return Gaussian(weight @ self.mean + bias, mixed @ mixed.T, 2, 0.0)


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-3), ("float64", 1e-9)])
def test_linear_encoder_of_a_gaussian_gives_its_exact_log_density(
    precision: str, error: float
) -> None:
    truth = _Linear()
    points = truth.sample(50, 4)
    encoder = truth.encoder if precision == "float64" else truth.encoder.float()
    # The law in float64, of the same weights as the encoder's.
    law = _Linear().law_of_embeddings()
    found = log_density(encoder, points.to(encoder.weight.dtype), law, precision=precision)
    np.testing.assert_allclose(found.log_density, truth.log_prob(points), rtol=0, atol=error)


def test_linear_encoder_with_a_sample_for_reference_is_within_the_error_of_its_law() -> None:
    truth = _Linear()
    points, reference = truth.sample(400, 4), truth.sample(4096, 5)
    with torch.no_grad():
        law = Gaussian.fit(truth.encoder(reference), shrinkage=0.0)
    found = log_density(truth.encoder, points, law).log_density
    expected = torch.from_numpy(truth.log_prob(points))
    agreement = density_agreement(found, expected)
    # A variance from N points is off by √(2/N) = 0.022, and so is a distance.
    assert float(agreement.slope) == pytest.approx(1, abs=0.03)
    assert float(agreement.pearson) > 0.997
    assert float(agreement.spearman) > 0.997
    # ½ log det Σ and half the mean distance are both off by √(D/2N) = 0.027.
    assert float((found - expected).mean()) == pytest.approx(0, abs=4 * 0.027)


def test_ill_conditioned_embeddings_keep_the_scale_of_their_log_density() -> None:
    """Σ of condition 5e5: a share of 0.1 % of the mean variance would drown its smallest direction."""
    truth = _Linear()
    points, reference = truth.sample(400, 4), truth.sample(4096, 5)
    expected = torch.from_numpy(truth.log_prob(points))
    found = density_agreement(log_density(truth.encoder, points, reference).log_density, expected)
    assert float(found.slope) == pytest.approx(1, abs=0.03)
    with torch.no_grad():
        law = Gaussian.fit(truth.encoder(reference), "ledoit_wolf")
    drowned = density_agreement(log_density(truth.encoder, points, law).log_density, expected)
    assert 0 < law.shrinkage < 0.01
    assert float(drowned.slope) < 0.9


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-3), ("float64", 1e-9)])
def test_invertible_elementwise_map_gives_the_exact_log_density(
    precision: str, error: float
) -> None:
    """x = arsinh of a Gaussian, coordinate by coordinate; f = sinh makes it Gaussian again."""
    mean, scale = 0.3, 1.7
    points = torch.asinh(mean + scale * _normal(200, DIM, 6))
    law = Gaussian(torch.full((DIM,), mean).double(), scale**2 * torch.eye(DIM).double(), 2, 0.0)
    if precision == "float32":
        points = points.float()
    found = log_density(torch.sinh, points, law, precision=precision)
    # SciPy's Johnson S_U is the law of sinh(Gaussian); here the inverse, by its derivative.
    x = points.double().numpy()
    expected = (stats.norm(mean, scale).logpdf(np.sinh(x)) + np.log(np.cosh(x))).sum(1)
    np.testing.assert_allclose(found.log_density, expected, rtol=1e-6, atol=error)


def test_johnson_law_is_recovered_from_a_sample() -> None:
    """x = sinh of a Gaussian has SciPy's Johnson S_U density; f = arsinh, reference = a sample."""
    points, reference = torch.sinh(_normal(400, DIM, 7)), torch.sinh(_normal(4096, DIM, 8))
    found = log_density(torch.asinh, points, reference, precision="float64").log_density
    expected = stats.johnsonsu(0, 1).logpdf(points.numpy()).sum(1)
    agreement = density_agreement(found, torch.from_numpy(expected))
    assert float(agreement.slope) == pytest.approx(1, abs=0.05)
    assert float(agreement.spearman) > 0.999
    assert float((found - torch.from_numpy(expected)).mean()) == pytest.approx(0, abs=0.22)


def test_exact_inverse_of_the_bananas_gives_their_log_density() -> None:
    """A curved, coupled map: its Jacobian is not diagonal, and its determinant is 1."""

    class Straighten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            u, v = x[:, 0::2], x[:, 1::2]
            return torch.cat([u, (v - 0.6 * (u.square() - 1)) / 0.5], dim=1)

    points = make_density("bananas", 4).sample(100, torch.Generator().manual_seed(0)).double()
    law = Gaussian(torch.zeros(4).double(), torch.eye(4).double(), 2, 0.0)
    found = log_density(Straighten(), points, law, precision="float64")
    x = points.numpy()
    expected = stats.norm.logpdf(x[:, 0::2]).sum(1)
    expected += stats.norm(0.6 * (x[:, 0::2] ** 2 - 1), 0.5).logpdf(x[:, 1::2]).sum(1)
    np.testing.assert_allclose(found.log_density, expected, atol=1e-9)
    np.testing.assert_allclose(found.jepa_score, np.full(100, 2 * np.log(2)), atol=1e-9)


def test_the_recipe_runs_and_learns(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--density", "bananas", "--steps", "60", "--batch_size", "256"]
    (comparison,) = known_density.main([*arguments, "--folder", str(tmp_path)])
    assert float(comparison.agreement()["log_density"].spearman) > 0.7
    assert (tmp_path / "bananas_2to2_sigreg_seed0.png").stat().st_size > 10_000
    assert "mean JEPA-SCORE" in capsys.readouterr().out


def test_training_depends_on_the_seed_and_not_on_the_monitor() -> None:
    density = make_density("ring", 2)
    settings = known_density.Settings("vicreg", steps=4, batch_size=32)
    monitor = known_density.DensityMonitor(density.sample(8, torch.Generator().manual_seed(0)))
    plain = known_density.train(density, 3, settings).state_dict()
    watched = known_density.train(density, 3, settings, monitor).state_dict()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="`method` must be one of sigreg, vicreg, got 'byol'"):
        known_density.train(make_density("ring", 2), 2, known_density.Settings("byol"))
