"""The verdict on a run that is over, on courses that are known."""

from __future__ import annotations

import pytest

from jepa_monitor.monitor.closing import close_run


def run(states: str, alarms: str) -> list[dict[str, float]]:
    """Looks every 10 steps, with the steps since the state last changed."""
    looks, since = [], 0
    for n, (state, alarm) in enumerate(zip(states, alarms, strict=True)):
        since = n if n and states[n - 1] != state else since
        values = {
            "state": float(state),
            "alarm": float(alarm),
            "steps_in_state": 10.0 * (n - since),
        }
        looks.append({"step": 10.0 * n, **{f"collapse/{k}": v for k, v in values.items()}})
    return looks


@pytest.mark.parametrize(
    ("states", "alarms", "healthy", "since", "headline"),
    [
        ("00000", "00000", True, 0, "Healthy since step 0"),
        ("00222", "00001", False, 20, "Complete collapse, which began at step 20"),
        ("02111", "00001", False, 10, "Dimensional collapse, which began at step 10"),
        ("00011", "00000", None, 30, "Dimensional collapse since step 30, too new to be an alarm"),
        ("022000", "001100", True, 30, "Healthy since step 30; it had collapsed at step 10 and recovered"),
        ("02220", "00111", False, 10, "Collapse, healthy again at the last look, which began at step 10"),
        ("00000", "00111", False, 20, "Not collapsed, but an alarm, which was told at step 20"),
        ("00000", "01011", False, 30, "Not collapsed, but an alarm, which was told at step 30"),
    ],
)  # fmt: skip
def test_courses(states: str, alarms: str, healthy: bool | None, since: int, headline: str) -> None:
    found = close_run(run(states, alarms), "Why.")
    assert (found.healthy, found.since, found.headline) == (healthy, since, headline)
    assert (found.cause == "Why.") == ("1" in alarms)
    assert str(found).startswith(f"{headline}. ")


def test_nothing_is_said_of_what_was_not_told() -> None:
    found = close_run([{"step": 0.0, "jepa_score/mean": -3.0}])
    assert found.healthy is None
    assert found.since is None
    assert found.keep.step is None
    assert "cannot be told" in found.headline
    with pytest.raises(ValueError, match="in order"):
        close_run([{"step": 5.0}, {"step": 1.0}])
