"""Insights of one's own: seen wherever the package's are, and no harm to the others if they fail."""

from __future__ import annotations

import json
import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from helpers import Tiny, images, loader, mlp, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.insights import Gatherer, Insight, Look, Panel, Part
from jepa_monitor.insights.dashboard import dashboard
from jepa_monitor.metrics import RankMe

CLOCK = "monitor/seconds"


@dataclass(frozen=True)
class Flipped(Part[Tensor]):
    """Embeddings of the probe seen in a mirror: a second view, which no monitor knows of."""

    def gather(self, at: Gatherer) -> Tensor:
        return at.embeddings(at.sources.images.flip(-1))


class Mirror(Insight):
    """How far a mirror moves the embeddings."""

    name = "mirror"
    needs = (Flipped(),)
    panels = (Panel("mirror", "how far a mirror moves", ("mirror/distance",)),)

    def scalars(self, look: Look) -> dict[str, float]:
        return {"mirror/distance": self._distances(look).mean().item()}

    def histograms(self, look: Look) -> dict[str, Tensor]:
        return {"mirror/distances": self._distances(look)}

    def figures(self, look: Look) -> dict[str, Figure]:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot(self._distances(look).sort().values.numpy())
        return {"mirror/sorted": figure}

    def _distances(self, look: Look) -> Tensor:
        return (look.probe.embeddings - look[Flipped()]).norm(dim=1)


def timeless(scalars: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in scalars.items() if tag != CLOCK}


def test_an_insight_with_a_part_of_its_own_is_in_the_report() -> None:
    data, encoder = images(20), mlp(192).eval()
    report = DensityMonitor(data, insights=[Mirror()]).evaluate(encoder)
    with torch.no_grad():
        expected = (encoder(data) - encoder(data.flip(-1))).norm(dim=1)
    assert report.scalars["mirror/distance"] == pytest.approx(expected.mean().item())
    torch.testing.assert_close(report.histograms["mirror/distances"], expected)
    assert "mirror/sorted" in report.figures()
    assert report.failed == {}


def test_an_insight_is_on_tensorboard_like_the_others(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(
        probe=images(20), insights=[Mirror()], name="run", max_overhead=None
    )
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, [callback], max_epochs=2, logger=logger).fit(Tiny(), loader())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    seen = [event.value for event in events.Scalars("run/mirror/distance")]
    assert seen == pytest.approx([look["run/mirror/distance"] for look in callback.history])
    assert len(seen) == 3
    assert "run/mirror/distances" in events.Tags()["histograms"]
    assert "run/mirror/sorted" in events.Tags()["images"]
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    pages = {page.title: page for page in layout.category}
    assert {"run/density", "run/mirror"} <= set(pages)
    (chart,) = pages["run/mirror"].chart
    assert list(chart.multiline.tag) == ["run/mirror/distance"]


def test_a_metric_of_torchmetrics_is_an_insight() -> None:
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    metric = RankMe(6)
    metric.update(torch.eye(6))
    before = metric.compute().item()
    moments = torchmetrics.MetricCollection({"a": torchmetrics.MeanMetric(), "b": RankMe(6)})
    monitor = DensityMonitor(data, insights=["neighbors", metric, moments])
    report = monitor.evaluate(torch.nn.Identity())
    singular = np.linalg.svd(data.double().numpy(), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    rank = np.exp(-(share * np.log(share)).sum())
    assert report.scalars["metrics/RankMe"] == pytest.approx(rank, rel=1e-6)
    assert report.scalars["metrics/MetricCollection_b"] == pytest.approx(rank, rel=1e-6)
    assert report.scalars["metrics/MetricCollection_a"] == pytest.approx(data.mean().item())
    assert metric.compute().item() == before  # it still holds the user's batches, and no others


class Raises(Insight):
    name = "raises"

    def scalars(self, look: Look) -> dict[str, float]:
        raise KeyError("no luck")


class Infinite(Insight):
    name = "infinite"

    def scalars(self, look: Look) -> dict[str, float]:
        return {"infinite/a": 1.0, "infinite/b": float("inf")}


class Thief(Insight):
    name = "thief"

    def scalars(self, look: Look) -> dict[str, float]:
        return {"jepa_score/mean": 0.0}


class Undeclared(Insight):
    name = "undeclared"

    def scalars(self, look: Look) -> dict[str, float]:
        return {"undeclared/x": look[Nothing()].mean().item()}


@dataclass(frozen=True)
class Nothing(Part[Tensor]):
    source = "captions"

    def gather(self, at: Gatherer) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Unlucky(Part[Tensor]):
    def gather(self, at: Gatherer) -> Tensor:
        raise OSError("disk is gone")


class Missing(Insight):
    name = "missing"
    needs = (Nothing(),)

    def scalars(self, look: Look) -> dict[str, float]:
        return {"missing/x": look[Nothing()].mean().item()}


class Ungathered(Insight):
    name = "ungathered"
    needs = (Unlucky(),)

    def scalars(self, look: Look) -> dict[str, float]:
        return {"ungathered/x": look[Unlucky()].mean().item()}


FAILING = {
    Raises: "KeyError: 'no luck'",
    Infinite: "'infinite/b' is inf: what cannot be computed must be absent",
    Thief: "the tag 'jepa_score/mean' is another insight's",
    Undeclared: "Nothing() was not gathered: name it in the insight's `needs`.",
    Missing: "it needs captions, which was not given",
    Ungathered: "OSError: disk is gone",
}


@pytest.mark.parametrize("kind", FAILING, ids=lambda kind: kind.name)
def test_a_failing_insight_is_counted_told_once_and_left_out(kind: type[Insight]) -> None:
    data, encoder = images(20), mlp(192)
    settings = {"reference": images(60, 2), "polarity_samples": 2}
    sound = DensityMonitor(data, insights=[Mirror()], **settings).evaluate(encoder).scalars
    monitor = DensityMonitor(data, insights=[kind(), Mirror()], **settings)
    with pytest.warns(UserWarning, match=f"DensityMonitor goes without '{kind.name}'"):
        report = monitor.evaluate(encoder)
    assert FAILING[kind] in report.failed[kind.name]
    assert report.scalars["monitor/failed_insights"] == 1
    assert timeless(report.scalars) == timeless(sound) | {"monitor/failed_insights": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = monitor.evaluate(encoder)
    assert again.scalars["monitor/failed_insights"] == 1


def test_a_strict_callback_raises_what_another_counts(tmp_path: pathlib.Path) -> None:
    settings = {"probe": images(20), "insights": [Raises()], "max_overhead": None}
    callback = JepaScoreCallback(**settings)
    with pytest.warns(UserWarning, match="goes without 'raises'"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Tiny(), loader())
    assert [look["monitor/failed_insights"] for look in callback.history] == [1, 1]
    assert callback.failures == 0
    strict = JepaScoreCallback(**settings, strict=True)
    with (
        pytest.warns(UserWarning, match="goes without"),
        pytest.raises(RuntimeError, match="insight 'raises' failed: KeyError: 'no luck'"),
    ):
        trainer(tmp_path, [strict], max_epochs=1).fit(Tiny(), loader())


def test_a_figure_that_cannot_be_drawn_leaves_the_others() -> None:
    class Blind(Mirror):
        name = "blind"

        def figures(self, look: Look) -> dict[str, Figure]:
            raise ValueError("no colours")

    report = DensityMonitor(images(20), insights=[Blind()]).evaluate(mlp(192))
    with pytest.warns(UserWarning, match="'blind' could not draw its figures: ValueError: no col"):
        assert "jepa_score/least_and_most_likely" in report.figures()


class Nameless(Insight):
    def scalars(self, look: Look) -> dict[str, float]:
        return {}


class Score(Nameless):
    name = "score"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ([Mirror], TypeError, "`insights` must hold objects, got the class Mirror"),
        ([3], TypeError, "`insights` must hold names, insights and torchmetrics metrics, got int"),
        ([Nameless()], ValueError, "`insights` must have names, got Nameless without one"),
        ([Mirror(), Mirror()], ValueError, "different names, got another 'mirror' .Mirror."),
        ([Score()], ValueError, "different names, got another 'score' .Score."),
        ([RankMe(3), RankMe(4)], ValueError, "different names, got another 'RankMe'"),
    ],
)
def test_wrong_insights_are_named(asked: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DensityMonitor(images(), insights=asked)


def test_equal_parts_are_gathered_once() -> None:
    gathered: list[str] = []

    @dataclass(frozen=True)
    class Counted(Flipped):
        axis: str

        def gather(self, at: Gatherer) -> Tensor:
            gathered.append(self.axis)
            return super().gather(at)

    class Asks(Insight):
        def __init__(self, name: str, axis: str) -> None:
            self.name, self.needs = name, (Counted(axis),)

        def scalars(self, look: Look) -> dict[str, float]:
            return {f"{self.name}/x": look[self.needs[0]].mean().item()}

    asked = [Asks("first", "x"), Asks("second", "x"), Asks("third", "y")]
    scalars = DensityMonitor(images(20), insights=asked).evaluate(mlp(192)).scalars
    assert gathered == ["x", "y"]
    assert scalars["first/x"] == scalars["second/x"]


def test_a_look_is_frozen_and_plain() -> None:
    look = DensityMonitor(images(20)).evaluate(mlp(192)).look
    with pytest.raises(AttributeError):
        look.probe = None  # type: ignore[misc]
    assert json.dumps(sorted(look.sets)) == '["probe"]'


class Charted(Insight):
    name = "charted"
    panels = (
        Panel("own", "a choice", ("own/(a|b)_relative", "own/c$"), healthy=("own/c", None)),
        Panel("collapse", "open", ("own/d[0-9]+$",)),
        Panel("own", "band", ("own/m", "own/l", "own/h"), band=True),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        return {}


def test_a_chart_of_tensorboard_has_one_line_beside_the_end_of_what_is_healthy() -> None:
    layout = dashboard([Charted()], "run/")
    assert list(layout) == ["run/collapse", "run/own"]  # what matters most comes first
    assert layout["run/collapse"] == {"open": ["Multiline", ["run/own/d[0-9]+$"]]}
    assert layout["run/own"] == {
        "a: a choice": ["Multiline", ["run/own/a_relative", "run/own/c$"]],
        "b: a choice": ["Multiline", ["run/own/b_relative", "run/own/c$"]],
        "band": ["Margin", ["run/own/m", "run/own/l", "run/own/h"]],
    }
    # A page that is empty at the first look stands behind those that are not.
    assert list(dashboard([Charted()], "run/", ["own/m"])) == ["run/own", "run/collapse"]
    assert list(dashboard([Charted()], "run/", ["own/m", "own/d1"])) == ["run/collapse", "run/own"]
