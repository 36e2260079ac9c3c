"""Backward passes in TF32, emulated: what they blur is refined, and scores are those of float64."""

from __future__ import annotations

import copy
import importlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from helpers import float64_score, float64_spectrum, images, mlp
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_monitor import ScoreOptions, audit_precision, jacobian_spectrum, jepa_score
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian import engine, rows
from jepa_monitor.jacobian.engine import spectra

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason="the tests do not run from a checkout"
)


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_tf32")


@pytest.fixture
def tf32(emulation: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that has it."""
    monkeypatch.setattr(engine, "check_tf32", lambda device: None)
    monkeypatch.setattr(rows, "tensor_float32", emulation.EmulatedTF32)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def normalised(width: int = 24) -> nn.Module:
    """Ends in a LayerNorm: two singular values are zero."""
    torch.manual_seed(0)
    return nn.Sequential(*mlp(192, width), nn.LayerNorm(width)).eval()


def halved() -> nn.Module:
    """The same, of rank 12 before it."""
    encoder = normalised()
    last: Any = encoder[-2]
    last.weight.data[12:] = last.weight.data[:12]
    return encoder


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32).eval()


def test_operands_are_rounded_to_ten_bits(emulation: Any) -> None:
    step = 2.0**-10
    values = torch.tensor([1.0, 1 + step, 1 + 0.49 * step, 1 + 0.5 * step, -3 - step, 0.0])
    expected = torch.tensor([1.0, 1 + step, 1.0, 1 + step, -3 - 2 * step, 0.0])
    assert torch.equal(emulation.rounded(values), expected)
    with emulation.EmulatedTF32():
        product = values[None] @ torch.ones(6, 1)
    assert product.item() == expected.sum().item()
    with emulation.EmulatedTF32(), pytest.raises(NotImplementedError, match="MATH"):
        nn.functional.scaled_dot_product_attention(*torch.rand(3, 1, 1, 4, 8).unbind())


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("make", [normalised, small_vit])
@pytest.mark.parametrize("fold", [1, 3])
def test_scores_are_those_of_float64(make: Any, fold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, batch = make(), torch.rand(3, 3, 32, 32) if make is small_vit else images(3)
    monkeypatch.setattr(engine, "fold_of", lambda *_: fold)
    expected = float64_score(encoder, batch)
    found = jepa_score(encoder, batch, precision="tf32")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    # In float32 the error is a hundred times smaller: this was TF32.
    assert (found - expected).abs().max() > 1e-4
    embeddings = spectra(Embedder(encoder), batch, ScoreOptions(precision="tf32")).embeddings
    assert torch.equal(embeddings, spectra(Embedder(encoder), batch, ScoreOptions()).embeddings)


@pytest.mark.usefixtures("tf32")
def test_what_is_not_refined_is_counted() -> None:
    encoder, batch = halved(), images(3)
    truth = float64_spectrum(copy.deepcopy(encoder).double(), batch)
    found = spectra(Embedder(encoder), batch, ScoreOptions(precision="tf32"))
    lost = (truth < 1e-9 * truth[:, :1]).sum(1)
    assert (lost > 2).all()
    assert torch.equal(found.under_floor, lost)
    kept = int(truth.shape[1] - lost.max())
    error = found.singular_values[:, :kept] / truth[:, :kept] - 1
    assert error.abs().max() < 0.01


@pytest.mark.usefixtures("tf32")
def test_rows_that_do_not_fit() -> None:
    encoder, batch = mlp(192, 24, 48), images(2)
    found = jacobian_spectrum(encoder, batch, precision="tf32", max_memory=30_000)
    truth = float64_spectrum(copy.deepcopy(encoder).double(), batch)
    assert 1e-6 < (found / truth - 1).abs().max() < 0.05


@pytest.mark.usefixtures("tf32")
def test_the_audit_says_what_it_costs() -> None:
    audit = audit_precision(normalised(), images(4), precision="tf32")
    assert audit.verdict.startswith("tf32 is good enough for this encoder")
    assert 1e-4 < audit.difference.abs().max() < 0.05
    audit = audit_precision(halved(), images(4), precision="tf32")
    assert audit.verdict.startswith("tf32 is not good enough")
    assert audit.verdict.endswith('use precision="float32".')


def test_switches_are_on_in_backward_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, batch: torch.Tensor) -> torch.Tensor:
            seen.append(("forward", torch.get_float32_matmul_precision()))
            return batch.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            convolutions = torch.backends.cudnn.allow_tf32
            seen.append(("backward", f"{torch.get_float32_matmul_precision()} {convolutions}"))
            return gradient

    monkeypatch.setattr(engine, "check_tf32", lambda device: None)
    net, before = mlp(192, 8), torch.get_float32_matmul_precision()
    jepa_score(lambda batch: net(Noting.apply(batch)), images(1), precision="tf32")
    assert {found for found in seen if found[0] == "forward"} == {("forward", "highest")}
    passes = [told for when, told in seen if when == "backward"]
    assert passes[:8] == ["high True"] * 8
    assert set(passes[8:]) <= {"highest False"}  # of the refinement
    assert torch.get_float32_matmul_precision() == before


def test_where_there_is_none() -> None:
    encoder, batch = mlp(192, 8), images(2)
    with pytest.raises(ValueError, match=r"`precision='tf32'` is for CUDA devices .* on cpu"):
        jepa_score(encoder, batch, precision="tf32")
    with pytest.raises(ValueError, match="`differentiable=True` takes"):
        jepa_score(encoder, batch, precision="tf32", differentiable=True)
    for options in ({"method": "lanczos"}, {"method": "auto", "tolerance": 1.0}):
        with pytest.raises(ValueError, match="neither `method='lanczos'`"):
            ScoreOptions(precision="tf32", **options)
    # A float64 encoder runs in float64, whatever else is allowed.
    exact = jepa_score(encoder.double(), batch.double(), precision="tf32")
    torch.testing.assert_close(exact, float64_score(encoder, batch), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("capability", "enough"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_old_devices_are_refused(
    capability: tuple[int, int], enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jepa_monitor.encoders.isolation import check_tf32

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if enough:
        check_tf32(torch.device("cuda"))
    else:
        with pytest.raises(ValueError, match=r"compute capability 8\.0"):
            check_tf32(torch.device("cuda"))
