"""The scores agree with a float64 Jacobian and LAPACK, whatever the encoder, batch and context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import timm
import torch
from helpers import float64_score, float64_spectrum, mlp, seldom
from torch import Tensor, nn

from jepa_monitor import jacobian_spectrum, jepa_score, log_volume


def _with_statistics(encoder: nn.Module) -> nn.Module:
    """Give BatchNorm layers the running statistics of a trained network."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def _after_layernorm() -> nn.Module:
    """Its Jacobian is exactly singular, which float32 turns into noise near eps."""
    return nn.Sequential(*mlp(48, 16), nn.LayerNorm(16))


def _timm(name: str) -> nn.Module:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, num_classes=0)


ENCODERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "vit": lambda: (
        timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8),
        (3, 32, 32),
    ),
    "convnext": lambda: (_timm("test_convnext"), (3, 32, 32)),
    "resnet": lambda: (_with_statistics(_timm("test_resnet")), (3, 32, 32)),
    "mlp, K < D": lambda: (mlp(48, 8), (3, 4, 4)),
    "mlp, K = D": lambda: (mlp(12, 12), (3, 2, 2)),
    "mlp, K > D": lambda: (mlp(12, 20), (3, 2, 2)),
    "mlp, rank 5": lambda: (mlp(48, 16, width=5), (3, 4, 4)),
    "layernorm": lambda: (_after_layernorm(), (3, 4, 4)),
    "large layernorm": lambda: (
        nn.Sequential(*_after_layernorm(), nn.Linear(16, 16).requires_grad_(False)),
        (3, 4, 4),
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_agrees_with_float64(name: str) -> None:
    encoder, shape = ENCODERS[name]()
    if name == "large layernorm":
        encoder[-1].weight.data.mul_(300)
    images = torch.randn(3, *shape)
    expected = float64_score(encoder, images)
    torch.testing.assert_close(jepa_score(encoder, images), expected, rtol=0, atol=0.02)
    exact = jepa_score(encoder, images, precision="float64")
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 12), (12, 12), (20, 12)])
def test_spectrum_of_a_linear_encoder_is_that_of_its_weight(shape: tuple[int, int]) -> None:
    encoder = nn.Linear(shape[1], shape[0])
    expected = torch.linalg.svdvals(encoder.weight.detach().double())
    spectrum = jacobian_spectrum(encoder, torch.randn(4, shape[1]))
    assert spectrum.shape == (4, min(shape))
    torch.testing.assert_close(spectrum, expected.expand(4, -1), rtol=1e-5, atol=1e-6)


def test_elementwise_map_has_its_closed_form() -> None:
    images = torch.randn(5, 10)
    expected = torch.cosh(images.double()).log().sum(1)  # the derivative of sinh is cosh
    torch.testing.assert_close(jepa_score(torch.sinh, images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", *seldom("float64")])
def test_score_does_not_depend_on_the_batch(precision: str) -> None:
    encoder, shape = ENCODERS["vit"]()
    images = torch.randn(2, *shape)
    together = jepa_score(encoder, images, precision=precision)
    tolerance = 0.02 if precision == "float32" else 1e-6
    alone = torch.cat([jepa_score(encoder, image[None], precision=precision) for image in images])
    torch.testing.assert_close(alone, together, rtol=0, atol=tolerance)
    small = jepa_score(encoder, images[:1], precision=precision, max_memory=1)  # block by block
    torch.testing.assert_close(small, together[:1], rtol=0, atol=tolerance)


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_works_in_every_gradient_mode(context: str) -> None:
    encoder, shape = ENCODERS["vit"]()
    with CONTEXTS[context]():
        images = torch.randn(2, *shape)  # in inference mode, an inference tensor
        scores = jepa_score(encoder, images)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, float64_score(encoder, images.clone()), rtol=0, atol=0.02)


def test_low_matmul_precision_of_the_user_is_neither_used_nor_lost() -> None:
    encoder, shape = ENCODERS["mlp, K < D"]()
    images = torch.randn(4, *shape)
    torch.set_float32_matmul_precision("medium")
    try:
        scores = jepa_score(encoder, images)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(scores, float64_score(encoder, images), rtol=0, atol=1e-3)


def test_half_precision_parameters_are_scored_in_float32_and_kept() -> None:
    encoder = mlp(48, 8).to(torch.bfloat16)
    images = torch.randn(3, 48)
    expected = float64_score(encoder, images)
    torch.testing.assert_close(jepa_score(encoder, images), expected, rtol=0, atol=1e-3)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


def test_train_mode_is_neither_used_nor_lost() -> None:
    encoder = nn.Sequential(*mlp(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    encoder[-1].eval()
    images = torch.randn(4, 48)
    statistics = encoder[-2].running_mean.clone()
    torch.testing.assert_close(
        jepa_score(encoder, images), float64_score(encoder, images), rtol=0, atol=1e-3
    )
    assert [module.training for module in encoder] == [True] * (len(encoder) - 1) + [False]
    assert torch.equal(encoder[-2].running_mean, statistics)


def test_a_function_is_put_into_eval_mode_through_its_closure() -> None:
    encoder = nn.Sequential(*mlp(48, 8), nn.Dropout(0.5))
    images = torch.randn(4, 48)
    scores = jepa_score(lambda batch: encoder(batch) * 1, images)
    torch.testing.assert_close(scores, float64_score(encoder, images), rtol=0, atol=1e-3)
    assert encoder.training


def test_encoder_that_leaves_nothing_for_gradients_to_disturb() -> None:
    encoder = mlp(48, 8)
    encoder(torch.randn(2, 48)).sum().backward()
    before = [parameter.grad.clone() for parameter in encoder.parameters()]
    state = torch.get_rng_state()
    images = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    jepa_score(encoder, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad
    for parameter, gradient in zip(encoder.parameters(), before, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


def test_log_volume_is_the_clipped_sum_of_logs() -> None:
    values = torch.tensor([[4.0, 0.25, 1e-9], [1.0, 1.0, 0.0]])
    expected = torch.tensor([1e-3, 1e-3], dtype=torch.float64).log()
    torch.testing.assert_close(log_volume(values, eps=1e-3), expected)


def test_an_image_without_a_finite_jacobian_spoils_no_other() -> None:
    def encoder(images: Tensor) -> Tensor:
        return torch.stack([images.sum(1).sqrt(), images[:, 0]], 1)  # infinite slope at 0

    scores = jepa_score(encoder, torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]))
    assert torch.isfinite(scores).tolist() == [True, False, True]


class _Pooled(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(self.scale * images)


OUTPUTS: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], Tensor], str]] = {
    "tokens": (lambda x: x, lambda x: x.mean(1), "auto"),
    "class token": (lambda x: x, lambda x: x[:, 0], "cls"),
    "flat tokens": (lambda x: x, lambda x: x.flatten(1), "flatten"),
    "maps": (lambda x: x[:, :, :, None], lambda x: x.mean(2), "auto"),
    "tuple": (lambda x: (x, None), lambda x: x.mean(1), "auto"),
    "hugging face": (
        lambda x: {"last_hidden_state": x, "pooler_output": x[:, 1]},
        lambda x: x[:, 1],
        "auto",
    ),
    "dinov2": (
        lambda x: {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1:], "masks": None},
        lambda x: x[:, 0],
        "auto",
    ),
    "only tensor": (lambda x: {"zap": x, "n": 3}, lambda x: x.mean(1), "auto"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_pooled(name: str) -> None:
    function, expected, pool = OUTPUTS[name]
    images = torch.randn(2, 4, 6)
    spectrum = jacobian_spectrum(_Pooled(function), images, pool=pool)
    torch.testing.assert_close(spectrum, float64_spectrum(expected, images), atol=1e-6, rtol=1e-5)


def test_pool_may_be_a_function() -> None:
    images = torch.randn(2, 4, 6)
    spectrum = jacobian_spectrum(
        _Pooled(lambda x: {"a": x, "b": x}), images, pool=lambda o: o["b"][:, 2]
    )
    torch.testing.assert_close(spectrum, torch.ones(2, 6, dtype=torch.float64))


class _NoGradient(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return images * 2


GOOD = torch.rand(2, 48)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "scalar output": (lambda: jepa_score(lambda x: x.sum(), GOOD), ValueError, "`encoder` must return one embedding an image"),
    "other batch size": (lambda: jepa_score(lambda x: x[:1], GOOD), ValueError, "`encoder` must return one embedding an image, got 1 for 2"),
    "no tensor": (lambda: jepa_score(lambda x: 3, GOOD), TypeError, "`encoder` must return a tensor"),
    "unknown keys": (lambda: jepa_score(lambda x: {"a": x, "b": x}, GOOD), ValueError, r"`encoder` returned a dict with the keys \['a', 'b'\]"),
    "integer output": (lambda: jepa_score(lambda x: x.long(), GOOD), ValueError, "no gradient reach|must return floating point"),
    "no gradient": (lambda: jepa_score(_NoGradient(), GOOD), ValueError, "`encoder` lets no gradient reach its input"),
    "empty embedding": (lambda: jepa_score(lambda x: x[:, :0], GOOD), ValueError, "width 0"),
    "mixed samples": (lambda: jepa_score(lambda x: x - x.mean(0), GOOD), ValueError, "`encoder` mixes the samples"),
    "batch statistics": (lambda: jepa_score(nn.BatchNorm1d(48, track_running_stats=False), GOOD), ValueError, "`encoder` has a BatchNorm without running statistics"),
    "encoder": (lambda: jepa_score("vit", GOOD), TypeError, "`encoder` must be a module or a callable, got str"),
    "images type": (lambda: jepa_score(mlp(), [[1.0]]), TypeError, "`images` must be a torch.Tensor, got list"),
    "integer images": (lambda: jepa_score(mlp(), (GOOD * 255).byte()), TypeError, "`images` must be floating point.*got torch.uint8"),
    "no batch": (lambda: jepa_score(mlp(), GOOD[0]), ValueError, r"`images` must have shape \(B, ...\).*got \(48,\)"),
    "no images": (lambda: jepa_score(mlp(), GOOD[:0]), ValueError, "at least one image"),
    "nan pixels": (lambda: jepa_score(mlp(), GOOD * torch.tensor([[1.0], [torch.nan]])), ValueError, "1 of 2 images hold NaN"),
    "eps": (lambda: jepa_score(mlp(), GOOD, eps=0.0), ValueError, "`eps` must be finite and above 0, got 0.0"),
    "eps type": (lambda: jepa_score(mlp(), GOOD, eps="1"), TypeError, "`eps` must be a number"),
    "precision": (lambda: jepa_score(mlp(), GOOD, precision="half"), ValueError, "`precision` must be one of float32, tf32, float64, got 'half'"),
    "max_memory": (lambda: jepa_score(mlp(), GOOD, max_memory=0), ValueError, "`max_memory` must be at least 1"),
    "max_memory type": (lambda: jepa_score(mlp(), GOOD, max_memory=1.5), TypeError, "`max_memory` must be an integer"),
    "pool": (lambda: jepa_score(mlp(), GOOD, pool="max"), ValueError, "`pool` must be one of auto, mean, cls, flatten, got 'max'"),
    "pool of maps": (lambda: jepa_score(lambda x: x.view(-1, 3, 4, 4), GOOD, pool="cls"), ValueError, "needs tokens"),
    "pool result": (lambda: jepa_score(mlp(), GOOD, pool=lambda o: o[0]), ValueError, "`pool` must return a"),
    "spectrum type": (lambda: log_volume([1.0]), TypeError, "`singular_values` must be a torch.Tensor"),
    "spectrum shape": (lambda: log_volume(torch.ones(3)), ValueError, "`singular_values` must be floating point of shape"),
    "negative": (lambda: log_volume(-torch.ones(1, 3)), ValueError, "must not be negative"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


class _Tables:
    table: Tensor | None = None


class _Caching(nn.Module):
    """Makes a table at its first pass, in itself or in an object that it has."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.tables = _Tables() if apart else self

    def forward(self, images: Tensor) -> Tensor:
        if self.tables.table is None:
            self.tables.table = torch.arange(1.0, 49.0)
        return images * self.tables.table


def test_a_tensor_cached_in_inference_mode_is_copied_or_explained() -> None:
    within, apart = _Caching(False), _Caching(True)
    with torch.inference_mode():
        within(GOOD)
        apart(GOOD)
    expected = torch.arange(1.0, 49.0).double().log().sum().expand(2)
    torch.testing.assert_close(jepa_score(within, GOOD), expected, rtol=0, atol=1e-4)
    assert within.table.is_inference()
    with pytest.raises(RuntimeError, match="keeps a tensor that it made in inference mode"):
        jepa_score(apart, GOOD)


def _empty_assertion(images: Tensor) -> Tensor:
    raise AssertionError


@pytest.mark.parametrize(
    ("encoder", "kind", "message"),
    [
        (lambda x: x[0]["image"], IndexError, "."),
        (lambda x: torch.cat(x["views"]), IndexError, "."),
        (nn.Linear(3, 2), RuntimeError, "shapes cannot be multiplied"),
        (lambda x: x.nothing, AttributeError, "no attribute 'nothing'"),
        (_empty_assertion, AssertionError, ""),
    ],
)
def test_what_the_encoder_raises_says_what_it_was_given(
    encoder: Callable[[Tensor], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(
        kind, match=f"(?s){message}.*given.*float32.*shape \\(2, 48\\).*encoder\\(\\[x\\]\\)\\[0\\]"
    ):
        jepa_score(encoder, GOOD)
