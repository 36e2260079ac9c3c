"""Data flow one way: a room imports nothing of the rooms that stand above it, not even for types."""

from __future__ import annotations

import ast
import pathlib

import jepa_monitor

PACKAGE = pathlib.Path(jepa_monitor.__file__).parent
FLOORS = {
    "functional": 1,
    "encoders": 2,
    "probes": 2,
    "jacobian": 3,
    "detectors": 4,
    "insights": 4,
    "monitor": 5,
    "metrics": 6,
    "callbacks": 6,
    "cli": 7,
    "recipes": 7,
}
LONGEST = 400


def imported(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("jepa_monitor.")]
    return {part[1] for part in parts if part[1] in FLOORS}


def test_no_import_runs_upwards() -> None:
    seen, upwards = 0, []
    for room, floor in FLOORS.items():
        for path in sorted((PACKAGE / room).glob("*.py")):
            seen += 1
            upwards += [
                f"{room}/{path.name} imports {other}"
                for other in imported(path)
                if FLOORS[other] > floor
            ]
    assert seen > 100
    assert upwards == []


def test_the_rooms_are_all_there_is() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FLOORS)


def test_no_file_is_long() -> None:
    lengths = {
        f"{room}/{path.name}": len(path.read_text().splitlines())
        for room in FLOORS
        for path in (PACKAGE / room).glob("*.py")
    }
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST}
    assert long == {}
