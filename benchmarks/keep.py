"""What is the checkpoint worth that `jepa_monitor.monitor.keep` says to keep?

    python benchmarks/keep.py [--runs FILE]

It trains nothing: the runs are those that `collapse_zoo.py` has stored, small encoders of digits, healthy
and broken on purpose, looked at every 15 steps. For each rule, how much k-NN accuracy (embeddings in
bfloat16) the look that it chooses has less than the best look of the same run: mean and largest over runs,
and how many are within 5 points, with a 95 % interval (Clopper-Pearson). The seeds are those that the
tables of `collapse_zoo.py` are of. One thing was chosen on them: that a look after an alarm is not trusted.

One thing these runs cannot show: an untrained MLP embeds digits of 8x8 pixels as well as a trained one, so
that a rule which keeps the first look of all loses nothing here. It would be useless where training matters.
"""

from __future__ import annotations

import json
import pathlib
import statistics

from _results import parser
from collapse_zoo import RESULTS, Judge, Run, alarm_step, readings, table

from jepa_monitor.functional._intervals import clopper_pearson_interval
from jepa_monitor.monitor.keep import which_to_keep

NEAR = 0.05


def looks_of(run: Run) -> list[dict[str, float]]:
    """The looks as a monitor logs them."""
    steps = run["looks"]["step"]
    return [{"step": s, **r.scalars} for s, r in zip(steps, readings(run), strict=True)]


def chosen(run: Run) -> dict[str, int | None]:
    """What each rule keeps, as a place in the run."""
    steps = run["looks"]["step"]
    kept = which_to_keep(looks_of(run)).step
    return {
        "`which_to_keep`": None if kept is None else steps.index(float(kept)),
        "the last": len(steps) - 1,
        "the first": 0,
    }


def lost(run: Run, place: int) -> float:
    accuracies = run["looks"]["half"]
    return max(accuracies) - accuracies[place]


def report(runs: list[Run]) -> str:
    groups = {
        "healthy": [run for run in runs if run["fault"] == "healthy"],
        "broken, alarm": [
            run for run in runs if run["fault"] != "healthy" and alarm_step(run)[0] is not None
        ],
        "broken, silent": [
            run for run in runs if run["fault"] != "healthy" and alarm_step(run)[0] is None
        ],
    }
    lines = table("runs", "rule", "lost, mean", "lost, most", "within 5 points", "95 % interval")
    for name, group in groups.items():
        for rule in chosen(group[0]):
            places = [(run, chosen(run)[rule]) for run in group]
            losses = [lost(run, place) for run, place in places if place is not None]
            near = sum(loss <= NEAR for loss in losses)
            low, high = clopper_pearson_interval(near, len(losses))
            cells = [
                f"{name} ({len(group)})", rule, f"{statistics.mean(losses):.3f}", f"{max(losses):.3f}",
                f"{near}/{len(losses)}", f"{low:.2f} to {high:.2f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--runs", type=pathlib.Path, default=RESULTS, help="of collapse_zoo.py")
    options = asked.parse_args()
    print(report(Judge(json.loads(options.runs.read_text())["runs"]).runs))


if __name__ == "__main__":
    main()
