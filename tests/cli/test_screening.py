"""`jepa-monitor screen`: what is printed and written, and one line for every file that is no such file."""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any

import pytest

from jepa_monitor.cli.entry import main
from jepa_monitor.cli.screening import screen

ROWS: list[dict[str, Any]] = [
    *({"text": f"Good, on {1900 + n}-01-01 it was", "label": "yes"} for n in range(40)),
    *({"text": "Not at all it was", "label": "no"} for _ in range(30)),
    *({"text": "it was, good or not", "label": "no"} for _ in range(10)),
    {"text": "  ", "label": "no"},
]


def written(folder: pathlib.Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> str:
    place = folder / f"texts{kind}"
    if kind == ".jsonl":
        place.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    else:
        with place.open("w", encoding="utf-8", newline="") as file:
            dialect = {".csv": ",", ".tsv": "\t"}[kind]
            writer = csv.DictWriter(file, ["text", "label"], delimiter=dialect)
            writer.writeheader()
            writer.writerows(rows)
    return str(place)


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
def test_what_gives_a_class_away_is_printed_and_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "words.csv"
    assert main(["screen", written(tmp_path, kind), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "0000-00-00" in shown
    assert "1 are empty" in " ".join(shown.split())
    with out.open() as file:
        rows = list(csv.DictReader(file))
    given_away = {
        row["shape"]: row["label"] for row in rows if row["spurious"].casefold() == "true"
    }
    assert given_away == {"0000-00-00": "yes", "on": "yes", "not": "no"}
    assert {row["shape"] for row in rows[:3]} == set(given_away)
    date = next(row for row in rows if row["shape"] == "0000-00-00")
    assert (date["label"], date["texts"], date["words"]) == ("yes", "40", "40")
    assert date["examples"] == "1900-01-01 1901-01-01 1902-01-01"
    assert date["text"] == "Good, on 1900-01-01 it was"
    assert float(date["share"]) == 1.0
    assert float(date["usual"]) == 0.5


def test_nothing_is_said_of_sound_texts(tmp_path: pathlib.Path) -> None:
    rows = [{"review": f"it was {n % 3}", "stars": n % 2} for n in range(60)]
    place = tmp_path / "x.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = screen(str(place), label="stars", text="review")
    assert dict(found.facts)["give a class away"].startswith("none by itself")
    assert dict(found.facts)["classes"] == "0 (30), 1 (30)"
    assert not any(found.table["spurious"].to_pylist())


@pytest.mark.parametrize(
    ("words", "rows", "message"),
    [
        (["--label", "stars"], ROWS, "--label: line 1 of"),
        (["--text", "review"], ROWS, "it has text, label"),
        ([], [{"text": 3, "label": "a"}], "is no string but int"),
        ([], [{"text": "a", "label": ["a"]}], "must be a word or a number, got list"),
        ([], [{"text": "a", "label": "x"}] * 3, "at least two classes, got 1: 'x'"),
        ([], [{"text": " ", "label": "x"}], "has no text that is not empty"),
        ([], [7], "is no object in braces"),
        (["--min-count", "0"], ROWS, "--min-count must be"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    rows: list[Any],
    message: str,
) -> None:
    assert main(["screen", written(tmp_path, ".jsonl", rows), *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said


def test_files_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        screen(str(tmp_path / "gone.csv"))
    with pytest.raises(ValueError, match=r"must be a file of \.jsonl, \.csv, \.tsv"):
        screen("texts.parquet")
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="cannot be read"):
        screen(str(broken))
    broken.write_text('{"text": ')
    with pytest.raises(ValueError, match="cannot be read"):
        screen(str(broken))
