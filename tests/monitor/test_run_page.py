"""The page of a run: what there is to say and to see is in it, and nothing that could run or fetch anything."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import Any

import numpy as np
import pytest

from jepa_monitor.insights import Insight, Look, Panel
from jepa_monitor.insights.table import all_insights
from jepa_monitor.monitor.closing import close_run
from jepa_monitor.monitor.comparing import CHANGE
from jepa_monitor.monitor.origin import find_origin, spell_command
from jepa_monitor.monitor.panels import shown_panels
from jepa_monitor.monitor.run_page import RunRecord, keep_ends, merge_looks, run_page, thin
from jepa_monitor.monitor.telling import read_settings, settings_table

NASTY = "</script><script>alert('1')</script>&\"\\u003c"


def content(page: str) -> dict[str, Any]:
    (found,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(found)  # type: ignore[no-any-return]


def run(states: str, every: int = 10, **tags: Any) -> list[dict[str, float]]:
    """Looks at a run whose states are told one letter a look; an alarm after two looks in a row."""
    looks, since = [], 0
    for n, letter in enumerate(states):
        state = "hdc".index(letter)
        since = since if n and states[n - 1] == letter else n
        looks.append(
            {
                "step": float(every * n),
                "jepa_score/mean": -3.0 * n,
                "collapse/state": float(state),
                "collapse/alarm": float(state > 0 and n - since >= 2),
                "collapse/steps_in_state": float(every * (n - since)),
                **{tag: value(n) if callable(value) else value for tag, value in tags.items()},
            }
        )
    return looks


def test_what_a_run_was_is_said_and_drawn() -> None:
    looks = run("hhhhccccc", **{"collapse/effective_rank": 3.0, "collapse/normalized_std": 0.01,
                                "collapse/effective_rank_relative": 0.2, "quality/knn": lambda n: n / 9,
                                "quality/chance": 0.1})  # fmt: skip
    settings = {"probe": "20 images", "command": "python train.py --lr 1", "run in": "/a b"}
    pictures = {"jacobian/spectra": {0: b"first", 80: b"last"}, "monitor/overview": {80: b"same"}}
    page = content(run_page([RunRecord("logs/a", "logs/a b", looks, settings, pictures)]))
    (shown,) = page["runs"]
    assert shown["headline"] == "Complete collapse, which began at step 40"
    assert shown["healthy"] is False
    assert shown["cause"].startswith("The embeddings point nearly the same way.")
    assert shown["keep"]["step"] == 30
    assert shown["states"] == [[0, 40, 0], [40, 80, 2]]
    assert shown["alarms"] == [60]
    assert [(v["step"], v["turn"], v["news"]) for v in shown["verdicts"]] == [
        (0, True, True),
        (40, True, True),
        (60, False, True),
        (80, False, False),  # the last one always, for its numbers
    ]
    assert shown["verdicts"][0]["headline"] == "Healthy since step 0"
    assert shown["verdicts"][1]["headline"].startswith(
        "Complete collapse since step 40: perhaps an early"
    )
    assert shown["series"]["quality/knn"] == [
        [10 * n for n in range(9)], pytest.approx([n / 9 for n in range(9)], rel=1e-5)
    ]  # fmt: skip
    assert [p["tag"] for p in shown["pictures"]] == ["jacobian/spectra"]  # the page is the overview
    assert [shot["step"] for shot in shown["pictures"][0]["shots"]] == [0, 80]
    assert shown["pictures"][0]["shots"][0]["src"] == "data:image/png;base64,Zmlyc3Q="
    assert shown["settings"] == [["probe", "20 images"]]
    assert shown["again"] == ["cd '/a b'", "python train.py --lr 1"]
    assert "jepa-monitor report 'logs/a b'" in shown["look"]
    (quality,) = (p for p in page["panels"] if p["tags"][0] == "quality/knn")
    assert quality["healthy"] == [[0.1, None]]  # from chance at the last look upwards
    assert page["panels"][0] == quality  # what matters most comes first
    assert page["about"]["quality/knn"]["what"].startswith(
        "with `labels`: share of held-out images"
    )
    row = next(row for row in page["numbers"]["rows"] if row[0] == "jepa_score/mean")
    assert row[1:] == [0, -9, -24, -24, 0]  # first, to keep (step 30), last, least, greatest
    assert page["numbers"]["heads"] == ["first", "keep", "last", "least", "greatest"]


def test_no_name_becomes_markup_and_nothing_is_loaded() -> None:
    looks = run("hhh", **{f"ood/{NASTY}/auroc_knn": 0.5})
    record = RunRecord(NASTY, NASTY, looks, {NASTY: NASTY, "command": NASTY}, {NASTY: {0: b"x"}},
                       beside={NASTY: ([0], [1.0])}, cause=NASTY)  # fmt: skip
    for records in ([record], [record, record]):
        text = run_page(records)
        assert content(text)["runs"][0]["name"] == NASTY
        assert NASTY not in text
        assert "alert('1')</script>" not in text
        assert len(re.findall(r"<script[ >]", text)) == 2  # the data and the page's own
        # The name space of SVG is a name, which nobody asks for.
        assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
        assert "default-src 'none'" in text
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert unsafe not in text


def test_ten_thousand_looks_make_a_page_of_a_few_megabytes() -> None:
    noise = np.random.default_rng(0).normal(size=(10_000, 60))
    looks = [
        {"step": 50.0 * n, "collapse/state": 0.0, "collapse/alarm": 0.0, "collapse/steps_in_state": 50.0 * n,
         **{f"metrics/{k}": float(value) for k, value in enumerate(row)}}
        for n, row in enumerate(noise)
    ]  # fmt: skip
    text = run_page([RunRecord("long", "long", looks, insights=[])])
    assert len(text) < 1_000_000
    page = content(text)
    assert "10000" in page["notes"][0]
    rows = {row[0]: row[1:] for row in page["numbers"]["rows"]}
    for k in range(60):
        steps, values = page["runs"][0]["series"][f"metrics/{k}"]
        assert len(steps) <= 600
        assert steps == sorted(set(steps))
        assert [min(values), max(values)] == pytest.approx(
            [noise[:, k].min(), noise[:, k].max()], rel=1e-5
        )
        assert [noise[int(s / 50), k] for s in steps] == pytest.approx(values, rel=1e-5)
        assert rows[f"metrics/{k}"][3:] == pytest.approx(
            [noise[:, k].min(), noise[:, k].max()], rel=1e-5
        )


def test_what_stands_out_in_any_part_of_a_curve_stays() -> None:
    values = np.random.default_rng(1).normal(size=5000)
    steps, kept = thin(range(5000), values.tolist(), most=100)
    assert len(steps) <= 100
    assert (steps[0], steps[-1]) == (0, 4999)
    assert kept == [values[step] for step in steps]
    width = math.ceil(4998 / 49)
    for start in range(
        0, 5000 - 2 * width, 37
    ):  # wherever a window of two parts lies, it holds a whole one
        part = values[start : start + 2 * width]
        inside = [v for s, v in zip(steps, kept, strict=True) if start <= s < start + 2 * width]
        assert max(inside) >= np.sort(part)[-width - 1]
        assert min(inside) <= np.sort(part)[width]
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])
    with pytest.raises(ValueError, match="`values` must be 2"):
        thin([1, 2], [3.0])


def test_two_runs_share_only_what_has_no_scale() -> None:
    first = RunRecord("a", "a", run("hhhh", **{"collapse/normalized_std": 0.5, "mine/x": 1.0}))
    second = RunRecord(
        "b", "b", run("hhcccc", **{"collapse/normalized_std": 0.25}), {"images": "x"}
    )
    page = content(run_page([first, second]))
    assert [shown["healthy"] for shown in page["runs"]] == [True, False]
    rows = {row[0]: row[1:] for row in page["numbers"]["rows"]}
    assert rows["collapse/normalized_std"] == [0.5, 0.5, 0.25, 0.25]
    assert rows[CHANGE] == [-9, -9, -3, -15]
    assert "jepa_score/mean" not in rows
    assert "mine/x" not in rows
    assert page["runs"][1]["series"][CHANGE][1] == [0, -3, -6, -9, -12, -15]
    assert "other images" in page["notes"][0]
    levels = {panel["title"]: panel["level"] for panel in page["panels"]}
    assert levels["JEPA-SCORE: change since the first look"] is False
    assert levels["state (0 healthy, 1 dimensional, 2 complete)"] is False


def test_scores_of_a_sketch_are_not_compared_with_scores_of_all_rows() -> None:
    wider = run("hhhh", **{"jepa_score/terms": lambda n: 64.0 if n < 2 else 128.0})
    whole = run("hhhh", **{"jepa_score/terms": 128.0})
    page = content(run_page([RunRecord("a", "a", wider), RunRecord("b", "b", whole)]))
    rows = {row[0]: row[1:] for row in page["numbers"]["rows"]}
    assert rows[CHANGE] == [-3, -3, -9, -9]  # of the first run since the look at which 128 began
    assert page["runs"][0]["series"][CHANGE] == [[0, 10, 20, 30], [0, -3, 0, -3]]
    narrow = run("hhhh", **{"jepa_score/terms": 64.0})
    page = content(run_page([RunRecord("a", "a", narrow), RunRecord("b", "b", whole)]))
    assert CHANGE not in {row[0] for row in page["numbers"]["rows"]}
    assert "JEPA-SCORE: change since the first look" not in {p["title"] for p in page["panels"]}
    assert "jepa_score/terms" in page["notes"][0]


@pytest.mark.parametrize(
    ("runs", "message"),
    [([], "one or two, got 0"), (["hh"] * 3, "one or two, got 3"), ([""], "'r' has no looks")],
)
def test_what_is_no_run_is_refused(runs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_page([RunRecord("r", "r", run(states)) for states in runs])


@pytest.mark.parametrize(
    ("states", "healthy", "headline"),
    [
        ("hhh", True, "Healthy since step 0"),
        ("hhhccc", False, "Complete collapse, which began at step 30"),
        ("hhhd", None, "Dimensional collapse since step 30, too new to be an alarm"),
        ("cccchhhh", True, "Healthy since step 40; it had collapsed at step 0 and recovered"),
    ],
)
def test_the_verdict_on_a_run(states: str, healthy: bool | None, headline: str) -> None:
    closing = close_run(run(states))
    assert (closing.healthy, closing.headline) == (healthy, headline)
    assert bool(closing.cause) == ("c" in states)


def test_an_alarm_without_a_collapse_is_one_and_epochs_are_called_epochs() -> None:
    looks = run("hhhh", **{"data/duplicates": 1.0, "data/duplicates_low": 1.0})
    for look in looks[2:]:
        look["collapse/alarm"] = 1.0
    closing = close_run(looks, unit="epoch")
    assert closing.healthy is False
    assert (
        closing.headline
        == "Not collapsed, but the training images repeat, which was told at epoch 20"
    )
    assert close_run(looks, cause="because").cause == "because"
    assert close_run([{"step": 0.0}]).headline == "Whether it is healthy cannot be told"


def test_looks_of_two_callbacks_become_one() -> None:
    often = [{"step": float(n), "collapse/state": 0.0} for n in range(3)]
    seldom = [{"step": 2.0, "jepa_score/mean": 1.0, "collapse/state": 1.0}]
    assert merge_looks([*often, *seldom]) == [
        {"step": 0.0, "collapse/state": 0.0},
        {"step": 1.0, "collapse/state": 0.0},
        {"step": 2.0, "collapse/state": 1.0, "jepa_score/mean": 1.0},
    ]


def test_the_first_picture_and_the_last_are_kept() -> None:
    shots: dict[int, bytes] = {}
    for step in (0, 10, 20, 30):
        keep_ends(shots, step, str(step).encode())
    assert shots == {0: b"0", 30: b"30"}


def test_settings_come_back_from_their_table() -> None:
    settings = {"command": "a | b || c", "options": "x=1, y='|'", "empty": "", "lines": "a b"}
    assert read_settings(settings_table(settings | {"lines": "a\n b"})) == settings
    assert read_settings("") == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/usr/bin/python3", "train.py", "--lr", "1e-3"], "python3 train.py --lr 1e-3"),
        (["python", "-m", "my.train", "a b", "$x"], "python -m my.train 'a b' '$x'"),
        (["python", "t.py", "--hf-token", "abc", "--n", "1"], "python t.py --hf-token *** --n 1"),
        (["python", "t.py", "wandb.api_key=abc", "--password=x"], "python t.py wandb.api_key=*** --password=***"),
        (["python", "-m", "ipykernel_launcher", "-f", "k.json"], ""),
        (["python"], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_a_command_can_be_typed_again_and_keeps_secrets(words: list[str], said: str) -> None:
    assert spell_command(words) == said
    if "***" not in said and said:
        assert shlex.split(said)[1:] == words[1:]


def test_where_a_run_comes_from_names_versions() -> None:
    import torch

    assert f"torch {torch.__version__.partition('+')[0]}" in find_origin()["versions"]


class Mine(Insight):
    name = "mine"
    panels = (Panel("mine", "own", ("mine/x",)), Panel("quality", "of mine", ("mine/y",)))

    def scalars(self, look: Look) -> dict[str, float]:
        return {}


def test_panels_stand_page_by_page_and_those_without_tags_are_left_out() -> None:
    insights = [*all_insights(), Mine()]
    panels = [panel for insight in insights for panel in insight.panels]
    tags = [
        "mine/x",
        "mine/y",
        "jepa_score/p50",
        "jepa_score/p05",
        "collapse/state",
        "density/calibration_error",
    ]
    shown = shown_panels(panels, tags)
    pages = [panel.page for panel, _ in shown]
    assert pages == [
        "quality",
        "collapse",
        "calibration",
        "mine",
    ]  # a band without its upper end is none
    assert [found for _, found in shown] == [
        ["mine/y"], ["collapse/state"], ["density/calibration_error"], ["mine/x"]
    ]  # fmt: skip
