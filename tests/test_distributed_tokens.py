"""Two processes share the images of patch tokens: the same numbers as one, in both."""

from __future__ import annotations

import datetime
import os
import pathlib
import socket
from typing import Any

import pytest
import timm
import torch
from helpers import images, off_the_start
from torch import distributed, multiprocessing, nn

from jepa_monitor import DensityMonitor, ScoreOptions


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=2)
    return off_the_start(made.double().eval(), seed)


def two_looks(shared: bool) -> dict[str, float]:
    """Tokens of a second look: similarities have drifted since the first."""
    monitor = DensityMonitor(
        images(21, 3),  # which two processes cannot halve
        insights=["tokens"],
        max_probe_samples=3,
        options=ScoreOptions("sketch", rows=1),
        distributed=shared,
    )
    monitor.evaluate(vit(1))
    report = monitor.evaluate(vit(0))
    assert report.failed == {}
    return {tag: value for tag, value in report.scalars.items() if tag.startswith("tokens/")}


def _process(rank: int, port: int, folder: pathlib.Path) -> None:
    torch.set_num_threads(1)
    settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ.update(settings, NODE_RANK="0", LOCAL_RANK=str(rank), RANK=str(rank))
    # Processes that wait for each other in vain are an error, not a test that never ends.
    patience = datetime.timedelta(seconds=120)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=patience)
    torch.save({shared: two_looks(shared) for shared in (True, False)}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_find_the_tokens_that_one_does(tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (port, tmp_path), nprocs=2)
    found: list[dict[bool, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    (first, alone), second = (found[0][True], found[0][False]), found[1][True]
    assert first == second
    assert first == pytest.approx(alone, abs=1e-9)
    assert len(alone) > 20
    assert alone["tokens/gram_drift_first"] > 0
