"""Gradients of the score: against float64 autograd of an SVD, and against float64 differences."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers import interpreter_settings, mlp, off_the_start
from rough_encoders import OnceOnly
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.differentiable import _tell_of_steps


def reference_score(encoder: nn.Module, images: Tensor) -> Tensor:
    """By PyTorch's own Jacobian and SVD, all with a graph."""
    rows = [
        torch.autograd.functional.jacobian(
            lambda x: encoder(x[None])[0], image, create_graph=True
        ).flatten(1)
        for image in images
    ]
    return torch.linalg.svdvals(torch.stack(rows)).log().sum(1)


def gradients_of(score: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(0.5, 2, len(score), dtype=score.dtype)
    return torch.autograd.grad((score * weights).sum(), inputs)


def differences(
    encoder: nn.Module, images: Tensor, moved: Tensor, direction: Tensor, **options: Any
) -> float:
    """The derivative of the weighted sum of scores along a direction of one of the tensors, float64."""
    weights = torch.linspace(0.5, 2, len(images), dtype=torch.float64)
    step, found = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            moved += sign * step * direction
        scores = jepa_score(encoder, images.detach(), precision="float64", **options)
        found.append(float((scores * weights).sum()))
        with torch.no_grad():
            moved -= sign * step * direction
    return (found[0] - found[1]) / (2 * step)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return off_the_start(
        timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8).eval()
    )


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.GELU(), nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 10),
    )  # fmt: skip
    return off_the_start(net).train()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("outputs", [5, 12, 20])
def test_gradients_are_those_of_an_svd(outputs: int, precision: str) -> None:
    encoder = mlp(12, outputs, 24) if outputs <= 12 else off_the_start(mlp(12, outputs, 24))
    images = torch.randn(4, 12, requires_grad=True)
    score = jepa_score(encoder, images, differentiable=True, precision=precision)
    parameters = [p for name, p in encoder.named_parameters() if "weight" in name]
    found = gradients_of(score, images, *parameters)

    double = copy.deepcopy(encoder).double()
    exact = images.detach().double().requires_grad_()
    weights = [p for name, p in double.named_parameters() if "weight" in name]
    expected = gradients_of(reference_score(double, exact), exact, *weights)
    for mine, theirs, like in zip(found, expected, (images, *parameters), strict=True):
        assert mine.dtype == like.dtype
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


@pytest.mark.parametrize("make", [vit, convolutions])
@pytest.mark.parametrize("method", ["exact", "sketch", "whitened"])
def test_gradients_are_float64_differences(make: Callable[[], nn.Module], method: str) -> None:
    encoder = make().double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {} if method == "exact" else {"method": "sketch", "rows": 4}
    if method == "whitened":
        with torch.no_grad():
            law = Gaussian.fit(encoder(torch.randn(256, 3, 32, 32, dtype=torch.float64)))
        options["reference"] = law
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = jepa_score(encoder, images, differentiable=True, **options)
        named = dict(encoder.named_parameters())
        chosen = [p for p in named.values() if p.ndim > 1]
        found = torch.autograd.grad(
            (score * torch.linspace(0.5, 2, 3, dtype=torch.float64)).sum(),
            [images, *chosen],
            allow_unused=True,
        )
        generator = torch.Generator().manual_seed(1)
        for tensor, gradient in (
            (images, found[0]),
            (chosen[0], found[1]),
            (chosen[-1], found[-1]),
        ):
            direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            expected = differences(encoder, images, tensor, direction, **options)
            assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-3)


def test_float32_follows_float64_on_a_vit() -> None:
    encoder, images = vit(), torch.randn(1, 3, 32, 32)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = images.to(dtype).requires_grad_()
        score = jepa_score(copy.deepcopy(encoder).to(dtype), leaf, differentiable=True)
        found.append(torch.autograd.grad(score.sum(), leaf)[0].double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-3


def test_the_score_is_the_same_bit_for_bit() -> None:
    encoder, images = vit(), torch.randn(3, 3, 32, 32)
    assert torch.equal(
        jepa_score(encoder, images), jepa_score(encoder, images, differentiable=True).detach()
    )


def test_clipped_directions_do_not_move_the_score() -> None:
    encoder = mlp(12, 5, 24)
    with torch.no_grad():
        encoder[-1].weight[2] = 0
    images = torch.randn(3, 12, requires_grad=True)
    score = jepa_score(encoder, images, differentiable=True)
    others = copy.deepcopy(encoder)
    others[-1] = nn.Linear(24, 4)
    others[-1].weight = nn.Parameter(encoder[-1].weight[[0, 1, 3, 4]].detach())
    expected = jepa_score(others, images, differentiable=True)
    torch.testing.assert_close(
        gradients_of(score, images), gradients_of(expected, images), rtol=1e-4, atol=1e-5
    )


def test_a_small_budget_of_memory_gives_the_same() -> None:
    encoder, images = convolutions(), torch.randn(4, 3, 32, 32, requires_grad=True)
    found = []
    for memory in (None, 2**18):
        score = jepa_score(encoder, images, differentiable=True, max_memory=memory)
        found.append(gradients_of(score, images, encoder[0].weight))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_nothing_else_moves() -> None:
    encoder, images = convolutions(), torch.randn(3, 3, 32, 32)
    encoder[0].weight.grad = torch.ones_like(encoder[0].weight)
    encoder[4].weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    settings = interpreter_settings()
    score = jepa_score(encoder, images, differentiable=True)
    torch.testing.assert_close(encoder[0].weight.grad, torch.ones_like(encoder[0].weight))
    score.sum().backward()
    assert interpreter_settings() == settings
    assert all(module.training for module in encoder.modules())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert images.grad is None
    assert not images.requires_grad
    assert encoder[4].weight.grad is None
    assert not encoder[4].weight.requires_grad
    assert encoder[-1].bias.grad is None  # the score does not depend on it
    assert not torch.equal(encoder[0].weight.grad, torch.ones_like(encoder[0].weight))
    assert all(isinstance(p, nn.Parameter) for p in encoder.parameters())


def test_the_gradient_is_of_the_buffers_that_were_scored() -> None:
    encoder, images = convolutions(), torch.randn(3, 3, 32, 32)
    expected = gradients_of(jepa_score(encoder, images, differentiable=True), encoder[0].weight)
    score = jepa_score(encoder, images, differentiable=True)
    encoder(torch.randn(64, 3, 32, 32))  # moves BatchNorm's running statistics
    torch.testing.assert_close(gradients_of(score, encoder[0].weight), expected)


def test_half_precision_parameters_get_gradients_of_their_type() -> None:
    encoder, images = mlp(12, 5, 24).bfloat16(), torch.randn(2, 12)
    (found,) = gradients_of(jepa_score(encoder, images, differentiable=True), encoder[-1].weight)
    single = copy.deepcopy(encoder).double()
    (expected,) = gradients_of(reference_score(single, images.double()), single[-1].weight)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=1e-3)


def test_weights_that_moved_since_are_an_error() -> None:
    encoder = mlp(12, 5, 24)
    score = jepa_score(encoder, torch.randn(2, 12), differentiable=True)
    with torch.no_grad():
        encoder[1].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.sum().backward()


def test_what_cannot_be_differentiated_twice_is_told() -> None:
    first, last = nn.Linear(12, 12), nn.Linear(12, 4)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(OnceOnly.apply(self.first(x)))

    score = jepa_score(Encoder(), torch.randn(2, 12), differentiable=True)
    with pytest.raises(
        RuntimeError, match="`encoder` has an operation that PyTorch cannot differentiate twice"
    ):
        score.sum().backward()


def test_a_gradient_of_the_gradient_is_refused() -> None:
    images = torch.randn(2, 12, requires_grad=True)
    score = jepa_score(mlp(12, 5, 24), images, differentiable=True)
    (gradient,) = torch.autograd.grad(score.sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.square().sum().backward()


def test_an_image_without_a_score_has_no_gradient() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(12, 5, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * x.sum(1, keepdim=True).abs().sqrt()

    images = torch.randn(3, 12)
    images[1] = 0  # where the root has no slope
    images.requires_grad_()
    score = jepa_score(Rooted(), images, differentiable=True)
    assert torch.isfinite(score).tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert torch.isfinite(gradient).all(1).tolist() == [True, False, True]


def test_steps_uphill_raise_the_score_of_an_image_and_of_an_encoder() -> None:
    torch.manual_seed(0)
    encoder = mlp(12, 5, 24)
    images = torch.randn(4, 12)
    before = jepa_score(encoder, images)
    moving = images.clone().requires_grad_()
    for _ in range(5):
        score = jepa_score(encoder, moving, differentiable=True)
        (gradient,) = torch.autograd.grad(score.sum(), moving)
        with torch.no_grad():
            moving += 0.05 * gradient / gradient.norm(dim=1, keepdim=True)
    assert bool((jepa_score(encoder, moving) > before).all())

    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        (-jepa_score(encoder, images, differentiable=True).mean()).backward()
        optimiser.step()
    assert float(jepa_score(encoder, images).mean()) > float(before.mean()) + 0.1


def test_a_piecewise_linear_encoder_has_no_gradient_to_images_and_says_so() -> None:
    _tell_of_steps.cache_clear()
    encoder = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    images = torch.randn(3, 12, requires_grad=True)
    score = jepa_score(encoder, images, differentiable=True)
    with pytest.warns(UserWarning, match="piecewise linear"):
        found = gradients_of(score, images, encoder[0].weight)
    assert not found[0].any()
    expected = gradients_of(reference_score(encoder, images), encoder[0].weight)
    torch.testing.assert_close(found[1], expected[0], rtol=1e-3, atol=1e-5)
