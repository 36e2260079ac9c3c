"""Matrices too large for one piece: block by block the numbers are those of LAPACK in float64."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import float64_score, mlp
from torch import Tensor, nn

from jepa_monitor import jacobian_spectrum, jepa_score, log_density
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian import engine, spectrum
from jepa_monitor.jacobian.spectrum import (
    Spectrum,
    cross_gram,
    decompose,
    noise_floor,
    power_of_two,
    refine,
)


@pytest.fixture(params=[1, 13, 37], ids=lambda width: f"{width} wide")
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of a few columns: as many as rows, or the given number, which does not divide D."""
    width: int = request.param

    def blocks(matrices: Tensor) -> tuple[Tensor, ...]:
        monkeypatch.setattr(spectrum, "_BLOCK_BYTES", 8 * width * matrices[:, :, 0].numel())
        return plain(matrices)

    plain = spectrum.column_blocks
    monkeypatch.setattr(spectrum, "column_blocks", blocks)
    return width


def _matrices(rows: int, dtype: torch.dtype, seed: int = 0, batch: int = 3) -> Tensor:
    """Random ones with a spectrum over three decades, whose columns are not alike."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(batch, rows, rows, generator=generator, dtype=torch.float64)
    columns = torch.randn(batch, rows, 101, generator=generator, dtype=torch.float64)
    weights = torch.logspace(-3, 0, rows, dtype=torch.float64)[:, None]
    return (left @ (weights * columns * torch.linspace(0.1, 3, 101))).to(dtype)


def test_the_fixture_makes_several_blocks(columns: int) -> None:
    found = spectrum.column_blocks(_matrices(9, torch.float32))
    assert len(found) == math.ceil(101 / max(9, columns))
    assert torch.equal(torch.cat(found, 2), _matrices(9, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_rows(columns: int, dtype: torch.dtype) -> None:
    first, second = _matrices(9, dtype), _matrices(4, dtype, 1)
    expected = first.double() @ first.double().mT
    torch.testing.assert_close(cross_gram(first, first), expected, rtol=1e-12, atol=1e-10)
    expected = first.double() @ second.double().mT
    torch.testing.assert_close(cross_gram(first, second), expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(cross_gram(second, first), expected.mT, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values(columns: int, dtype: torch.dtype, tall: bool) -> None:
    matrices = _matrices(9, dtype)
    expected = torch.linalg.svdvals(matrices.double())
    found = decompose(matrices.mT if tall else matrices)
    error = 1e-7 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found.values, expected, rtol=0, atol=error * expected.max().item())
    if found.vectors is not None:
        rebuilt = found.vectors @ (found.values.square()[:, :, None] * found.vectors.mT)
        products = matrices.double() @ matrices.double().mT
        torch.testing.assert_close(rebuilt, products, rtol=1e-9, atol=1e-9)


def test_refined_values(columns: int) -> None:
    """A float32 matrix that has lost its smallest directions, and exact rows along them."""
    generator = torch.Generator().manual_seed(2)
    left = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(101, 9, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([5.0, 4, 3, 2, 1, 0.5, 0.1, 1e-6, 3e-8], dtype=torch.float64)
    exact = left @ (values[:, None] * right.T)
    rounded = exact.float()[None]
    found = decompose(rounded)
    assert found.vectors is not None
    assert not torch.allclose(found.values[0, 7:].log(), values[7:].log(), atol=0.1)
    rows = found.vectors[0, :, 7:].T @ exact
    refined = refine(rounded[0], Spectrum(found.values[:1], found.vectors[:1]), 7, rows)
    torch.testing.assert_close(refined.log(), values.log(), rtol=0, atol=1e-4)


def _layers(name: str) -> nn.Module:
    torch.manual_seed(4)
    last = [nn.LayerNorm(16)] if name == "singular" else []
    return nn.Sequential(*mlp(101, 16), *last)


@pytest.mark.parametrize("name", ["regular", "singular"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_scores(columns: int, name: str, precision: str) -> None:
    encoder, images = _layers(name), torch.randn(4, 101)
    scores = jepa_score(encoder, images, precision=precision)
    tolerance = 0.02 if precision == "float32" else 1e-6
    torch.testing.assert_close(scores, float64_score(encoder, images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("block", [1, 3, 7, 15, 16])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, block: int, precision: str) -> None:
    encoder, images = _layers("regular"), torch.randn(3, 101)
    monkeypatch.setattr(engine, "plan", lambda *_: (1, block))
    found = jacobian_spectrum(encoder, images, precision=precision)
    expected = [
        torch.linalg.svdvals(
            torch.autograd.functional.jacobian(encoder.double(), image[None])[0, :, 0]
        )
        for image in images.double()
    ]
    tolerance = 1e-6 if precision == "float32" else 1e-7
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("count", [1, 64, 65, 150])
def test_batches_of_reference_images(count: int) -> None:
    """The law of the embeddings is that of all images, whose number batches need not divide."""
    encoder, reference = _layers("regular"), torch.randn(count + 1, 101)
    whole = log_density(encoder, reference[:2], reference)
    embeddings = encoder(reference).detach().double()
    law = Gaussian.fit(embeddings)
    torch.testing.assert_close(whole.log_prior, law.log_prob(embeddings[:2]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_sizes_whose_squares_float64_does_not_hold(size: float, memory: int | None) -> None:
    weight = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = torch.randn(5, 12, dtype=torch.float64)
    expected = torch.linalg.svdvals(weight).log().sum() + 6 * math.log(size)
    scores = jepa_score(
        lambda x: x @ (size * weight).T, images, precision="float64", eps=1e-300, max_memory=memory
    )
    torch.testing.assert_close(scores, expected.expand(5), rtol=0, atol=1e-6)


def test_the_power_of_two_of_a_matrix() -> None:
    for size in (1e-300, 0.3, 1.0, 2.0, 1e300):
        matrix = torch.tensor([[0.0, -size], [size / 3, 0]], dtype=torch.float64)
        assert power_of_two(matrix) == 2.0 ** math.floor(math.log2(size))
    assert power_of_two(torch.zeros(2, 2)) == 1
    assert power_of_two(torch.tensor([1.0, torch.inf])) == 1


def test_noise_floor() -> None:
    values = torch.tensor([[4.0, 1.0]], dtype=torch.float64)
    assert noise_floor(values, torch.float32).item() == 8 * 2.0**-23
    assert noise_floor(values, torch.float64).item() == 8 * 2.0**-52
    assert noise_floor(values, torch.float64, squared=True).item() == 8 * 2.0**-26
    assert noise_floor(values, torch.float32, squared=True).item() == 8 * 2.0**-23
