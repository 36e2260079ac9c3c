"""How often does noise in the measures ring the collapse alarm? On numbers alone: no encoder, under a second a run.

    python benchmarks/alarm_noise.py    # 100 runs of 500 looks for each correlation

Spread and share of directions vary about healthy levels (0.55 and 0.45) as stationary AR(1) noise of sd 0.5
on the logit scale, with a correlation of 0 to 0.9 from look to look; patience 20 looks. No alarm is right.
Beside it, runs that do collapse after 100 such looks, to a spread or a share that is stated: all alarms are
right, and the number of looks until they ring is what caution costs.
"""

from __future__ import annotations

import math
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _results import parser
from numpy.typing import NDArray

from jepa_monitor.monitor.alarm import CollapseAlarm, CollapseMeasures

CORRELATIONS = (0.0, 0.5, 0.7, 0.9)
LEVELS = np.array([0.2, -0.2])  # logits of spread and share
SD, POSSIBLE, PATIENCE, EVERY = 0.5, 60.0, 1000, 50
COLLAPSES = {"spread to 0.003": (-6.0, -0.2), "share to 0.05": (0.2, -3.0)}
AT, AFTER = 100, 100


def noise(looks: int, correlation: float, seed: int) -> NDArray[np.float64]:
    """Stationary AR(1), two of them, (looks, 2)."""
    generator = np.random.default_rng(seed)
    steps = generator.normal(0, SD * math.sqrt(1 - correlation**2), (looks, 2))
    values = [generator.normal(0, SD, 2)]
    for step in steps[1:]:
        values.append(correlation * values[-1] + step)
    return np.array(values)


def rings_at(logits: NDArray[np.float64]) -> tuple[int | None, int]:
    """The look at which the alarm rings, and how many returns of a loss were counted until the end."""
    alarm, rang, reading = CollapseAlarm(PATIENCE), None, None
    for look, (spread, share) in enumerate(1 / (1 + np.exp(-logits))):
        measures = CollapseMeasures(float(spread), POSSIBLE ** float(share), POSSIBLE, 512, 0)
        reading = alarm.update(EVERY * look, measures)
        if rang is None and reading.alarm:
            rang = look
    assert reading is not None
    return rang, reading.returns


def main() -> None:
    asked = parser(__doc__, out=False)
    asked.add_argument("--runs", type=int, default=100, help="for each row (default: %(default)s)")
    asked.add_argument(
        "--looks", type=int, default=500, help="of a healthy run (default: %(default)s)"
    )
    options = asked.parse_args()
    heads = ["correlation", f"of {options.runs} healthy runs ring", "tell of recurrent losses"]
    heads += [f"{name}: ring, median looks" for name in COLLAPSES]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for correlation in CORRELATIONS:
        healthy = [
            rings_at(noise(options.looks, correlation, seed) + LEVELS)
            for seed in range(options.runs)
        ]
        cells = [f"{correlation}", f"{sum(rang is not None for rang, _ in healthy)}"]
        cells.append(f"{sum(returns >= 2 for _, returns in healthy)}")
        for ends in COLLAPSES.values():
            delays = []
            for seed in range(options.runs // 5):
                logits = noise(AT + AFTER, correlation, 1000 + seed) + LEVELS
                logits[AT:] += np.array(ends) - LEVELS
                rang, _ = rings_at(logits)
                if rang is not None and rang >= AT:
                    delays.append(rang - AT)
            median = f", {statistics.median(delays):g}" if delays else ""
            cells.append(f"{len(delays)} of {options.runs // 5}{median}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
