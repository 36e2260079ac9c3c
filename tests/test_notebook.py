"""The notebook of the documents runs, and shows what it says that it shows."""

from __future__ import annotations

import ast
import html
import json
import pathlib
import re
from typing import Any

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "watch_a_run.ipynb"


def cells() -> list[dict[str, Any]]:
    return [
        cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; give the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return (
        None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    )  # type: ignore[attr-defined]


def headline(page: str) -> str:
    """The verdict on the run, up to its first full stop."""
    return html.unescape(page).removeprefix("<p>").partition(".")[0]


def stored(cell: dict[str, Any]) -> dict[str, str]:
    """What the notebook shows of a cell, by kind."""
    found: dict[str, str] = {}
    for output in cell["outputs"]:
        for kind, lines in output.get("data", {output.get("name"): output.get("text")}).items():
            found[kind] = "".join(lines)
    return found


@pytest.mark.slow  # trains two runs
def test_its_cells_run_and_say_what_is_stored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown: list[str] = []
    losses: list[list[float]] = []
    for cell in cells():
        source, before = "".join(cell["source"]), stored(cell)
        if "broken = " in source:
            with pytest.warns(UserWarning, match="Cause: complete collapse") as caught:
                value = run(source, names)
            said = [str(warning.message) for warning in caught]
            assert len(said) == 1
            assert said[0].partition(" at step")[0] in before["stderr"]
        else:
            value = run(source, names)
        printed = capsys.readouterr().out
        losses += [[float(number) for number in re.findall(r"\d+\.\d+", printed)]] * bool(printed)
        assert bool(printed) == ("stdout" in before)
        if hasattr(value, "_repr_html_"):
            shown.append(headline(value._repr_html_()))
            assert headline(before["text/html"]) == shown[-1]
        elif value is not None:
            assert repr(value) == before["text/plain"]
    assert shown == ["Healthy since step 0", "Complete collapse, which began at step 160"]
    assert losses[1][1] < losses[0][1]  # as the text says
    healthy, broken = names["healthy"].history[-1], names["broken"].history[-1]
    assert 0 < healthy["quality/knn"] - broken["quality/knn"] < 0.1
    assert (tmp_path / "runs/broken/run.html").stat().st_size > 50_000


def test_it_is_small_and_says_nothing_of_the_machine_that_it_ran_on() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    without_pictures = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"/(home|root|tmp|Users|usr|work)/", without_pictures)
    assert len(re.findall("base64,", text)) == 2
    assert all(cell["outputs"] for cell in cells()[2:])
