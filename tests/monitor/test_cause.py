"""Each planted fault is named, with the numbers that show it and what to look at first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.insights import default_insights
from jepa_monitor.insights.collapse import collapse_scalars
from jepa_monitor.monitor.alarm import AlarmReading, CollapseAlarm
from jepa_monitor.monitor.cause import _same_by_chance, find_cause
from jepa_monitor.monitor.verdict import judge

N, K = 256, 64


def cloud(rank: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(K, K, generator=generator))[0]
    z = torch.randn(N, rank, generator=generator) @ axes[:, :rank].T / math.sqrt(rank)
    return spread * z + math.sqrt(1 - spread**2) * axes[:, 0]


def points(count: int, width: float = 0.02) -> Tensor:
    """Tight clusters in directions of their own."""
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(count, (N,), generator=generator)
    axes = torch.linalg.qr(torch.randn(K, K, generator=generator))[0]
    return axes[which] + width * torch.randn(N, K, generator=generator) / math.sqrt(K)


def run(looks: Iterable[Tensor], patience: int = 100, **tags: float) -> list[AlarmReading]:
    alarm = CollapseAlarm(patience)
    more = {tag.replace("__", "/"): value for tag, value in tags.items()}
    return [alarm.update(10 * i, z, {**collapse_scalars(z), **more}) for i, z in enumerate(looks)]


HEALTHY = [cloud(K, seed) for seed in range(12)]


def test_a_healthy_run_has_no_cause() -> None:
    for reading in run(
        HEALTHY, data__duplicates=0.01, data__duplicates_low=0.0, data__variety_high=0.5
    ):
        assert reading.cause is None
        assert not reading.alarm
    assert find_cause({}) is None


@pytest.mark.parametrize(
    ("broken", "name", "evidence", "first"),
    [
        (cloud(K, 1, 0.03), "complete collapse", r"point nearly the same way.*spread of 0\.0", "stop-grad"),
        (cloud(2, 2), "dimensional collapse", r"few directions.*use (1\.\d|2\.0) directions", "covariance"),
        (points(3), "cluster collapse", r"on about 3 points: 3\d%", "centring and sharpening"),
        (points(4), "cluster collapse", r"on about 4 points: 2\d%", "number of prototypes"),
        (torch.full((N, K), math.nan), "embeddings that are not finite", "NaN or infinity", "learning rate"),
    ],
    ids=["complete", "dimensional", "three clusters", "four clusters", "not finite"],
)  # fmt: skip
def test_a_collapse_of_a_healthy_run(broken: Tensor, name: str, evidence: str, first: str) -> None:
    readings = run([*HEALTHY, broken, broken])
    assert not any(reading.alarm for reading in readings[:-1])
    last = readings[-1]
    assert last.alarm
    assert last.cause is not None
    assert last.cause.name == name
    assert last.cause.red
    assert re.search(evidence, last.cause.evidence)
    assert first in last.cause.first
    assert last.cause.first.startswith("Look first at")
    assert last.reason.startswith(f"Cause: {name}.")


def test_a_line_and_a_plane_are_no_clusters_and_one_large_embedding_makes_none() -> None:
    for rank in (1, 2, 3):
        assert run([*HEALTHY, cloud(rank), cloud(rank)])[-1].cause.name == "dimensional collapse"  # type: ignore[union-attr]
    large = cloud(K)
    large[0] *= 1e4
    assert collapse_scalars(large)["collapse/same_pairs"] == 0


@pytest.mark.parametrize("rank", [1.0, 2.0, 5.0])
def test_pairs_that_are_the_same_by_chance_follow_the_chi_square_law(rank: float) -> None:
    assert _same_by_chance(rank) == pytest.approx(stats.chi2.cdf(0.01 * rank, rank), rel=1e-9)


def test_a_collapse_before_the_first_step_is_not_trainings_doing() -> None:
    readings = run([cloud(2)] * 12)
    assert all(reading.from_start for reading in readings)
    assert [reading.alarm for reading in readings].index(True) == 10  # after the patience, as ever
    cause = readings[0].cause
    assert cause is not None
    assert cause.name == "dimensional collapse since the start"
    assert "as it was built" in cause.first
    later = run([*HEALTHY[:1], *[cloud(2)] * 3])[-1]
    assert not later.from_start
    assert "since the start" not in later.cause.name  # type: ignore[union-attr]


def test_an_early_phase_is_amber_and_knows_of_the_target() -> None:
    phase = [HEALTHY[0], cloud(K, 3, 0.03), cloud(K, 4, 0.03)]
    for tags, words in (
        ({}, "spread"),
        ({"ema__functional_lag": 0.004}, "trails the encoder by 0.004"),
    ):
        last = run(phase, 1000, **tags)[-1]
        assert not last.alarm
        assert last.cause is not None
        assert not last.cause.red
        assert last.cause.name.startswith("perhaps an early phase")
        assert words in last.cause.evidence
        assert "momentum" in last.cause.first
        assert "No alarm yet: for 10 steps of 1000" in last.reason
    recovered = run([*phase, *HEALTHY], 1000)
    assert recovered[-1].cause is None
    assert not any(reading.alarm for reading in recovered)


def waves(periods: int, deep: Tensor) -> list[Tensor]:
    return [z for _ in range(periods) for z in (*HEALTHY, *HEALTHY, *[deep] * 4)]


def test_a_partial_collapse_that_comes_back_is_named() -> None:
    readings = run(waves(4, cloud(20)), 10_000)
    assert all(reading.state == 0 for reading in readings)  # never deep enough for a state
    assert not any(reading.alarm for reading in readings)
    assert [reading.returns for reading in readings][-1] == 3
    assert readings[-1].return_steps == 280
    named = [reading.cause.name if reading.cause else "" for reading in readings]
    first = named.index("recurrent partial collapse")
    assert first == 2 * 28 + 25  # at the second look of the third loss
    cause = readings[-1].cause
    assert cause is not None
    assert "3 times after the first, every 280 steps" in cause.evidence
    assert "learning rate and the momentum of the EMA" in cause.first
    assert not cause.red
    deep = run(waves(4, cloud(2)), 10_000)[-1]
    assert deep.alarm
    assert deep.cause is not None
    assert deep.cause.name == "recurrent collapse"


def test_a_spread_that_comes_and_goes_is_named_although_no_direction_is_lost() -> None:
    readings = run(waves(4, cloud(K, 0, 0.3)), 10_000)
    assert all(reading.state == 0 for reading in readings)
    assert readings[-1].returns == 3
    assert readings[-1].return_steps == 280
    cause = readings[-1].cause
    assert cause is not None
    assert cause.name == "recurrent partial collapse"
    assert "Directions or spread have been lost" in cause.evidence


def test_returns_are_taken_up_and_a_state_of_before_is_none() -> None:
    looks = waves(4, cloud(K, 0, 0.3))
    whole, second = CollapseAlarm(10_000), CollapseAlarm(10_000)
    for i, z in enumerate(looks):
        if i == 61:  # inside of the third fall
            saved = whole.state_dict()
            second.load_state_dict(saved)
        if i >= 61:
            second.update(10 * i, z)
        whole.update(10 * i, z)
    assert second.state_dict() == whole.state_dict()
    old = CollapseAlarm(10_000)
    old.load_state_dict({**whole.state_dict(), "returns": whole.state_dict()["returns"][0]})
    assert old.update(10 * len(looks), looks[0]).returns == 0


def test_a_slow_decline_a_single_loss_and_noise_are_no_returns() -> None:
    decline = run([cloud(rank) for rank in range(64, 10, -2)], 10_000)
    assert decline[-1].returns == 0
    assert decline[-1].lost > 0.7
    assert (
        run([*HEALTHY, cloud(20), *HEALTHY, cloud(20), *HEALTHY])[-1].returns == 0
    )  # single looks
    once = run([*HEALTHY, *[cloud(20)] * 4, *HEALTHY])
    assert once[-1].returns == 0


@pytest.mark.parametrize(("low", "named"), [(1.0, True), (0.6, True), (0.4, False)])
def test_images_that_repeat_come_before_what_the_embeddings_are_like(
    low: float, named: bool
) -> None:
    tags = {"data__duplicates": 1.0, "data__duplicates_low": low}
    readings = run(HEALTHY[:3], **tags)
    assert [reading.alarm for reading in readings] == [False, named, named]
    if named:
        assert readings[-1].cause is not None
        assert readings[-1].cause.name == "the training images repeat"
        assert readings[-1].reason.startswith(
            "Cause: the training images repeat. 100% of the pairs"
        )
    collapsed = run([*HEALTHY, cloud(K, 0, 0.03), cloud(K, 0, 0.03)], **tags)[-1].cause
    assert collapsed is not None
    assert (collapsed.name == "the training images repeat") == named


def test_the_alarm_about_repeated_images_ends_with_them() -> None:
    alarm = CollapseAlarm()
    found = []
    for step, low in enumerate((1.0, 1.0, None, 0.0, 1.0)):
        seen = {} if low is None else {"data/duplicates": low, "data/duplicates_low": low}
        found.append(alarm.update(step, HEALTHY[0], seen).alarm)
    assert found == [False, True, True, False, False]  # a look without batches changes nothing
    again = CollapseAlarm()
    seen = {"data/duplicates": 1.0, "data/duplicates_low": 1.0}
    assert not any(again.update(5, HEALTHY[0], seen).alarm for _ in range(3))  # one step, one look


def test_views_that_have_nothing_in_common_are_amber() -> None:
    cause = find_cause({"collapse/state": 0.0, "data/variety": -0.01, "data/variety_high": 0.05})
    assert cause is not None
    assert not cause.red
    assert "0% is between images, at most 5%" in cause.evidence
    assert (
        find_cause({"collapse/state": 0.0, "data/variety": 0.05, "data/variety_high": 0.15}) is None
    )


def test_the_verdict_has_the_cause() -> None:
    scalars = {"collapse/state": 0.0, "data/duplicates": 1.0, "data/duplicates_low": 1.0}
    verdict = judge(scalars, default_insights(8), step=10)
    assert verdict.alarming
    assert verdict.headline == "Not collapsed, but the training images repeat"
    assert verdict.cause is not None
    assert verdict.sentences[:2] == (verdict.cause.evidence, verdict.cause.first)
    assert judge({"collapse/state": 0.0}, [], step=10).cause is None


def test_a_report_names_the_cause() -> None:
    monitor = DensityMonitor(points(3), max_probe_samples=4, polarity_samples=0)
    report = monitor.evaluate(nn.Identity())
    assert report.verdict.cause is not None
    assert report.verdict.cause.name == "cluster collapse"
    assert report.verdict.headline == "Dimensional collapse: cluster collapse"
