"""What every tag means: the rows of the insights, and of what the alarm and the callbacks add.

``python -m jepa_monitor.monitor.tags`` prints the table of ``docs/metrics.md``.
"""

from __future__ import annotations

import sys

from jepa_monitor.insights import Row
from jepa_monitor.insights.table import all_insights, render_table

__all__ = ["ADVICE_ROWS", "ALARM_ROWS", "DATA_ROWS", "MONITOR_ROWS", "all_rows"]

ALARM_ROWS = (
    Row(
        ("collapse/state",),
        "0 healthy, 1 dimensional, 2 complete collapse, with hysteresis",
        "0, 1, 2",
        "0",
        "",
        "free",
        "[docs/collapse.md](collapse.md)",
    ),
    Row(
        ("collapse/steps_in_state",), "training steps since this state began", "≥ 0", "", "", "free"
    ),
    Row(
        ("collapse/alarm",),
        "1 once a collapse has outlasted `patience_steps`, or returned, or training images repeat",
        "0 or 1",
        "0",
        "",
        "free",
        "[docs/collapse.md](collapse.md)",
    ),
    Row(
        ("collapse/lost",),
        "share of the most directions (effective rank of unit embeddings) that the run has had and "
        "that is gone",
        "0 … 1",
        "low",
        "a loss of directions, also one short of a collapse",
        "free",
        "[docs/collapse.md](collapse.md)",
    ),
    Row(
        ("collapse/returns", "collapse/return_steps"),
        "how often three tenths of the directions, or of the spread, were lost again after they had been won "
        "back, and the mean number of steps from one such loss to the next (0 where there were none)",
        "≥ 0",
        "0",
        "a partial collapse that comes back every few thousand steps",
        "free",
        "[docs/collapse.md](collapse.md)",
    ),
    Row(
        ("collapse/from_start",),
        "1 while no look has found the encoder healthy: it was collapsed before training",
        "0 or 1",
        "0",
        "initial weights, the last layer, pooling, the normalisation of the probe",
        "free",
    ),
)
ADVICE_ROWS = (
    Row(
        ("advice/quality",),
        "which looks of a run are the better ones, without labels: `views/retrieval` averaged over the looks "
        "so far, with weights that fall by a third from each look to the one before",
        "0 … 1",
        "rising",
        "views of an image that find each other; no accuracy is promised",
        "free",
        "[docs/advice.md](advice.md)",
    ),
    Row(
        ("advice/best", "advice/step"),
        "the highest `advice/quality` so far, and the step of that look: what to keep, as far as is known",
        "0 … 1; ≥ 0",
        "`advice/step` is this step",
        "",
        "free",
        "[docs/advice.md](advice.md)",
    ),
)
DATA_ROWS = (
    Row(
        ("data/duplicates", "data/duplicates_low", "data/duplicates_high"),
        "share of pairs of training images of one batch that are nearly the same, since the last "
        "look, and the ends of its 95 % interval; one over it is the effective number of images",
        "0 … 1",
        "about one over the number of training images",
        "a loader that repeats images; an empty image in many places",
        "thumbnails of 256 images",
        "`duplicate_share`",
    ),
    Row(
        ("data/variety", "data/variety_low", "data/variety_high"),
        "where batches hold two views of each image: share of the variance of their pixels that is "
        "between images, not between views, and the ends of its 95 % interval",
        "about 0 … 1",
        "well above 0",
        "near 0: the loader repeats one image under augmentation, or augmentation leaves nothing",
        "the same",
        "`view_variety`",
    ),
)
MONITOR_ROWS = (
    Row(("monitor/seconds",), "duration of this evaluation", "> 0 s"),
    Row(
        ("monitor/overhead",),
        "share of the wall time since training began that went into evaluations",
        "0 … 1",
        "under `max_overhead`",
    ),
    Row(("monitor/images",), "images scored", "≥ 0"),
    Row(
        ("monitor/nonfinite",),
        "scores that are not finite, left out of all statistics",
        "≥ 0",
        "0",
        "NaN weights, infinite slopes",
    ),
    Row(
        ("monitor/random",),
        "how far a second pass, with another seed, moves the embeddings, relative to their length",
        "≥ 0",
        "0",
        "an encoder that masks, drops or samples at random in eval mode, or counts its passes: the "
        "numbers then hold for the seed that all looks share",
        "8 images, forward",
    ),
    Row(
        ("monitor/failed_insights",),
        "insights and detectors that failed at this evaluation and were left out",
        "≥ 0",
        "0",
        "the warning says why",
    ),
    Row(("monitor/failures",), "evaluations that failed", "≥ 0", "0", "the warning says why"),
    Row(
        ("monitor/skipped",),
        "evaluations that were due and put off to keep within `max_overhead`, which counts after a "
        "first minute of evaluations",
        "≥ 0",
    ),
    Row(
        tuple(
            f"monitor/collapse_{what}" for what in ("seconds", "overhead", "failures", "skipped")
        ),
        "the same of `CollapseCallback`",
        "≥ 0",
    ),
)


def all_rows() -> list[Row]:
    """Give the row of every tag that the package logs.

    Returns:
        The rows, in the order of the table.
    """
    rows = [row for insight in all_insights() for row in insight.rows]
    return [*rows, *ALARM_ROWS, *ADVICE_ROWS, *DATA_ROWS, *MONITOR_ROWS]


if __name__ == "__main__":
    sys.stdout.write(render_table(all_rows()))
