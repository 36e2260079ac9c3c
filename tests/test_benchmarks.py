"""Benchmarks say what they are, overwrite nothing, and print the tables that the documents show."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the tests do not run from a checkout")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {path: path.read_bytes() for path in FOLDER.glob("*.json")}
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    assert {path: path.read_bytes() for path in FOLDER.glob("*.json")} == before


def call(monkeypatch: pytest.MonkeyPatch, script: str, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    return importlib.import_module(script).main()


def commands() -> list[tuple[str, str]]:
    """Every command of the documents that runs a benchmark: the script, and its arguments."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        found += re.findall(r"python benchmarks/(\w+)\.py([^#`\n;)]*)", text)
    return sorted(set(found))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_an_account_and_runs_nothing(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, script, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    first = (importlib.import_module(script).__doc__ or "").splitlines()[0]
    assert " ".join(first.split()) in " ".join(text.split())
    known = set(re.findall(r"--[a-z]+", text))
    used = {
        flag
        for name, words in commands()
        if name == script
        for flag in re.findall(r"--[a-z]+", words)
    }
    assert used <= known, "the documents name flags that it does not have"


def test_every_benchmark_is_named_in_a_document() -> None:
    assert {name for name, _ in commands()} <= set(SCRIPTS)
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    assert [script for script in SCRIPTS if f"{script}.py" not in text] == []


def rows(text: str) -> set[str]:
    """The rows of all Markdown tables, without their headings."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("| ")]
    return {re.sub(r"\*\*|\s+", "", line) for line in lines}


@pytest.mark.parametrize(
    ("script", "flag", "document"),
    [
        ("known_density", "--show", "docs/theory.md"),
        ("collapse_zoo", "--show", "docs/collapse.md"),
        ("predictors", "--judge", "docs/advice.md"),
        ("curricula", "--show", "docs/recipes/dinov2.md"),
    ],
)
def test_the_documents_show_what_the_command_prints(
    script: str,
    flag: str,
    document: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(monkeypatch, script, flag)
    printed = rows(capsys.readouterr().out)
    shown = rows((ROOT / document).read_text())
    assert len(printed) > 20
    assert sorted(printed - shown) == []


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    agreement = json.loads((FOLDER / "score_agreement.json").read_text())
    encoders = [found for found in agreement.values() if isinstance(found, dict)]
    worst = {way: max(found[way] for found in encoders) for way in encoders[0]}
    assert len(encoders) == 6
    assert "Scores of six small encoders" in text
    assert worst["float32"] <= 1.4e-3
    assert worst["float64"] <= 1e-11
    assert "within 1.4e-3 nats" in text
    assert "within 1e-11" in text
    assert f"off by up to {worst['plain']:.1g}" in text
    speed = json.loads((FOLDER / "score_speed.json").read_text())
    seconds = [case["seconds"] for case in speed.values() if isinstance(case, dict)]
    exact = [found["ours, exact"] / found["plain"] for found in seconds]
    assert f"costs {min(exact):.1f} to {max(exact):.2f} times" in text
    assert max(found["ours, sketch"] / found["plain"] for found in seconds) < 0.1
    cost = json.loads((FOLDER / "overhead.json").read_text())
    default = cost["JepaScoreCallback, default"]
    share = default / (default + 195 * cost["training step"])
    assert f"took {100 * share:.1f} %" in text
