"""Encoders whose parameters are sharded: scores are those of the whole, and training stays what it is."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from distributed_runs import monitor
from helpers import images, in_two_processes, mlp, seldom
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

FSDP2_ON_CPU = hasattr(torch.cpu.Stream, "record_event")  # torch 2.6 cannot train with it there


def sharded(rank: int, folder: pathlib.Path) -> dict[str, Any]:
    """Train an encoder under FSDP2, and look at it between the steps, whole and in shards."""
    found: dict[str, Any] = {}
    for watched in (True, False):
        torch.manual_seed(4)
        encoder = nn.Sequential(mlp(192, 24), nn.LayerNorm(24), mlp(24, 40))
        plain = copy.deepcopy(encoder)
        mesh = init_device_mesh("cpu", (2,))
        for part in (encoder[0], encoder[2]):
            fully_shard(part, mesh=mesh)
        fully_shard(encoder, mesh=mesh)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
        reports = []
        for step in range(3):
            if watched:
                reports.append(monitor(True).evaluate(encoder))
                if step == 2:  # what a validation leaves behind: the outermost parameters unsharded
                    with torch.no_grad():
                        encoder(images(2))
                    reports.append(monitor(True).evaluate(encoder))
            optimizer.zero_grad()
            encoder(images(8, step)).square().mean().backward()
            optimizer.step()
        state = {name: value.full_tensor() for name, value in encoder.state_dict().items()}
        found["watched" if watched else "plain"] = state
        if watched:
            alone = monitor(False).evaluate(plain)
            found["first"] = (reports[0].probe.scores, alone.probe.scores)
            found["last"] = (reports[2].probe.scores, reports[3].probe.scores)
            plain.load_state_dict(state)
            found["end"] = (
                monitor(True).evaluate(encoder).probe.scores,
                monitor(False).evaluate(plain).probe.scores,
            )
    return found


class Headed(nn.Module):
    """An encoder with two layers that share a weight, and its head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            mlp(192, 24), nn.BatchNorm1d(24), mlp(24, 24), nn.Linear(24, 40)
        )
        self.encoder[2][3].weight = self.encoder[2][1].weight
        self.head = nn.Linear(40, 5)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.encoder(batch))


# What to look at under FSDP1, and the same without it.
LOOKS: dict[str, tuple[Callable[[Any], Any], Callable[[Headed], nn.Module]]] = {
    "a wrapper inside": (lambda model: model.module.encoder[0], lambda plain: plain.encoder[0]),
    "through the wrapper": (
        lambda model: lambda batch: model.module.encoder(batch),  # noqa: PLW0108 - closes over it
        lambda plain: plain.encoder,
    ),
    "all of it": (lambda model: model, lambda plain: plain),
}


def look_at_fsdp1(model: FullyShardedDataParallel) -> list[tuple[Tensor, Tensor]]:
    """Scores and embeddings of both processes, and those of one without FSDP1."""
    plain, found = Headed(), []
    plain.load_state_dict(model.state_dict())
    options = {"method": "exact", "precision": "float64"}
    for sharded, whole in LOOKS.values():
        report = monitor(True, **options).evaluate(sharded(model)).probe
        alone = monitor(False, **options).evaluate(whole(plain)).probe
        found += [(report.scores, alone.scores), (report.embeddings, alone.embeddings)]
    return found


def sharded_by_fsdp1(original: bool, rank: int, folder: pathlib.Path) -> dict[str, Any]:
    """Train under FSDP1, and look before, in the middle of and after its steps."""

    def wrap(module: nn.Module) -> FullyShardedDataParallel:
        cpu = torch.device("cpu")
        return FullyShardedDataParallel(module, device_id=cpu, use_orig_params=original)

    found: dict[str, Any] = {"reports": []}
    for watched in (True, False):
        torch.manual_seed(4)
        whole = Headed()
        whole.encoder[0] = wrap(whole.encoder[0])
        model = wrap(whole)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        left: list[Tensor] = []
        for step in range(3):
            if watched:  # at first FSDP1 has not run yet, and does not know which wrapper is inside
                monitor(True).evaluate(model.module.encoder[0])
            optimizer.zero_grad()
            model(images(8, step)).square().mean().backward()
            if watched:
                found["reports"] += look_at_fsdp1(model)
            left += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            left += [p.detach().clone() for p in model.parameters()]
        found["watched" if watched else "plain"] = left
        if watched:
            found["reports"] += look_at_fsdp1(model)
            with pytest.raises(ValueError) as caught:
                monitor(True).evaluate(model.module.encoder)
            found["hidden"] = str(caught.value)
    return found


@pytest.mark.skipif(not FSDP2_ON_CPU, reason="this torch's FSDP2 does not run on a CPU")
def test_fully_sharded_parameters(tmp_path: pathlib.Path) -> None:
    for found in in_two_processes(sharded, tmp_path):
        for name in ("first", "last", "end"):
            torch.testing.assert_close(*found[name], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["watched"], found["plain"], rtol=0, atol=0)


@pytest.mark.parametrize("original", [True, *seldom(False)])
def test_parameters_of_fsdp1_are_summoned(tmp_path: pathlib.Path, original: bool) -> None:
    for found in in_two_processes(partial(sharded_by_fsdp1, original), tmp_path):
        assert len(found["reports"]) == 24
        for report, alone in found["reports"]:
            torch.testing.assert_close(report, alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(found["watched"], found["plain"], rtol=0, atol=0)
        assert found["hidden"].startswith("`encoder` is a part of a module that FSDP1 has sharded")
