"""What only a GPU can show: scores of the CPU under TF32, mixed precision, folded rows, NCCL and sharding.

Skipped without one, and run on none so far.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import timm
import torch
from helpers import Validated, float64_score, images, loader, mlp, trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from jepa_monitor import JepaScoreCallback, jepa_score
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian import ScoreOptions
from jepa_monitor.jacobian.engine import spectra

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture
def tf32() -> Iterator[None]:
    """What training scripts set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_scores_are_those_of_float64_on_a_cpu(name: str, count: int) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0).eval()
    batch = torch.rand(count, 3, 160, 160)
    expected = float64_score(encoder, batch[:3])
    found = jepa_score(copy.deepcopy(encoder).cuda(), batch.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found[:3].cpu(), expected, rtol=0, atol=0.01)
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_passes_in_tf32_are_refined(name: str) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0).eval()
    batch = torch.rand(3, 3, 160, 160)
    expected = float64_score(encoder, batch)
    found = jepa_score(encoder.cuda(), batch.cuda(), precision="tf32")
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.2)


def test_a_budget_of_memory_is_kept() -> None:
    encoder, batch = mlp(192, 64, 512).cuda(), images(64).cuda()
    plain = spectra(Embedder(encoder), batch, ScoreOptions()).singular_values
    torch.cuda.reset_peak_memory_stats()
    before, budget = torch.cuda.memory_allocated(), 8 * 2**20
    small = spectra(Embedder(encoder), batch, ScoreOptions(max_memory=budget)).singular_values
    assert torch.cuda.max_memory_allocated() - before < 2 * budget
    torch.testing.assert_close(small, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_training_is_not_changed(tmp_path: pathlib.Path, precision: str) -> None:
    weights = []
    callback = JepaScoreCallback(max_overhead=None, strict=True)
    runs: list[list[pl.Callback]] = [[], [callback]]
    for callbacks in runs:
        torch.manual_seed(3)
        module = Validated()
        runner = trainer(
            tmp_path, callbacks, accelerator="gpu", devices=1, precision=precision,
            deterministic="warn",
        )  # fmt: skip
        runner.fit(module, loader(48, 2), loader(16, 3))
        weights.append([parameter.detach().cpu() for parameter in module.parameters()])
    for without, with_it in zip(*weights, strict=True):
        assert torch.equal(without, with_it)
    assert len(callback.history) == 3
    expected = float64_score(module.encoder.cpu(), images(16, 3)).mean().item()
    assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.05)


class Sharded(Validated):
    def configure_model(self) -> None:
        for layer in self.encoder:
            if list(layer.parameters()):
                assert self.device_mesh is not None
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


@pytest.mark.parametrize("strategy", ["nccl", "model parallel"])
def test_strategies_of_lightning(tmp_path: pathlib.Path, strategy: str) -> None:
    callback = JepaScoreCallback(max_overhead=None, strict=True)
    chosen, module = {
        "nccl": (DDPStrategy(process_group_backend="nccl"), Validated()),
        "model parallel": (ModelParallelStrategy(), Sharded()),
    }[strategy]
    runner = trainer(tmp_path, [callback], accelerator="gpu", devices=1, strategy=chosen)
    runner.fit(module, loader(48, 2), loader(16, 3))
    assert callback.failures == 0
    assert len(callback.history) == 3
