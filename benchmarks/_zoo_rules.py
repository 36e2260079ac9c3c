"""The rules of `collapse_zoo.py`, replayed on stored looks: when each of them speaks, and whether that is right."""

from __future__ import annotations

import math
import statistics
from typing import Any

from _zoo import STEPS

from jepa_monitor.monitor.alarm import AlarmReading, CollapseAlarm, CollapseMeasures

EVERY = 15
PATIENCE = STEPS // 10
# Seeds for (healthy runs, broken runs): those that chose the constants, those that are reported.
TUNING, REPORTED = ((100, 0, 1, 2, 3, 4), (100, 0, 1)), ((10, 11, 12, 13, 14), (10, 11))
LOSS_LOW, LOSS_HIGH = 0.02, 3.0

# What the literature leads one to expect; where it leaves it open, both kinds count as right.
EITHER = ("dimensional", "complete")
REPEATS = "images repeat"
EXPECTED: dict[str, tuple[str, ...]] = {
    "no covariance term": ("dimensional",),
    "learning rate × 100": EITHER,
    "one image": (REPEATS,),
    "nothing masked": EITHER,
}

Run = dict[str, Any]


def measures_of(run: Run) -> list[CollapseMeasures]:
    looks = run["looks"]
    triples = zip(looks["spread"], looks["directions"], looks["possible"], strict=True)
    return [CollapseMeasures(*triple, samples=512, nonfinite=0) for triple in triples]


_READ: dict[tuple[Any, ...], list[AlarmReading]] = {}


def readings(run: Run, patience: int = PATIENCE) -> list[AlarmReading]:
    """What the alarm says at each look; replayed once."""
    key = (run["method"], run["fault"], run["seed"], patience)
    if key not in _READ:
        alarm = CollapseAlarm(patience)
        repeats = [
            {} if share is None else {"data/duplicates": share, "data/duplicates_low": share}
            for share in run["looks"]["duplicates"]
        ]
        looks = zip(run["looks"]["step"], measures_of(run), repeats, strict=True)
        _READ[key] = [alarm.update(int(step), *found) for step, *found in looks]
    return _READ[key]


def state_step(run: Run) -> int | None:
    return next((reading.since_step for reading in readings(run) if reading.state), None)


def alarm_step(run: Run, patience: int = PATIENCE) -> tuple[int | None, str]:
    """Where the alarm rings, and what it names: a state, or images that repeat."""
    for step, reading in zip(run["looks"]["step"], readings(run, patience), strict=True):
        if reading.alarm:
            repeats = (
                reading.cause is not None and reading.cause.name == "the training images repeat"
            )
            return int(step), REPEATS if repeats else reading.state.name.lower()
    return None, "–"


def loss_step(run: Run) -> int | None:
    steps = run["looks"]["step"]
    losses = [math.nan if loss is None else loss for loss in run["looks"]["loss"]]
    reference, lowest = losses[steps.index(2 * EVERY)], math.inf
    for step, loss in zip(steps[2:], losses[2:], strict=True):
        lowest = min(lowest, loss)
        if not math.isfinite(loss) or loss < LOSS_LOW * reference or loss > LOSS_HIGH * lowest:
            return int(step)
    return None


def threshold_step(run: Run, name: str, threshold: float) -> int | None:
    below = [not value >= threshold for value in run["looks"][name]]
    for step, before, now in zip(run["looks"]["step"][1:], below[:-1], below[1:], strict=True):
        if before and now:
            return int(step)
    return None


def final(run: Run, name: str = "half") -> float:
    return statistics.mean(run["looks"][name][-3:])


class Judge:
    """All rules on all runs."""

    def __init__(self, runs: list[Run]) -> None:
        self.tuning = [run for run in runs if run["seed"] in TUNING[0]]
        self.runs = [run for run in runs if run["seed"] in REPORTED[0]]
        self.healthy = [run for run in self.runs if run["fault"] == "healthy"]
        self.broken = [run for run in self.runs if run["fault"] != "healthy"]
        self.level = {
            method: statistics.median(final(r) for r in self.healthy if r["method"] == method)
            for method in sorted({run["method"] for run in self.healthy})
        }
        tuned = [run for run in self.tuning if run["fault"] == "healthy"]
        self.thresholds = {
            name: 0.9 * min(min(run["looks"][name]) for run in tuned) for name in ("rankme", "std")
        }
        self.rules = {
            f"alarm, patience {PATIENCE}": lambda run: alarm_step(run)[0],
            f"alarm, patience {PATIENCE // 2}": lambda run: alarm_step(run, PATIENCE // 2)[0],
            f"alarm, patience {4 * PATIENCE}": lambda run: alarm_step(run, 4 * PATIENCE)[0],
            "state alone": state_step,
            "loss": loss_step,
            "RankMe": lambda run: threshold_step(run, "rankme", self.thresholds["rankme"]),
            "std": lambda run: threshold_step(run, "std", self.thresholds["std"]),
        }

    def ends_collapsed(self, run: Run) -> bool:
        """Whether much of the accuracy is gone in the end."""
        return final(run) < self.level[run["method"]] - 0.1

    def half_lost(self, run: Run) -> int | None:
        """Where the accuracy falls under the middle between healthy and chance."""
        middle = (self.level[run["method"]] + 0.1) / 2
        pairs = zip(run["looks"]["step"], run["looks"]["half"], strict=True)
        return next((int(step) for step, accuracy in pairs if accuracy < middle), None)

    def right_kind(self, run: Run) -> bool:
        """Whether what the alarm names is what was expected."""
        expected = EXPECTED.get(run["fault"], ("complete",))
        return alarm_step(run)[1] in expected

    def in_time(self, run: Run, step: int | None) -> bool:
        """Whether a rule spoke before half was lost."""
        lost = self.half_lost(run)
        return step is not None and (lost is None or step < lost)
