"""What every tag means: the rows of the insights, and of what the alarm and the callbacks add.

``python -m jepa_monitor.monitor.tags`` prints the table of ``docs/metrics.md``.
"""

from __future__ import annotations

import sys

from jepa_monitor.insights import Row
from jepa_monitor.insights.table import all_insights, render_table

__all__ = [
    "ADVICE_ROWS",
    "ALARM_ROWS",
    "DATA_ROWS",
    "MONITOR_ROWS",
    "SHORTCUT_ROWS",
    "all_rows",
]

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
        "1 once a collapse has outlasted `patience_steps`, or returned, or training images repeat, or the loss of "
        "pairs takes a shortcut (`text/shortcut`)",
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
    Row(
        ("text/shortcut", "text/aligned_first", "text/pair_gap_first"),
        "1 while the loss of pairs has fallen since the first look by what all texts share, at the second look in a row "
        "that finds it so; and then what `text/aligned` and `text/pair_gap` were at first",
        "0 or 1; as these",
        "0",
        "`text/aligned` and `text/common_share` up, `text/pair_gap` flat",
        "free",
        "[docs/text.md](text.md#pairs-of-texts)",
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
SHORTCUT_ROWS = (
    Row(
        ("shortcut/flip_rate", "shortcut/flip_rate_low", "shortcut/flip_rate_high"),
        "`ShortcutCallback`, of the worst candidate: share of held-out texts predicted to be of another class that are of "
        "the word's class once it stands in them, and the ends of its 95 % interval",
        "0 … 1",
        "`shortcut/control`",
        "1: the word is the class",
        "a pass with each text, with the word and with its control",
        "[docs/screen.md](screen.md#while-it-trains), `flip_rate`",
    ),
    Row(
        ("shortcut/control", "shortcut/control_low", "shortcut/control_high"),
        "the same of control words: for each text others, drawn at random, of as many tokens in the same place",
        "0 … 1",
        "low",
        "texts near the boundary, which any word turns",
        "the same passes",
    ),
    Row(
        ("shortcut/excess", "shortcut/excess_low", "shortcut/excess_high"),
        "`flip_rate` minus `control`, and the ends of its 95 % interval, of pairs",
        "\u22121 … 1",
        "0; for an honest word of the class more",
        "lower end above 0.2: an alarm, if the word was given or the screen calls it spurious",
        "free",
    ),
    Row(
        ("shortcut/texts",), "of how many texts these shares are; under 16 they are absent", "≥ 16"
    ),
    Row(("shortcut/alarm",), "1 while a word is a shortcut", "0 or 1", "0"),
    Row(
        ("shortcut/screen_z",),
        "how many standard deviations the candidate's texts of its class are above as many drawn at random",
        "any",
        "",
        "high values of honest words are usual",
        "once, before training",
        "[docs/screen.md](screen.md)",
    ),
    Row(
        (
            "shortcut/attention_entropy",
            "shortcut/attention_entropy_with_word",
            "shortcut/attention_entropy_with_control",
        ),
        "entropy of the weights that a token gives to all tokens, over log of their number; mean over layers, heads, tokens and "
        "16 texts: as they are, with the word, and with its control",
        "0 … 1",
        "with the word as with the control",
        "lower with the word: tokens look at it",
        "16 texts, each alone, three times",
    ),
    Row(
        ("shortcut/lora_top_share", "shortcut/lora_top_share_random"),
        "share of a LoRA update's squared norm in its first singular value, mean over updates; and that of random factors of "
        "these shapes",
        "1/r … 1",
        "none is known",
        "1: the update is one direction",
        "free",
        "`lora_top_share`",
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
    Row(
        tuple(
            f"monitor/shortcut_{what}" for what in ("seconds", "overhead", "failures", "skipped")
        ),
        "the same of `ShortcutCallback`",
        "≥ 0",
    ),
)


def all_rows() -> list[Row]:
    """Give the row of every tag that the package logs.

    Returns:
        The rows, in the order of the table.
    """
    rows = [row for insight in all_insights() for row in insight.rows]
    return [*rows, *ALARM_ROWS, *ADVICE_ROWS, *DATA_ROWS, *SHORTCUT_ROWS, *MONITOR_ROWS]


if __name__ == "__main__":
    sys.stdout.write(render_table(all_rows()))
