"""Two processes share the images of patch tokens: the same numbers as one, in both."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import timm
import torch
from helpers import images, in_two_processes, off_the_start
from torch import nn

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


def looks_both_ways(rank: int, folder: pathlib.Path) -> dict[bool, dict[str, float]]:
    del rank, folder
    return {shared: two_looks(shared) for shared in (True, False)}


def test_two_processes_find_the_tokens_that_one_does(tmp_path: pathlib.Path) -> None:
    found: list[dict[bool, Any]] = in_two_processes(looks_both_ways, tmp_path)
    (first, alone), second = (found[0][True], found[0][False]), found[1][True]
    assert first == second
    assert first == pytest.approx(alone, abs=1e-9)
    assert len(alone) > 20
    assert alone["tokens/gram_drift_first"] > 0
