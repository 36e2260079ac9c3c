"""What fell together with a collapse is named in the cause, and nothing that only varies."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.monitor.evidence import Fallen


def found_by(count: int, of: int = 128, tag: str = "views/retrieval") -> dict[str, float]:
    """So many of the images found their other view, with the exact interval."""
    interval = binomtest(count, of).proportion_ci(0.95, "exact")
    return {tag: count / of, f"{tag}_low": interval.low, f"{tag}_high": interval.high}


def embeddings(spread: float, seed: int) -> Tensor:
    z = torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))
    return spread * z + (1 - spread) * 6 * torch.eye(32)[0]


def test_the_cause_of_a_collapse_says_what_fell_with_it() -> None:
    alarm = CollapseAlarm(patience_steps=30)
    for look in range(6):
        reading = alarm.update(10 * look, embeddings(1.0, look), found_by(78))
    assert reading.cause is None
    for look in (6, 7):
        reading = alarm.update(10 * look, embeddings(0.01, look), found_by(4))
    assert reading.alarm
    assert reading.cause is not None
    assert "find each other less (views/retrieval 0.03, was 0.61)." in reading.cause.evidence
    assert reading.cause.evidence in reading.reason


def test_a_fall_without_a_collapse_is_not_told() -> None:
    alarm = CollapseAlarm()
    for look, count in enumerate((78, 78, 4)):
        reading = alarm.update(10 * look, embeddings(1.0, look), found_by(count))
    assert reading.cause is None
    assert "views/retrieval" not in reading.reason


def test_what_intervals_leave_open_is_not_said() -> None:
    fallen = Fallen()
    # Of 128, 78 and 60 have intervals that overlap; 78 and 40 do not.
    assert [fallen.update(found_by(count)) != "" for count in (78, 60, 78, 40)] == [
        False,
        False,
        False,
        True,
    ]
    assert fallen.update({"views/retrieval": 0.01}) == ""  # without an interval
    assert fallen.update({}) == ""


@pytest.mark.parametrize(("after", "said"), [(0.5, False), (0.1, True)])
def test_a_measure_without_an_interval_must_fall_beyond_the_noise_of_twenty_looks(
    after: float, said: bool
) -> None:
    tag = "tokens/rank_across_relative"
    generator = torch.Generator().manual_seed(0)
    values = 0.6 + 0.02 * torch.randn(30, generator=generator)
    fallen, short = Fallen(), Fallen()
    assert {fallen.update({tag: float(value)}) for value in values} == {""}
    sentence = fallen.update({tag: after})
    assert (f"{tag} {after:.2f}, was {float(values.max()):.2f}" in sentence) == said
    assert [short.update({tag: value}) for value in (0.6, 0.6, 0.05)] == ["", "", ""]


def test_a_resumed_run_remembers() -> None:
    first, second = Fallen(), Fallen()
    first.update({**found_by(100), "tokens/rank_across_relative": 0.5})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    assert second.update(found_by(10)) == first.update(found_by(10)) != ""
