"""What modules and their hooks hold in plain Python is after a look what it was before."""

from __future__ import annotations

import collections
import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import float64_score, mlp
from torch import Tensor, nn

from jepa_monitor import jepa_score

SEEN: list[int] = []
TOTAL = 0


class Stateful(nn.Module):
    """Runs a function that changes the module, and then a network."""

    def __init__(self, change: Callable[[Any, Tensor], object], **held: Any) -> None:
        super().__init__()
        self.net = mlp(48, 6)
        self.change = change
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, batch: Tensor) -> Tensor:
        self.change(self, batch)
        return self.net(batch)


def _add(module: Any, batch: Tensor) -> None:
    module.count += 1


def _nest(module: Any, batch: Tensor) -> None:
    module.held["list"].append({len(batch)})
    module.held["list"][0].add(7)
    module.held[len(module.held)] = batch


CHANGES: dict[str, tuple[Callable[[Any, Tensor], object], dict[str, Any]]] = {
    "int": (_add, {"count": 3}),
    "float": (_add, {"count": 0.5}),
    "None": (lambda m, x: setattr(m, "last", x), {"last": None}),
    "new attribute": (lambda m, x: setattr(m, "new", x), {}),
    "deleted attribute": (lambda m, x: vars(m).pop("old", None), {"old": 1}),
    "string": (lambda m, x: setattr(m, "name", m.name + "!"), {"name": "a"}),
    "nested containers": (_nest, {"held": {"list": [{1}]}}),
    "default dict": (lambda m, x: m.held[len(x)].append(1), {"held": collections.defaultdict(list)}),
    "full deque": (lambda m, x: m.held.append(len(x)), {"held": collections.deque([1, 2], maxlen=2)}),
    "list in a tuple": (lambda m, x: m.held[0].append(1), {"held": ([1],)}),
    "reordered dict": (lambda m, x: m.held.update(a=m.held.pop("a")), {"held": {"a": 1, "b": 2}}),
    "module made on use": (lambda m, x: setattr(m, "late", nn.Linear(2, 2)), {}),
    "hook made on use": (lambda m, x: m.net.register_forward_hook(lambda *_: None), {}),
}  # fmt: skip


def _plain(module: nn.Module) -> Any:
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    hooks = [list(part._forward_hooks) for part in module.modules()]
    return list(held), copy.deepcopy(held.get("held")), held, [*module._modules], hooks


@pytest.mark.parametrize("name", CHANGES)
def test_attributes_and_containers(name: str) -> None:
    change, held = CHANGES[name]
    module = Stateful(change, **copy.deepcopy(held))
    before = _plain(module)
    jepa_score(module, torch.randn(3, 48))
    assert _plain(module) == before


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], object]]] = {
    "torch": (
        lambda: torch.Generator().manual_seed(3), lambda m, x: torch.rand(1, generator=m.held)
    ),
    "numpy": (lambda: np.random.default_rng(3), lambda m, x: m.held.normal()),
    "numpy, legacy": (lambda: np.random.RandomState(3), lambda m, x: m.held.normal()),
    "python": (lambda: random.Random(3), lambda m, x: m.held.random()),
}  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_random_generators_of_a_module(name: str) -> None:
    make, draw = GENERATORS[name]
    module, other = (Stateful(draw, held=make()) for _ in range(2))
    jepa_score(module, torch.randn(3, 48))
    assert draw(module, torch.empty(0)) == draw(other, torch.empty(0))


class Watcher:
    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []
        self.passes = 0

    def look(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.shapes.append(output.shape)
        self.passes += 1

    __call__ = look


def _globally(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    global TOTAL
    TOTAL += 1
    SEEN.append(len(output))


@pytest.mark.parametrize(
    "kind", ["closure", "method", "object", "partial", "default", "globals", "of another module"]
)
def test_hooks_that_count_and_collect(kind: str) -> None:
    global TOTAL
    TOTAL = 0
    SEEN.clear()
    module = mlp(48, 6)
    watcher, passes, collected = Watcher(), 0, []

    def closed(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal passes
        passes += 1
        collected.append(output)

    def to(into: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
        into.append(output)

    def default(module: nn.Module, inputs: Any, output: Tensor, into: Any = collected) -> None:
        into.append(output)

    owner = nn.Module()
    owner.collected = collected
    hook = {
        "closure": closed,
        "method": watcher.look,
        "object": watcher,
        "partial": functools.partial(to, collected),
        "default": default,
        "globals": _globally,
        "of another module": lambda m, i, o: owner.collected.append(o),
    }[kind]
    module[1].register_forward_hook(hook)
    jepa_score(module, torch.randn(3, 48))
    assert (passes, collected, SEEN, TOTAL) == (0, [], [], 0)
    assert (watcher.shapes, watcher.passes) == ([], 0)
    module(torch.randn(3, 48))  # and in training they work
    assert passes + len(collected) + len(SEEN) + watcher.passes > 0


def test_hooks_that_are_part_of_the_function_are_run() -> None:
    module = mlp(48, 6)
    features: dict[str, Tensor] = {}
    module[1].register_forward_hook(lambda m, i, o: features.update(last=o))
    module[1].register_forward_hook(lambda m, i, o: o * 3)
    module[1].register_forward_pre_hook(lambda m, i: (i[0] / 2,))

    def features_of(batch: Tensor) -> Tensor:
        module(batch)
        return features["last"]

    images = torch.randn(3, 48)
    plain = nn.Linear(48, 24)
    plain.load_state_dict(module[1].state_dict())
    plain.weight.data /= 2
    expected = float64_score(plain, images)
    torch.testing.assert_close(jepa_score(features_of, images), expected, rtol=0, atol=1e-4)
    assert features == {}


def _hooked_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(48, 6)))


class Table(nn.Module):
    """Multiplies by a matrix that it keeps out of torch's sight."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = mlp(48, 8)
        table = torch.randn(8, 6)
        self.kept: Any = {"plain": table, "list": [table], "dict": {0: table}, "parameter": []}[
            kind
        ]
        if kind == "parameter":
            self.weight = nn.Parameter(table)
            self.kept = [self.weight]

    def forward(self, batch: Tensor) -> Tensor:
        table = self.kept if isinstance(self.kept, Tensor) else self.kept[0]
        return self.net(batch) @ table

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # as the reference needs it
        moved = super()._apply(fn, recurse)
        if isinstance(self.kept, Tensor):
            self.kept = fn(self.kept)
        elif hasattr(self, "weight"):
            self.kept[0] = self.weight
        else:
            self.kept[0] = fn(self.kept[0])
        return moved


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.GRU(12, 6, batch_first=True)

    def forward(self, batch: Tensor) -> Tensor:
        return self.unit(batch.unflatten(1, (4, 12)))[0][:, -1]


TABLES: dict[str, Callable[[], nn.Module]] = {
    "weight norm by hooks": _hooked_weight_norm,
    "spectral norm by hooks": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(48, 6))),
    "tensor that is no buffer": lambda: Table("plain"),
    "tensor in a list": lambda: Table("list"),
    "tensor in a dict": lambda: Table("dict"),
    "parameter in a list": lambda: Table("parameter"),
    "gated recurrent unit": Recurrent,
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TABLES)
def test_tensors_that_are_no_parameters(name: str, stored: torch.dtype, precision: str) -> None:
    """They are scored in the precision that was asked for, and stay the objects that they were."""
    module, images = TABLES[name]().to(stored), torch.randn(3, 48)
    module(images.to(stored))
    reference = TABLES[name]().to(stored)
    reference.load_state_dict(module.state_dict())
    if isinstance(module, Table):
        reference.kept = copy.deepcopy(module.kept)
    before = [{name: id(value) for name, value in vars(part).items()} for part in module.modules()]
    scores = jepa_score(module, images, precision=precision)
    after = [{name: id(value) for name, value in vars(part).items()} for part in module.modules()]
    assert after == before
    torch.testing.assert_close(
        scores,
        float64_score_of_state(reference, images),
        rtol=0,
        atol=1e-3 if precision == "float32" else 1e-5,
    )


def float64_score_of_state(encoder: nn.Module, images: Tensor) -> Tensor:
    """The reference for modules that cannot be copied once they have run."""
    encoder = encoder.double().eval()
    jacobians = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], image)
            for image in images.double()
        ]
    )
    return torch.linalg.svdvals(jacobians).clamp_min(1e-6).log().sum(1)


def test_a_table_made_on_use_does_not_stay_in_the_type_of_the_look() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(48, 6)
            self.tables: dict[int, Tensor] = {}

        def forward(self, batch: Tensor) -> Tensor:
            if 0 not in self.tables:
                self.tables[0] = torch.linspace(0, 1, 48, dtype=batch.dtype)
            return self.net(batch + self.tables[0])

    module, batch = Caching().bfloat16(), torch.randn(3, 48)
    jepa_score(module, batch)
    assert module(batch.bfloat16()).dtype == torch.bfloat16


def test_scripted_modules() -> None:
    with pytest.warns(Warning, match="deprecated"):
        scripted = torch.jit.script(mlp(48, 6).bfloat16())
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in scripted.named_parameters()}
    images = torch.randn(3, 48)
    scores = jepa_score(scripted, images)
    now = {name: (id(p), p.dtype, p.requires_grad) for name, p in scripted.named_parameters()}
    assert scripted.training
    assert [(dtype, needs) for _, dtype, needs in now.values()] == [
        (dtype, needs) for _, dtype, needs in before.values()
    ]
    plain = mlp(48, 6)
    plain.load_state_dict(scripted.state_dict())
    torch.testing.assert_close(scores, float64_score(plain, images), rtol=0, atol=1e-3)
