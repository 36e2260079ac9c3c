"""Insights where two processes look together: the same numbers in both, whatever each of them does."""

from __future__ import annotations

import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchmetrics
from helpers import images, in_two_processes, mlp
from torch import Tensor, distributed

from jepa_monitor import DensityMonitor
from jepa_monitor.insights import Gatherer, Insight, Look, Part


class Rank(Insight):
    """Differs between processes, as what draws random numbers would."""

    name = "rank"

    def scalars(self, look: Look) -> dict[str, float]:
        return {"rank/own": float(distributed.get_rank())}


class Fails(Insight):
    def __init__(self, rank: int) -> None:
        self.name, self.rank = f"fails{rank}", rank

    def scalars(self, look: Look) -> dict[str, float]:
        if distributed.get_rank() == self.rank:
            raise RuntimeError("no luck")
        return {f"{self.name}/x": 1.0}


@dataclass(frozen=True)
class Doubled(Part[Tensor]):
    """Fails in the second process only, while both share the work."""

    fails: bool

    def gather(self, at: Gatherer) -> Tensor:
        def work(part: Tensor) -> tuple[Tensor, ...]:
            if self.fails and distributed.get_rank() == 1:
                raise OSError("disk is gone")
            return (2 * part.flatten(1).sum(1),)

        return at.map(work, at.sources.images)[0]


class Double(Insight):
    def __init__(self, fails: bool) -> None:
        self.name, self.needs = f"double{fails}", (Doubled(fails),)

    def scalars(self, look: Look) -> dict[str, float]:
        return {f"{self.name}/sum": look[self.needs[0]].sum().item()}


def look_together(rank: int, folder: pathlib.Path) -> tuple[Any, ...]:
    del rank, folder
    torch.manual_seed(0)
    encoder = mlp(192)
    asked = [Rank(), Fails(0), Fails(1), Double(True), Double(False), torchmetrics.SumMetric()]
    asked += [torchmetrics.MetricCollection([torchmetrics.SumMetric()])]
    monitor = DensityMonitor(
        images(21), max_probe_samples=13, insights=asked, detectors=["jepa_score"], distributed=True
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = monitor.evaluate(encoder)
    ours = [str(one.message) for one in told if "DensityMonitor goes without" in str(one.message)]
    return report.scalars, report.failed, ours, encoder(images(21)).double().sum().item()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return in_two_processes(look_together, tmp_path_factory.mktemp("together"))


def test_both_have_the_first_ones_numbers(found: list[Any]) -> None:
    first, second = ({**scalars, "monitor/seconds": 0} for scalars, *_ in found)
    assert first == second
    assert first["rank/own"] == 0
    assert first["doubleFalse/sum"] == pytest.approx(2 * images(21).sum().item(), rel=1e-5)


def test_what_fails_in_one_is_left_out_in_both(found: list[Any]) -> None:
    for scalars, failed, _, _ in found:
        assert set(failed) == {"fails0", "fails1", "doubleTrue"}
        assert scalars["monitor/failed_insights"] == 3
        assert not [tag for tag in scalars if tag.startswith(("fails", "doubleTrue"))]
        assert "disk is gone" in failed["doubleTrue"]


def test_only_the_first_process_tells(found: list[Any]) -> None:
    assert [len(told) for _, _, told, _ in found] == [3, 0]


def test_a_metric_counts_each_embedding_once(found: list[Any]) -> None:
    scalars, _, _, expected = found[0]
    for name in ("SumMetric", "MetricCollection_SumMetric"):
        assert scalars[f"metrics/{name}"] == pytest.approx(expected, rel=1e-5)
