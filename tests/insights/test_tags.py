"""Every tag that `evaluate` emits against a number of its own: NumPy, SciPy and scikit-learn in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import test_other_settings
from density_references import (
    of_contrast,
    of_generalisation,
    of_outliers,
    of_polarity,
    of_the_alignment,
    of_the_dark,
    of_the_jacobians,
    of_the_law,
)
from embedding_references import (
    of_collapse,
    of_lidar,
    of_the_average,
    of_the_classes,
    of_the_clusters,
    of_the_neighbours,
    of_the_quality,
    of_the_tasks,
    of_the_views,
)
from tag_cases import DARK, DATA, EPS, LABELS, SCORED, WIDTH, detected, encoder, quantiles

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.insights import INSIGHTS
from jepa_monitor.insights.table import all_insights, tag_pattern
from jepa_monitor.monitor.tags import MONITOR_ROWS

# test_token_health.py, test_layers_insight.py, test_mae_insight.py, test_attention_insight.py, test_text_pairs_insight.py,
# test_world_insight.py, test_groups_insight.py, test_generalist_insight.py
APART = (
    "tokens",
    "layers",
    "mae",
    "attention",
    "perception",
    "identifiability",
    "generalist",
    "groups",
    "text",
    "world",
)


@cache
def report() -> dict[str, float]:
    monitor = DensityMonitor(
        DATA["probe"],
        reference=DATA["reference"],
        ood={"dark": DATA["dark"]},
        max_probe_samples=SCORED,
        polarity_samples=8,
        options=ScoreOptions(method="exact", eps=EPS),
        insights=[name for name in INSIGHTS if name not in APART],
        labels=LABELS,
        compare_with=encoder(2),
        online=encoder(3),
    )
    monitor.evaluate(encoder(1))  # from which neighbours drift
    return monitor.evaluate(encoder(0)).scalars


def of_the_monitor() -> dict[str, float]:
    return {
        "monitor/images": 2 * SCORED + DARK,
        "monitor/nonfinite": 0,
        "monitor/random": 0,
        "monitor/failed_insights": 0,
    }


EXPECTED = (
    of_the_jacobians, of_the_alignment, of_the_law, of_generalisation, of_polarity, of_contrast, of_collapse,
    of_outliers, of_the_dark, of_the_neighbours, of_the_tasks, of_the_classes, of_the_quality, of_the_views, of_the_clusters, of_the_average, of_lidar, of_the_monitor,
    lambda: quantiles("log_density", detected("probe")["log_density"]),
)  # fmt: skip
# The null mean has four digits, the spread is simulated, the p-value is exact only here.
ROUGH = {
    "density/gaussianity_effect": 2e-3,
    "density/gaussianity_z": 0.35,
    "density/calibration_p": 0.02,
    # Pixels of 24 bits, of which the slope divides a difference by log 1.05.
    **dict.fromkeys(("contrast/kappa", "contrast/kappa_se", "contrast_free/std"), 1e-4),
}
CLOCKS = {"monitor/seconds"}


@cache
def numbers(expected: Any) -> dict[str, float]:
    return expected()


# Tags that only other settings have, and the tests that hold them to something.
ELSEWHERE = {
    "outliers/<detector>_fence": "test_fences_take_the_place_of_few_reference_scores",
    **{
        f"quality/few_shot_10{end}": "test_ten_shots_take_ten_images_of_each_class"
        for end in ("", "_low", "_high")
    },
    **{
        f"contrast/outliers{end}": "test_unusual_contrast_is_counted_on_both_sides"
        for end in ("", "_low", "_high")
    },
    **{
        f"dimension/{name}{end}": "test_dimensions_are_those_of_the_embeddings_and_of_isotropic_ones"
        for name in ("mst", "mst_raw", "two_nn")
        for end in ("", "_low", "_high", "_isotropic")
    },
    "dimension/withheld": "test_dimensions_are_those_of_the_embeddings_and_of_isotropic_ones",
    "density/precondition": "test_the_precondition_is_met_by_normal_embeddings_alone",
} | {
    f"sketch/{kind}": "test_a_sketch_is_held_against_exact_scores"
    for kind in ("correlation", "correlation_low", "correlation_high", "error", "spread", "rows")
}


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda f: f.__name__)
def test_tag_is_what_it_says(expected: Any) -> None:
    for tag, value in numbers(expected).items():
        found = report()[tag]
        assert found == pytest.approx(float(value), rel=ROUGH.get(tag, 1e-6), abs=1e-9), tag


def test_no_tag_is_missing_from_these_tests() -> None:
    told = {tag for expected in EXPECTED for tag in numbers(expected)}
    assert told == set(report()) - CLOCKS
    rows = [row for insight in all_insights() if insight.name not in APART for row in insight.rows]
    counts = ("overhead", "seconds", "failures", "skipped")  # of those who decide when to look
    by_callback = {
        f"monitor/{kind}{count}" for kind in ("", "collapse_", "shortcut_") for count in counts
    }
    ours = {tag for row in (*rows, *MONITOR_ROWS) for tag in row.tags} - CLOCKS - by_callback
    untold = {tag for tag in ours if not any(tag_pattern(tag).fullmatch(t) for t in told)}
    assert untold == set(ELSEWHERE)
    assert all(hasattr(test_other_settings, name) for name in ELSEWHERE.values())


def test_values_are_not_at_a_symmetric_point() -> None:
    """A test that compares 0 with 0 holds for any code."""
    trivial = {tag for tag, value in report().items() if value in (0, 1)}
    assert trivial <= {
        "jepa_score/below_noise_floor", "monitor/nonfinite", "monitor/random",
        "monitor/failed_insights", "collapse/same_pairs", "density/polarity_noise",
        "density/polarity_blur", "density/polarity_shuffle", "contrast/share_low",
        *(t for t in report() if t.startswith(("outliers/", "ood/"))),
    }  # fmt: skip
    assert 0 < report()["jepa_score/clipped"] < WIDTH
