"""What does `jepa-monitor replay` say of runs that are over, and what is the checkpoint worth that it says to keep?

    python benchmarks/keep.py [--runs FILE]

It trains nothing: the runs are those that `collapse_zoo.py` has stored, small encoders of digits, healthy
and broken on purpose, looked at every 15 steps. The verdict is that of `close_run`, as `replay` takes it, on
looks that know nothing of training batches, as those of checkpoints do not. It is right of a healthy run
where it calls the run healthy, and of one that ends collapsed (k-NN accuracy 10 points under the healthy
median of its method) where it says collapse, at the end or at any time before. For each rule, how much k-NN accuracy (embeddings in
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

from _results import parser, table
from _zoo_rules import PATIENCE, Judge, Run, alarm_step, measures_of, readings
from collapse_zoo import RESULTS

from jepa_monitor.functional._intervals import clopper_pearson_interval
from jepa_monitor.monitor.alarm import CollapseAlarm
from jepa_monitor.monitor.closing import Closing, close_run
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


def closing_of(run: Run) -> Closing:
    """The verdict of a replay: of encoders, without training batches."""
    alarm, looks, cause = CollapseAlarm(PATIENCE), [], ""
    for step, found in zip(run["looks"]["step"], measures_of(run), strict=True):
        reading = alarm.update(int(step), found)
        if reading.alarm and not (looks and looks[-1]["collapse/alarm"]):
            cause = reading.reason
        looks.append({"step": step, **reading.scalars})
    return close_run(looks, cause)


def verdicts(judge: Judge) -> str:
    """How many verdicts of each kind there are, by what the runs are."""
    collapsed = [run for run in judge.broken if judge.ends_collapsed(run)]
    spared = [run for run in judge.broken if not judge.ends_collapsed(run)]
    groups = {
        "healthy": judge.healthy,
        "end collapsed": [run for run in collapsed if run["fault"] != "one image"],
        "end without use, on one image": [run for run in collapsed if run["fault"] == "one image"],
        "broken, accuracy kept": spared,
    }
    lines = table(
        "runs", "collapsed at the end", "too new to be an alarm", "collapsed, then healthy", "healthy",
        "right", "95 % interval",
    )  # fmt: skip
    for name, group in groups.items():
        found = [closing_of(run) for run in group]
        recovered = sum(bool(one.healthy and one.cause) for one in found)
        healthy = sum(one.healthy is True for one in found) - recovered
        kinds = [sum(one.healthy is state for one in found) for state in (False, None)]
        right = healthy if name == "healthy" else len(group) - healthy
        low, high = clopper_pearson_interval(right, len(group))
        known = [f"{right}/{len(group)}", f"{low:.2f} to {high:.2f}"]
        cells = [f"{name} ({len(group)})", *map(str, [*kinds, recovered, healthy])]
        lines.append("| " + " | ".join([*cells, *(known if group is not spared else "––")]) + " |")
    return "\n".join(lines)


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
    judge = Judge(json.loads(options.runs.read_text())["runs"])
    print(verdicts(judge), report(judge.runs), sep="\n\n")


if __name__ == "__main__":
    main()
