"""After a look at a model everything is as it was, also when the look raises."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import interpreter_settings, mlp
from torch import nn

from jepa_monitor import (
    DensityMonitor,
    audit_precision,
    jacobian_spectrum,
    jepa_score,
    log_density,
)
from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.metrics import JepaScore


def _disturb() -> None:
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)


@pytest.mark.parametrize("raises", [False, True])
def test_settings_and_modes_are_restored(raises: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())).train()
    module[1][0].eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = interpreter_settings()
        try:
            with undisturbed([module], torch.device("cpu")):
                _disturb()
                assert not any(part.training for part in module.modules())
                inside = interpreter_settings()
                if raises:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert raises
        assert interpreter_settings() == before
    assert inside["gradients"]
    assert not inside["inference"]
    assert not inside["autocast"]
    assert [part.training for part in module.modules()] == [True, True, True, False, True]


class _Writing(nn.Module):
    """Counts its passes in a buffer, in place and by a new tensor, and keeps an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))
        self.net = mlp(48, 4)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self.last = batch.detach().sum()
        return self.net(batch)


def test_buffers_written_in_the_forward_pass_are_kept() -> None:
    module = _Writing()
    jepa_score(module, torch.rand(3, 48))
    assert module.passes.item() == 0
    assert module.last.item() == 0


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="this torch has no switch for each backend"
)
def test_newer_precision_switches_are_restored() -> None:
    code = """if True:
        import torch
        from jepa_monitor.encoders.isolation import full_float32
        b = torch.backends
        backends = (b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul)
        for backend in backends:
            backend.fp32_precision = "tf32"
        with full_float32():
            assert all(backend.fp32_precision in ("ieee", "none") for backend in backends)
        assert all(backend.fp32_precision == "tf32" for backend in backends)
    """
    subprocess.run([sys.executable, "-c", code], check=True)  # the switches cannot be unset


class _Aliased(nn.Module):
    """A network, some layers of which have a second name or a weight of another's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        net = nn.Sequential(*mlp(48, 16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16))
        if kind == "name before":
            self.stem, self.norm = net[1], net[4]
        self.net = net
        if kind == "name after":
            self.stem, self.norm = net[1], net[4]
        if kind == "in another child":
            self.head = nn.ModuleDict({"last": net[5], "blocks": nn.ModuleList(net[1:3])})
        if kind == "tied weights":
            net[5].weight = net[3].weight
        if kind == "tied to the parent":
            self.weight = net[5].weight
            self.register_buffer("mean", net[4].running_mean)
        if kind == "in a list":
            self.layers, self.weights = [*net], [net[5].weight, net[4].running_var]

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch)


ALIASES = ("none", "name before", "name after", "in another child", "tied weights",
           "tied to the parent", "in a list")  # fmt: skip
LOOKS: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "score": jepa_score,
    "spectrum": jacobian_spectrum,
    "density": lambda encoder, batch: log_density(encoder, batch, torch.randn(20, 48)),
    "float64": lambda encoder, batch: jepa_score(encoder, batch, precision="float64"),
    "audit": audit_precision,
    "monitor": lambda encoder, batch: DensityMonitor(batch).evaluate(encoder),
    "metric": lambda encoder, batch: JepaScore(encoder).update(batch),
    "failing": lambda encoder, batch: _fails(RuntimeError, encoder, batch[:, :7]),
    "interrupted": lambda encoder, batch: _fails(
        KeyboardInterrupt, encoder, batch, pool=_interrupted
    ),
}


def _fails(kind: type[BaseException], *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind):
        jepa_score(*arguments, **options)


def _interrupted(output: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.forward, lambda m: lambda x: m(x) + 0])
@pytest.mark.parametrize("kind", ALIASES)
def test_every_name_keeps_its_object(
    kind: str, wrap: Callable[[nn.Module], Any], stored: torch.dtype
) -> None:
    module = _Aliased(kind).to(stored)

    def objects() -> dict[str, Any]:
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        lists = [[id(found) for found in getattr(module, n, [])] for n in ("layers", "weights")]
        layers = [(n, id(m)) for n, m in module.named_modules(remove_duplicate=False)]
        return {
            "lists": lists,
            "layers": layers,
            "tensors": {n: (id(t), t._version, t.requires_grad) for n, t in tensors.items()},
        }

    before = objects()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for look in LOOKS.values():
        look(wrap(module), torch.randn(4, 48))
        assert objects() == before
    values = {name: p.detach().clone() for name, p in module.named_parameters()}
    module(torch.randn(4, 48, dtype=stored)).float().square().sum().backward()
    optimizer.step()
    moved = [name for name, p in module.named_parameters() if not torch.equal(p, values[name])]
    assert len(moved) == len(values)


def test_an_encoder_that_raises_leaves_nothing_behind() -> None:
    class Raising(_Writing):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            super().forward(batch)
            _disturb()
            raise RuntimeError("no luck")

    module = Raising().train()
    parameters = dict(module.named_parameters())
    before = interpreter_settings()
    with pytest.raises(RuntimeError, match="no luck"):
        jepa_score(module, torch.rand(3, 48, generator=torch.Generator().manual_seed(0)))
    assert interpreter_settings() == before
    assert module.training
    assert module.passes.item() == 0
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())


def test_compiled_encoders_are_not_recompiled() -> None:
    compiled = torch.compile(mlp(48, 4), backend="eager")
    batch = torch.rand(8, 48)
    compiled(batch)
    compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    jepa_score(compiled, torch.rand(3, 48))
    jepa_score(lambda x: compiled(x) * 1, torch.rand(5, 48))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles


def _precision() -> dict[str, Any]:
    """Everything that lets float32 products be computed in less."""
    matmul = torch.backends.cuda.matmul
    switches = {
        "matmul": torch.get_float32_matmul_precision(),
        "TF32 of products": matmul.allow_tf32,
        "TF32 of convolutions": torch.backends.cudnn.allow_tf32,
        "float16 sums": matmul.allow_fp16_reduced_precision_reduction,
        "bfloat16 sums": matmul.allow_bf16_reduced_precision_reduction,
        "autocast": torch.is_autocast_enabled("cpu"),
    }
    if hasattr(torch.backends.cudnn, "conv"):
        switches["oneDNN"] = torch.backends.mkldnn.matmul.fp32_precision
    return switches


class _Log:
    def __init__(self) -> None:
        self.forward: list[dict[str, Any]] = []
        self.backward: list[dict[str, Any]] = []


class _Looking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: torch.Tensor, log: _Log) -> torch.Tensor:
        ctx.log = log
        log.forward.append(_precision())
        return batch.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.log.backward.append(_precision())
        return gradient, None


def test_no_reduced_precision_inside_a_look() -> None:
    net, log = mlp(48, 6), _Log()
    matmul = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    matmul.allow_fp16_reduced_precision_reduction = True
    matmul.allow_bf16_reduced_precision_reduction = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            before = _precision()
            jepa_score(lambda batch: net(_Looking.apply(batch, log)), torch.rand(3, 48))
            assert _precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert before["matmul"] == "medium"
    assert all(value is not False for value in before.values())
    assert len(log.forward) >= 3
    assert len(log.backward) >= 6
    for inside in (*log.forward, *log.backward):
        assert inside.pop("matmul") == "highest"
        assert inside.pop("oneDNN", "ieee") in ("ieee", "none")
        assert not any(inside.values()), inside
