"""Products J v, however an encoder allows them: against a textbook Jacobian."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import images, mlp
from rough_encoders import WIDTH, NoForwardMode, OnceOnly, jacobians, rough
from torch import Tensor, nn

from jepa_monitor import jepa_score
from jepa_monitor.encoders import Embedder
from jepa_monitor.jacobian import estimate_scores
from jepa_monitor.jacobian.forward_products import (
    ForwardProducts,
    _differences,
    _double_backward,
    _forward_mode,
    choose_products,
    finite_difference,
)
from jepa_monitor.jacobian.lanczos import krylov_basis, start_samples


class Through3(NoForwardMode):
    """A backward pass that is not the derivative of the forward pass, as in straight-through estimators."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 3 * gradient


class Through3Once(Through3):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 3 * gradient


class Stepwise(nn.Module):
    """What differences do not see, and forward mode does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(192, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.detach() + (20 * x.detach()).round() / 20)


class Through(nn.Module):
    def __init__(self, function: type[torch.autograd.Function] | None) -> None:
        super().__init__()
        self.net, self.function = mlp(192, 16), function

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(x)
        return found if self.function is None else self.function.apply(found)


PRODUCTS = {
    "differences": (lambda: Through(OnceOnly), lambda z: z.cos(), 1e-2),
    "forward mode": (Stepwise, torch.ones_like, 1e-5),
    "double backward": (lambda: Through(Through3), lambda z: torch.full_like(z, 3.0), 1e-5),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_jacobian(name: str) -> None:
    """The cheapest way that agrees with backward passes is taken, and gives J v of a textbook Jacobian."""
    make, slope, most = PRODUCTS[name]
    encoder, data = make(), images(4)
    v = torch.randn(4, 3, 8, 8)

    def work() -> tuple[str, Tensor, float]:
        chosen = choose_products(embedder, data[:2])
        return chosen.name, chosen.begin(data)(v), chosen.error

    embedder = Embedder(encoder)
    used, found, error = embedder.run(work, torch.device("cpu"))
    assert used == name
    assert error < most
    seen = (20 * data).round() / 20 if name == "forward mode" else data
    product = (jacobians(encoder.net, seen) @ v.double().flatten(1)[:, :, None])[:, :, 0]
    expected = product * slope(encoder.net(seen).detach().double())
    off = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert off.max() < 2 * most


def test_estimates_hardly_depend_on_how_products_are_taken() -> None:
    embedder, data = Embedder(rough()), images(8)
    basis = krylov_basis(6, 3, WIDTH, 192, None, 0)
    ways = [_forward_mode, _double_backward, _differences(0.1), _differences(0.01)]

    def work() -> list[Tensor]:
        taken = [ForwardProducts("", partial(way, embedder), 0.0) for way in ways]
        return [
            start_samples(embedder, data, basis, way, 1e-6)[1][:, :, 0].mean(1) for way in taken
        ]

    first, *others = embedder.run(work, torch.device("cpu"))
    for found in others:
        torch.testing.assert_close(found, first, rtol=0, atol=0.1)  # estimates are off by nats


def test_an_encoder_whose_passes_contradict_each_other_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"disagree with its backward passes \(relative errors: di"
    ):
        jepa_score(Through(Through3Once), images(4), method="lanczos", rows=4, steps=2)
    # Where it is one of several ways it is passed over.
    found = estimate_scores(Through(Through3Once), images(8), method="auto", tolerance=1e3)
    assert found.method == "exact, 16 rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.3, 1e-2, 1e-3])
def test_the_bound_of_a_difference_holds(dtype: torch.dtype, step: float) -> None:
    encoder, data = rough().to(dtype), images(6).to(dtype)
    v = torch.randn(6, 3, 8, 8, dtype=dtype)
    embedder = Embedder(encoder)
    found = embedder.run(lambda: finite_difference(embedder, data, v, step), torch.device("cpu"))
    expected = (jacobians(encoder, data) @ v.double().flatten(1)[:, :, None])[:, :, 0]
    off = (found.product - expected).norm(dim=1)
    assert bool((off <= found.bound).all())
    if dtype == torch.float64 and step < 0.1:
        assert bool((found.bound < 0.05 * expected.norm(dim=1)).all())


def test_a_single_step_takes_no_products() -> None:
    found = estimate_scores(Through(Through3Once), images(4), rows=6, steps=1)
    assert found.method == "lanczos, 6 starts, 1 step, 6 of 16 rows, plain"
    assert torch.isnan(found.errors).all()  # nothing tells what further steps would change
