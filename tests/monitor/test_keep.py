"""Which checkpoint to keep: the rule on runs whose course is known, and in the alarm's own words."""

from __future__ import annotations

import itertools

import pytest
import torch

from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.monitor.keep import collapse_began, which_to_keep


def run(states: str, alarms: str = "", **more: float) -> list[dict[str, float]]:
    """Looks every 10 steps, a digit for each state and alarm; '-' where none could be told."""
    looks = []
    for n, (state, alarm) in enumerate(itertools.zip_longest(states, alarms, fillvalue="0")):
        look = {"step": 10.0 * n, "jepa_score/mean": -5.0}
        if state != "-":
            look |= {"collapse/state": float(state), "collapse/alarm": float(alarm), **more}
        looks.append(look)
    return looks


@pytest.mark.parametrize(
    ("states", "alarms", "step"),
    [
        ("00000", "00000", 40),  # healthy to the end
        ("00022", "00011", 20),  # the last before the collapse
        ("01100", "00000", 40),  # an early phase, recovered
        ("00111000", "00001100", 10),  # an alarm that ended: before it
        ("22220000", "00110000", 70),  # where nothing was healthy before it, after it
        ("001110", "000011", 10),  # a healthy look under an alarm is not trusted
        ("00101", "00000", 10),  # nor is a single one amid a collapse
        ("0110", "0000", 0),
        ("20", "00", None),
        ("2222", "0011", None),
        ("0-22", "0011", 0),
        ("----", "0000", None),
        ("0", "0", 0),
    ],
)
def test_the_last_healthy_look_without_an_alarm(states: str, alarms: str, step: int | None) -> None:
    assert which_to_keep(run(states, alarms)).step == step


def test_how_sure_is_said_and_no_more_than_is_known() -> None:
    healthy = which_to_keep(run("0000"))
    assert "only a task does" in healthy.sure
    broken = which_to_keep(run("00022", "00011"))
    assert "nothing was looked at until step 30" in broken.sure
    assert "no alarm yet" not in broken.sure
    assert "no alarm yet and may pass" in which_to_keep(run("00022")).sure
    assert "one look shows no course" in which_to_keep(run("0")).sure
    assert "2 looks show no course" in which_to_keep(run("00")).sure
    assert "at epoch 30" in which_to_keep(run("0000"), "epoch").why
    fading = which_to_keep(run("0000", **{"collapse/lost": 0.4}))
    assert "40% of the most directions" in fading.sure
    assert "directions" not in healthy.sure
    recovered = which_to_keep(run("00111000", "00001100"))
    assert recovered.sure.endswith("recovered since: the other one to try is at step 70.")
    assert "recovered" not in broken.sure
    nothing = which_to_keep([])
    assert (nothing.step, str(nothing)[:4]) == (None, "No c")
    for found in (healthy, broken, nothing):
        assert "accura" not in str(found)


def test_another_look_that_the_advice_prefers_is_named_beside() -> None:
    def advised(states: str, alarms: str, *quality: float) -> str:
        looks = run(states, alarms)
        for look, value in zip(looks, quality, strict=True):
            look["advice/quality"] = value
        return which_to_keep(looks).sure

    told = "advice/quality was highest at step 20 (0.41, here 0.38): try that one, too."
    assert advised("00000", "00000", 0.1, 0.2, 0.412, 0.3, 0.38).endswith(told)
    told = " advice/quality was at no look higher (0.4)."  # the later of equals
    assert advised("00000", "00000", 0.1, 0.2, 0.3, 0.4, 0.4).endswith(told)
    # Of a look under an alarm the advice does not count, however high it is.
    assert advised("00022", "00011", 0.1, 0.2, 0.3, 0.9, 0.9).endswith("at no look higher (0.3).")
    assert "highest at step 10" in advised("00022", "00011", 0.1, 0.4, 0.3, 0.9, 0.9)
    assert (
        "at epoch 10 (0.4, here 0.3)"
        in which_to_keep(
            [
                {**look, "advice/quality": q}
                for look, q in zip(run("000"), (0.1, 0.4, 0.3), strict=True)
            ],
            "epoch",
        ).sure
    )


def test_labels_tell_sound_looks_apart_where_they_can() -> None:
    def labelled(states: str, alarms: str, *knn: float, half: float = 0.03) -> str:
        looks = run(states, alarms)
        for look, value in zip(looks, knn, strict=True):
            ends = (("_low", value - half), ("", value), ("_high", value + half))
            look |= {f"quality/knn{end}": number for end, number in ends}
        return which_to_keep(looks).sure

    assert labelled("000", "000", 0.2, 0.3, 0.4).endswith(
        "By the labels at hand, quality/knn was at no look higher (0.40)."
    )
    better = "quality/knn was highest at step 10 (0.40, here 0.30): for classes like these, that one is better."
    assert labelled("000", "000", 0.2, 0.4, 0.3).endswith(better)
    vague = "at step 10 (0.40, here 0.30), by less than can be told from chance."
    assert labelled("000", "000", 0.2, 0.4, 0.3, half=0.06).endswith(vague)
    # Those of collapsed looks do not count, nor does a single look tell anything.
    assert "at step 10 (0.40, here 0.30)" in labelled("00022", "00011", 0.2, 0.4, 0.3, 0.9, 0.9)
    assert "labels" not in labelled("0222", "0111", 0.2, 0.4, 0.3, 0.1)


@pytest.mark.parametrize(
    ("states", "alarms", "began"),
    [
        ("0000", "0000", None),
        ("00222", "00011", 20),
        ("002022", "000001", 20),  # one healthy look does not end it
        ("0020022", "0000001", 50),  # two do
        ("12222", "00001", 0),
        ("0022200", "0001100", 20),  # over by now, but told
        ("0022", "0000", None),  # no alarm
    ],
)
def test_where_the_collapse_began(states: str, alarms: str, began: int | None) -> None:
    assert collapse_began(run(states, alarms)) == began


def test_the_collapse_is_the_one_that_the_alarm_counts() -> None:
    """An alarm says for how long the collapse at hand has lasted: that is where it began."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 16, generator=generator)
    narrow = wide[:, :1] @ torch.randn(1, 16, generator=generator)
    alarm, looks = CollapseAlarm(patience_steps=40), []
    for step, z in zip(
        range(0, 90, 10), [wide, wide, *[narrow] * 3, wide, *[narrow] * 3], strict=True
    ):
        reading = alarm.update(step, z)
        looks.append({"step": float(step), **reading.scalars})
        if reading.alarm:
            break
    assert reading.alarm
    assert (
        f"It has lasted {reading.since_step - 20 + reading.steps_in_state} steps" in reading.reason
    )
    assert collapse_began(looks) == 20
    assert [look["collapse/state"] for look in looks] == [0, 0, 1, 1, 1, 0, 1]
    assert which_to_keep(looks).step == 10


def test_looks_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="`looks` must be in order"):
        which_to_keep(run("000")[::-1])
    with pytest.raises(ValueError, match="`looks` must each have a `step`"):
        collapse_began([{"collapse/state": 0.0}])
