"""What the closing table says, against the table that it is of."""

from __future__ import annotations

import io
import math

import pyarrow as pa
import pytest
from rich.console import Console
from scipy.stats import binomtest

from jepa_monitor.cli.closing import closing_table, facts
from jepa_monitor.cli.tables import with_info

SCORES = [float(value) for value in range(100, 0, -1)]
INFO = {
    "skipped": 2,
    "ignored": 3,
    "method": "exact, 8 rows",
    "reference": 100,
    "outlier_by": "mahalanobis",
    "outliers/mahalanobis": 0.07,
    "outliers/mahalanobis_low": 0.0,
    "outliers/mahalanobis_high": 0.06,
    "missing": {"combined": "for this reason"},
    "density/precondition": 1.0,
    "density/precondition_needed": 300.0,
    "density/normality_effect": 0.0012,
    "density/normality_p": 0.32,
    "density/polarity": 0.93,
    "density/polarity_low": 0.71,
    "density/polarity_high": 0.98,
}


def table(info: dict[str, object], scores: list[float | None] = SCORES) -> pa.Table:
    count = len(scores)
    columns = {
        "path": [f"{i:03d}.png" for i in range(count)],
        "label": ["cat" if i % 2 else None for i in range(count)],
        "jepa_score": pa.array(scores, pa.float64()),
        "combined": pa.nulls(count, pa.float64()),
        "q_value": [0.1 if i < 3 else 0.11 for i in range(count)],
        "outlier": [i < 7 for i in range(count)],
        "note": ["palette" if i < 4 else "" for i in range(count)],
    }
    return with_info(pa.table(columns), info)


def printed(scored: pa.Table) -> str:
    stream = io.StringIO()
    Console(width=100, file=stream).print(closing_table(scored, "jepa_score"))
    return stream.getvalue()


def test_every_fact() -> None:
    found = dict(facts(table(INFO), "jepa_score"))
    interval = binomtest(7, 100).proportion_ci(0.95, "exact")
    assert found == {
        "images scored": "100",
        "skipped": "2 could not be read",
        "not images by name": "3",
        "method": "exact, 8 rows, compared with 100 images",
        "ranked by": "jepa_score, for want of combined",
        "converted": "4, see `note`",
        "jepa_score: min, 5, 50, 95 %, max": "1.0, 6.0, 51.0, 95.0, 100.0",
        "outliers by mahalanobis": (
            f"7 = 7.0% (95 % interval {interval.low:.1%} to {interval.high:.1%})"
        ),
        "below the reference's 5 %": (
            "7.0%, NOT as usual (0.0% to 6.0% in 95 % of cases if nothing is wrong)"
        ),
        "listed, a tenth of them false": "3, see `q_value`",
        "no combined": "for this reason",
        "Gaussian embeddings": "yes (effect 0.001, p 0.3)",
        "polarity": ("93% score above their corrupted versions (95 % interval 71% to 98%)"),
    }


def test_bad_news_is_told() -> None:
    info = INFO | {"density/precondition": 0.0, "density/polarity_high": 0.31}
    found = dict(facts(table(info, [None, None, *SCORES]), "jepa_score"))
    assert found["jepa_score not finite"] == "2"
    assert found["Gaussian embeddings"].startswith("no (")
    assert found["polarity"].endswith(": INVERTED")


def test_what_cannot_be_said_is_not_said() -> None:
    info = {name: value for name, value in INFO.items() if name != "density/precondition"}
    found = dict(facts(table(info | {"density/polarity_low": 0.3}), "jepa_score"))
    assert found["Gaussian embeddings"].startswith("cannot be said: it takes 300 images")
    assert found["polarity"].endswith(": not known")


def test_a_void_law_is_named_and_what_nothing_tells_is_no_share() -> None:
    info = INFO | {"void": "too few", "left_out": ["log_density", "mahalanobis"]}
    scored = table(info).drop_columns(["outlier"])
    scored = scored.append_column("outlier", pa.nulls(100, pa.bool_()))
    found = dict(facts(scored, "jepa_score"))
    assert found["outliers by mahalanobis"] == "cannot be said of 100 images"
    assert found["normal law"] == "void: too few; no log_density, mahalanobis"


def test_the_ten_least_likely_come_last_and_in_order() -> None:
    scores: list[float | None] = [None, *SCORES]
    text = printed(table(INFO, scores))
    listed = [line.split() for line in text[text.index("least likely") :].splitlines()]
    names = [word for line in listed for word in line if word.endswith(".png")]
    assert names == [f"{i:03d}.png" for i in range(100, 90, -1)]
    assert "│ 100.png      │ 1.0" in text


@pytest.mark.parametrize("info", [{}, INFO])
def test_names_do_not_break_the_table(info: dict[str, object]) -> None:
    columns = {
        "path": ["line\nbreak.png", "[red]markup[/red].png"],
        "label": ["[bold]", None],
        "jepa_score": [math.pi, 1.0],
    }
    text = printed(with_info(pa.table(columns), info))
    for shown in ("line\\nbreak.png", "[red]markup[/red].png", "[bold]", "3.1"):
        assert shown in text
