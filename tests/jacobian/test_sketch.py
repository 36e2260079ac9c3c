"""Sketches: the equation they stand for, whitening, seeds, and what they must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import float64_spectrum, images, mlp
from scipy.stats import multivariate_normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import (
    DensityMonitor,
    ScoreOptions,
    audit_precision,
    jacobian_spectrum,
    jepa_score,
    log_density,
)
from jepa_monitor.functional.gaussian import Gaussian


def _law(width: int, seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(width, width, generator=generator, dtype=torch.float64)
    mean = torch.randn(width, generator=generator, dtype=torch.float64)
    return Gaussian(mean, root @ root.T / width + 0.1 * torch.eye(width).double(), 100, 0.0)


def test_with_all_rows_the_whitened_sketch_is_the_exact_score_shifted() -> None:
    encoder, law = mlp(192, 16), _law(16)
    sketched = jepa_score(encoder, images(5), method="sketch", rows=16, reference=law)
    exact = jepa_score(encoder, images(5))
    shift = -0.5 * torch.linalg.slogdet(law.covariance).logabsdet
    torch.testing.assert_close(sketched, exact + shift, rtol=0, atol=1e-3)


def test_with_all_rows_the_plain_sketch_is_the_exact_score() -> None:
    encoder = mlp(192, 16)
    with pytest.warns(UserWarning, match="not whitened, for want of `reference`"):
        sketched = jepa_score(encoder, images(5), method="sketch", rows=16)
    torch.testing.assert_close(sketched, jepa_score(encoder, images(5)), rtol=0, atol=1e-3)


def test_rows_are_orthonormal_combinations_of_the_whitened_jacobian() -> None:
    # For f(x) = Σ^(1/2) x the whitened Jacobian is the identity, so all of a sketch's values are 1.
    law = _law(24)
    values, vectors = torch.linalg.eigh(law.covariance)
    root = ((vectors * values.sqrt()) @ vectors.T).float()
    spectrum = jacobian_spectrum(
        lambda x: x @ root, torch.randn(3, 24), method="sketch", rows=7, reference=law
    )
    torch.testing.assert_close(spectrum, torch.ones(3, 7).double(), rtol=0, atol=1e-4)


def test_one_sketch_for_all_images_and_evaluations() -> None:
    encoder, law = mlp(192, 40), _law(40)
    options = {"method": "sketch", "rows": 6, "reference": law}
    together = jepa_score(encoder, images(6), **options)
    alone = torch.cat([jepa_score(encoder, image[None], **options) for image in images(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-3)
    torch.randn(5)
    assert torch.equal(jepa_score(encoder, images(6), **options), together)
    other = jepa_score(encoder, images(6), seed=1, **options)
    assert (other - together).abs().min() > 1e-3


def test_default_rows_are_a_sixteenth_and_at_least_sixteen() -> None:
    for width, rows in ((320, 20), (40, 16), (6, 6)):
        spectrum = jacobian_spectrum(
            mlp(400, width, 400), torch.rand(2, 400), method="sketch", reference=_law(width)
        )
        assert spectrum.shape == (2, rows)


@pytest.mark.parametrize(("width", "exact"), [(32, True), (33, False)])
def test_auto_sketches_wide_embeddings_with_a_reference(width: int, exact: bool) -> None:
    encoder, law = mlp(192, width, 64), _law(width)
    spectrum = jacobian_spectrum(encoder, images(2), method="auto", reference=law)
    assert spectrum.shape[1] == (width if exact else 16)
    assert jacobian_spectrum(encoder, images(2), method="auto").shape[1] == width


REFERENCES = {
    "tensor": lambda x: x,
    "loader": lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=7),
    "dataset": TensorDataset,
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_log_density_is_the_change_of_variables(kind: str) -> None:
    encoder, data = mlp(192, 6), images(5)
    reference = images(300, seed=4)
    found = log_density(encoder, data, REFERENCES[kind](reference))
    embeddings = encoder(reference).detach().double()
    law = Gaussian.fit(embeddings)
    prior = multivariate_normal(law.mean.numpy(), law.covariance.numpy())
    expected = prior.logpdf(encoder(data).detach().double().numpy())
    torch.testing.assert_close(found.log_prior, torch.from_numpy(expected), rtol=0, atol=1e-3)
    score = float64_spectrum(encoder.double(), data).log().sum(1)
    torch.testing.assert_close(found.jepa_score, score, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.log_density, score + found.log_prior, rtol=0, atol=1e-3)


def test_sketched_log_density_with_all_rows_is_the_exact_one() -> None:
    encoder, law = mlp(192, 12), _law(12)
    exact = log_density(encoder, images(5), law)
    sketched = log_density(encoder, images(5), law, method="sketch", rows=12)
    torch.testing.assert_close(sketched.log_density, exact.log_density, rtol=0, atol=1e-3)


def test_sketched_log_density_is_that_of_the_sketched_encoder() -> None:
    law, rows = _law(12), 5
    sketched = log_density(nn.Identity(), torch.zeros(1, 12), law, method="sketch", rows=rows)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(12, rows, generator=generator, dtype=torch.float64)
    projection = torch.linalg.qr(normal).Q.T @ law.whitening
    z = projection @ -law.mean
    expected = (
        torch.linalg.svdvals(projection).log().sum()
        - 0.5 * (z @ z)
        - rows / 2 * math.log(2 * math.pi)
    )
    assert sketched.log_density.item() == pytest.approx(expected.item(), abs=1e-4)


def test_audit_of_an_encoder_that_float32_resolves() -> None:
    audit = audit_precision(nn.Sequential(*mlp(192, 12), nn.LayerNorm(12)), images(4))
    assert audit.verdict.startswith("float32 is good enough for this encoder")
    assert audit.difference.abs().max() < 0.02
    assert audit.spearman == pytest.approx(1)  # scores lie far further apart than that


def test_audit_of_an_encoder_that_float32_does_not_resolve() -> None:
    scales = torch.logspace(0, -12, 40)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 40), nn.Tanh(), nn.Linear(40, 40, bias=False)
    )
    rotation = torch.linalg.qr(torch.randn(40, 40)).Q
    encoder[-1].weight.data = (
        rotation @ torch.diag(1e6 * scales) @ torch.linalg.qr(torch.randn(40, 40)).Q
    )
    audit = audit_precision(encoder, images(4))
    assert "not good enough" in audit.verdict
    assert 'use precision="float64"' in audit.verdict
    assert audit.under_floor.min() > 0


WRONG = {
    "method": (lambda: ScoreOptions(method="fast"), ValueError, "`method` must be one of exact, sketch, lanczos, auto, got 'fast'"),
    "rows of exact": (lambda: ScoreOptions(rows=3), ValueError, "`rows` is for `method='sketch'`"),
    "no rows": (lambda: ScoreOptions("sketch", rows=0), ValueError, "`rows` must be at least 1"),
    "seed": (lambda: ScoreOptions(seed=0.5), TypeError, "`seed` must be an integer"),
    "too many rows": (lambda: jepa_score(mlp(192, 8), images(2), method="sketch", rows=9, reference=_law(8)), ValueError, "`rows` must be at most the width of the embeddings, 8, got 9"),
    "other width": (lambda: jepa_score(mlp(192, 8), images(2), method="sketch", reference=_law(7)), ValueError, "`reference` must be a law of embeddings of width 8, got 7"),
    "no reference": (lambda: log_density(mlp(192, 8), images(2), None), ValueError, "`reference` must be images or a fitted Gaussian, got None"),
    "one image": (lambda: log_density(mlp(192, 8), images(2), images(1)), ValueError, "`reference` must hold at least 2 images, got 1"),
    "reference type": (lambda: log_density(mlp(192, 8), images(2), 7), TypeError, "`reference` must be a tensor"),
    "audit of two": (lambda: audit_precision(mlp(192, 8), images(2)), ValueError, "at least 3 images, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_monitor_keeps_working_with_every_method() -> None:
    report = DensityMonitor(images(8), options=ScoreOptions("auto")).evaluate(mlp(192, 40))
    assert report.probe.singular_values.shape == (8, 40)
