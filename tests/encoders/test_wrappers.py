"""Encoders inside the wrappers of training strategies: scored as what they wrap, and left alone."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers import float64_score, mlp
from torch import Tensor, distributed, nn

from jepa_monitor import DensityMonitor, jepa_score


def _twice(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def inner(images: Tensor) -> Tensor:
        return module(images)

    return lambda images: inner(images) * 1


def _listed(module: nn.Module) -> Callable[[Tensor], Tensor]:
    modules = {"encoders": [module]}
    return lambda images: modules["encoders"][0](images) * 1


REACHES: dict[str, Callable[[nn.Module], Any]] = {
    "wrapper": lambda wrapper: wrapper,
    "function": lambda wrapper: lambda images: wrapper(images) * 1,
    "method": lambda wrapper: wrapper.forward,
    "inside another module": lambda wrapper: nn.Sequential(wrapper, nn.Identity()),
    "compiled": lambda wrapper: torch.compile(wrapper, backend="eager"),
    "function of a function": _twice,
    "list": _listed,
}


@pytest.fixture
def alone(tmp_path: pathlib.Path) -> Any:
    """A process group of one."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*mlp(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.stem = self.net[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


@pytest.mark.parametrize("reach", REACHES)
def test_distributed_data_parallel(alone: None, reach: str) -> None:
    module, images = Network(), torch.randn(4, 48)
    wrapper = nn.parallel.DistributedDataParallel(module)
    encoder = REACHES[reach](wrapper)
    wrapper(images).sum().backward()
    expected = float64_score(module, images)
    before = vars(wrapper).copy()
    torch.testing.assert_close(jepa_score(encoder, images), expected, rtol=0, atol=1e-3)
    assert vars(wrapper) == before
    wrapper(images).sum().backward()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("reach", REACHES)
def test_fabric(precision: str, reach: str) -> None:
    images = torch.randn(8, 48)
    labels = torch.randn(8, 8)
    monitor = DensityMonitor(torch.randn(6, 48), reference=torch.randn(8, 48))

    def train(watched: bool) -> list[Tensor]:
        torch.manual_seed(3)
        fabric = L.Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.init_module():
            module = Network()
        model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=1e-2))
        encoder = REACHES[reach](model)
        for _ in range(3):
            if watched:
                report = monitor.evaluate(encoder)
                expected = float64_score(module, monitor.images)
                torch.testing.assert_close(report.probe.scores, expected, rtol=0, atol=1e-3)
            optimizer.zero_grad()
            loss = (model(images).float() - labels).square().mean()
            fabric.backward(loss)
            optimizer.step()
        return [value.clone() for value in module.state_dict().values()]

    for watched, plain in zip(train(True), train(False), strict=True):
        assert torch.equal(watched, plain)
