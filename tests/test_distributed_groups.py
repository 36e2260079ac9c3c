"""Two processes share a comparison with another encoder, and groups: the same numbers as one, in both."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from helpers import images, in_two_processes, mlp
from torch import nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.encoders.pretrained import Generalist

COUNT = 61  # which two processes cannot halve


def cases(seed: int, first: int) -> list[dict[str, Any]]:
    """Images of patients, three each, of whom each has one class; a scanner is a text."""
    patient = torch.arange(COUNT) // 3
    pixels = images(COUNT, seed) + 0.3 * (patient % 2).view(-1, 1, 1, 1)
    return [
        {"image": x, "label": int(who) % 2, "patient": int(who) + first, "scanner": f"s{n % 3}"}
        for n, (x, who) in enumerate(zip(pixels, patient, strict=True))
    ]


def other(named: bool) -> nn.Module:
    if named:  # timm's smallest, which remembers what it has embedded
        return Generalist("timm/test_vit.r160_in1k", raw=False, pretrained=False)
    torch.manual_seed(5)
    return mlp(192, 4)


def two_looks(shared: bool, named: bool) -> list[dict[str, float]]:
    monitor = DensityMonitor(
        torch.utils.data.DataLoader(cases(3, 0), 16),  # type: ignore[arg-type]
        reference=torch.utils.data.DataLoader(cases(4, 12), 16),  # type: ignore[arg-type]
        ood={"dark": images(7, 5) / 3},
        max_probe_samples=3,
        polarity_samples=0,
        groups=["patient", "scanner"],
        insights=["generalist"],
        compare_with=other(named),
        options=ScoreOptions(precision="float64"),
        distributed=shared,
    )
    torch.manual_seed(0)
    encoder, found = mlp(192, 6), []
    for _ in range(2):
        report = monitor.evaluate(encoder)
        assert report.failed == {}
        told = ("groups/", "generalist/", "quality/")
        found.append({tag: x for tag, x in report.scalars.items() if tag.startswith(told)})
    return found


def looks_both_ways(rank: int, folder: pathlib.Path) -> dict[Any, list[dict[str, float]]]:
    del rank, folder
    ways = [(shared, named) for shared in (True, False) for named in (True, False)]
    return {way: two_looks(*way) for way in ways}


def test_two_processes_find_the_groups_and_the_gains_that_one_does(tmp_path: pathlib.Path) -> None:
    found = in_two_processes(looks_both_ways, tmp_path)
    for named in (True, False):
        first, second = (process[True, named] for process in found)
        assert first == second
        for look, alone in zip(first, found[0][False, named], strict=True):
            assert look == pytest.approx(alone, abs=1e-9)
        wanted = {"groups/scanner/leak", "groups/patient/shared", "generalist/knn_gain_low"}
        assert wanted | {"generalist/dark/auroc_gain"} <= first[0].keys()
