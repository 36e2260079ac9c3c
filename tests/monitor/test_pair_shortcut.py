"""The alarm of the shortcut, on series of which the answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa_monitor.insights import default_insights
from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.monitor.cause import find_cause
from jepa_monitor.monitor.pair_shortcut import follow_pairs
from jepa_monitor.monitor.verdict import judge

HEALTHY = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def look(aligned: float, common: float, gap: float, error: float = 0.01) -> dict[str, float]:
    return {
        "text/aligned": aligned,
        "text/common_share": common,
        "text/pair_gap": gap,
        "text/pair_gap_error": error,
    }


def told(*looks: dict[str, float]) -> list[float]:
    memory: dict[str, Any] = {}
    return [follow_pairs(memory, step, seen)["text/shortcut"] for step, seen in enumerate(looks)]


START = look(0.5, 0.4, 0.02)


@pytest.mark.parametrize(
    ("end", "rings"),
    [
        (look(0.99, 0.98, 0.0), True),  # all texts are one point
        (look(0.99, 0.98, 0.06), True),  # 0.04 of 0.49
        (look(0.99, 0.98, 0.12), False),  # the gap has risen by a fifth of the fall
        (look(0.99, 0.98, 0.40, 0.50), True),  # by no more than chance
        (look(0.95, 0.5, 0.02), False),  # what all share has hardly risen
        (look(0.55, 0.98, 0.02), False),  # a decoder that becomes anisotropic: the loss has not fallen
        (look(0.90, 0.8, 0.75), False),  # pairs come together
        (look(-0.20, 0.3, -0.05), False),
    ],
)  # fmt: skip
def test_it_rings_where_the_loss_falls_by_what_all_share(end: dict[str, float], rings: bool) -> None:  # fmt: skip
    assert told(START, end, end) == [0, 0, float(rings)]


def test_two_looks_in_a_row_begin_and_end_it() -> None:
    bad, good = look(0.99, 0.98, 0.0), look(0.9, 0.8, 0.7)
    assert told(START, bad, good, bad, good) == [0] * 5
    assert told(START, bad, bad, good, bad, good, good) == [0, 0, 1, 1, 1, 1, 0]
    memory: dict[str, Any] = {}
    follow_pairs(memory, 0, START)
    assert [follow_pairs(memory, 5, bad)["text/shortcut"] for _ in range(4)] == [0] * 4  # one look
    assert follow_pairs(memory, 6, bad) == {
        "text/shortcut": 1, "text/aligned_first": 0.5, "text/pair_gap_first": 0.02,
    }  # fmt: skip
    assert follow_pairs(memory, 7, {"collapse/rankme": 3.0}) == {}


def test_a_pretrained_model_that_is_anisotropic_from_the_start_is_compared_with_itself() -> None:
    start = look(0.93, 0.92, 0.03)
    assert told(start, start, start) == [0, 0, 0]
    assert told(start, *[look(0.995, 0.994, 0.03)] * 2)[-1] == 1
    assert told(start, *[look(0.98, 0.93, 0.2)] * 2)[-1] == 0


def test_what_the_run_remembers_survives_a_checkpoint() -> None:
    bad, memory = look(0.99, 0.98, 0.0), dict[str, Any]()
    follow_pairs(memory, 0, START)
    follow_pairs(memory, 1, bad)
    kept = {"pairs": dict(memory["pairs"])}
    assert follow_pairs(kept, 2, bad) == follow_pairs(memory, 2, bad)
    assert kept == memory


def test_the_alarm_rings_names_the_cause_and_ends() -> None:
    alarm, memory = CollapseAlarm(), dict[str, Any]()
    bad, good = look(0.99, 0.98, 0.0), look(0.9, 0.8, 0.7)
    readings = []
    for step, seen in enumerate((START, bad, bad, good, good)):
        readings.append(alarm.update(step, HEALTHY, {**seen, **follow_pairs(memory, step, seen)}))
    assert [reading.alarm for reading in readings] == [False, False, True, True, False]
    assert readings[2].state == 0
    assert readings[2].reason.startswith("Cause: a shortcut of the loss of pairs. Since the first")
    assert "0.50 to 0.99" in readings[2].reason
    assert "was 0.020 and is 0.000" in readings[2].reason
    assert readings[4].cause is None


def test_the_verdict_has_it() -> None:
    memory: dict[str, Any] = {}
    for step, seen in enumerate((START, *[look(0.99, 0.98, 0.0)] * 2)):
        scalars = {"collapse/state": 0.0, **seen, **follow_pairs(memory, step, seen)}
    verdict = judge(scalars, default_insights(8), step=2)
    assert verdict.alarming
    assert verdict.headline == "Not collapsed, but a shortcut of the loss of pairs"
    assert find_cause({**scalars, "text/shortcut": 0.0}) is None
