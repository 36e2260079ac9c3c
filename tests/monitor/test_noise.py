"""Noise in the measures is no collapse, and a collapse in noisy measures is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import seldom

from jepa_monitor.monitor.alarm import CollapseAlarm, CollapseMeasures
from jepa_monitor.monitor.noise import NoisyMeasure


def share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def autoregressive(looks: int, phi: float, sd: float, seed: int) -> np.ndarray:
    """Stationary AR(1), two of them, (looks, 2)."""
    generator = np.random.default_rng(seed)
    values = [generator.normal(0, sd, 2)]
    for _ in range(looks - 1):
        step = math.sqrt(1 - phi**2) * generator.normal(0, sd, 2)
        values.append(phi * values[-1] + step)
    return np.array(values)


def measures(spread: float, directions: float) -> CollapseMeasures:
    return CollapseMeasures(share(spread), 60 ** share(directions), 60.0, 512, 0)


@pytest.mark.parametrize("phi", [0.5, *seldom(0.0)])
def test_stationary_noise_rings_in_few_of_many_runs(phi: float) -> None:
    rang = 0
    for seed in range(20):
        alarm = CollapseAlarm(patience_steps=1000)
        looks = autoregressive(500, phi, 0.5, seed) + np.array(
            [0.2, -0.2]
        )  # as healthy runs: 0.55, 0.45
        rang += any(alarm.update(50 * i, measures(*x)).alarm for i, x in enumerate(looks))
    assert rang <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_collapse_in_noisy_measures_rings(seed: int) -> None:
    alarm = CollapseAlarm(patience_steps=1000)
    looks = autoregressive(120, 0.5, 0.2, seed) + np.array([0.2, -0.2])
    looks[60:] -= [6.0, 2.0]  # to a spread of 0.003
    readings = [alarm.update(50 * i, measures(*x)) for i, x in enumerate(looks)]
    assert not any(reading.alarm for reading in readings[:60])
    assert readings[61].alarm


def test_the_noise_is_that_of_the_logits_whatever_they_follow() -> None:
    generator = np.random.default_rng(0)
    for slope in (0.0, 0.02):
        measure = NoisyMeasure()
        for i in range(100):
            measure.update(share(-1 + slope * i + generator.normal(0, 0.3)))
        assert measure.noise == pytest.approx(0.3, rel=0.3)


def test_without_noise_or_with_few_looks_values_are_taken_as_they_are() -> None:
    steady, short = NoisyMeasure(), NoisyMeasure()
    for i in range(60):
        assert steady.update(share(-2 + 0.05 * i)) == pytest.approx(share(-2 + 0.05 * i))
    for value in (0.5, 0.2, 0.7, 0.4):
        assert short.update(value) == value
    assert short.level == 0.7


def test_a_share_of_the_directions_that_is_lost_is_told() -> None:
    alarm = CollapseAlarm()
    found = [
        alarm.update(i, CollapseMeasures(1.0, directions, 32.0, 512, 0)).lost
        for i, directions in enumerate((10.0, 19.0, 7.0, 0.0))
    ]
    assert found == pytest.approx([0.0, 0.0, 12 / 19, 1.0])


def test_a_measure_at_its_best_has_no_noise_and_its_fall_is_seen() -> None:
    alarm = CollapseAlarm(patience_steps=1000)
    generator = np.random.default_rng(3)
    for look in range(60):
        near_one = 1 + 0.005 * generator.normal(size=2)
        healthy = CollapseMeasures(near_one[0], 60 ** near_one[1], 60.0, 512, 0)
        assert not alarm.update(50 * look, healthy).alarm
    found = [
        alarm.update(50 * look, CollapseMeasures(0.05, 50.0, 60.0, 512, 0)) for look in (60, 61)
    ]
    assert [reading.alarm for reading in found] == [False, True]


@pytest.mark.parametrize("healthy", [6, 10, 15, 30, 60])
@pytest.mark.parametrize("to", [(-6.0, -3.0), (1.5, -2.5)], ids=["a point", "few directions"])
def test_a_collapse_is_no_noise_wherever_it_parts_the_looks(
    healthy: int, to: tuple[float, float]
) -> None:
    # Half of the looks before it and half after it: the second differences across it are most of all.
    generator = np.random.default_rng(healthy)
    alarm, noise = CollapseAlarm(patience_steps=1000), 0.02 * generator.normal(size=(120, 2))
    for look, varied in enumerate(noise):
        level = np.array(to if look >= healthy else (1.5, -0.2))
        reading = alarm.update(50 * look, measures(*(level + varied)))
        assert (reading.state > 0) == (look >= healthy)
    assert reading.alarm


def test_a_slow_fall_of_a_noisy_measure_is_told_after_twenty_looks_at_the_bottom() -> None:
    generator = np.random.default_rng(0)
    alarm = CollapseAlarm(patience_steps=1000)
    for look in range(90):
        fallen = min(1.0, max(0.0, (look - 10) / 10))
        level = np.array([1.5, -0.2]) * (1 - fallen) + np.array([-3.5, -3.0]) * fallen
        reading = alarm.update(50 * look, measures(*(level + 0.3 * generator.normal(size=2))))
        if look >= 40:
            assert reading.alarm
            assert reading.state > 0


def test_the_spread_and_rank_of_a_run_that_fell_at_its_eleventh_look() -> None:
    # DINO on digits, ten times the learning rate for 20 steps: it keeps 2.3 to 2.8 of 9 directions.
    alarm = CollapseAlarm(patience_steps=1000)
    before = [26.7, 23.0, 19.9, 17.5, 15.5, 13.5, 12.2, 11.0, 10.1, 9.6, 9.2]
    after = [2.5, 2.3, 2.3, 2.3, 2.4, 2.4, 2.4, 2.5, 2.5, 2.6, 2.6, 2.6, 2.6, 2.7, 2.7, 2.8]
    for look, directions in enumerate([*before, *after]):
        found = CollapseMeasures(0.6, directions, 106.0, 512, 0)
        assert alarm.update(50 * look, found).state == (look >= len(before))
