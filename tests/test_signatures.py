"""Entry points that share settings: the same names, types, defaults and words in each."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import pathlib
import typing
from typing import Any

import pytest
import torch
from helpers import images, mlp

import jepa_monitor
from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.jacobian.options import ScoreArguments
from jepa_monitor.monitor.settings import MonitorArguments, MonitorSettings

SCORES = (jepa_monitor.jepa_score, jepa_monitor.jacobian_spectrum, jepa_monitor.log_density)
ENTRIES = [(entry, ScoreOptions) for entry in SCORES] + [(DensityMonitor, MonitorSettings)]
SOURCES = pathlib.Path(jepa_monitor.__file__).parent


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [(ScoreArguments, ScoreOptions), (MonitorArguments, MonitorSettings)],
)
def test_what_type_checkers_see_is_the_settings(arguments: type, settings: type) -> None:
    assert typing.get_type_hints(arguments) == typing.get_type_hints(settings)


@pytest.mark.parametrize(("entry", "settings"), ENTRIES)
def test_an_entry_spells_out_its_settings(entry: Any, settings: Any) -> None:
    found = inspect.signature(entry).parameters
    hints = typing.get_type_hints(settings)
    words = inspect.getdoc(entry)
    assert words is not None
    for field in dataclasses.fields(settings):
        parameter = found[field.name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default == field.default
        assert parameter.annotation == hints[field.name]
        assert f"\n    {field.name}: " in words
    assert "**" not in words.split("Example:")[0].split("Args:")[1]


def test_the_callback_has_the_settings_of_the_monitor() -> None:
    found = inspect.signature(JepaScoreCallback).parameters
    defaults = {field.name: field.default for field in dataclasses.fields(MonitorSettings)}
    given = {name: found[name].default for name in defaults}
    assert given == defaults | {"polarity_samples": 8}


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'row'"):
        jepa_monitor.jepa_score(mlp(), torch.rand(2, 48), row=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_samples'"):
        DensityMonitor(images(), max_samples=3)


def test_settings_say_what_they_take() -> None:
    settings = MonitorSettings(insights=iter(["neighbors"]), detectors=iter(["knn"]))
    assert [insight.name for insight in settings.insights] == ["neighbors"]
    assert dataclasses.replace(settings, max_probe_samples=3).insights == settings.insights
    assert settings.score_options == ScoreOptions(method="auto")
    monitor = DensityMonitor(images(), **settings.arguments)
    assert monitor.insights == settings.insights


def test_no_long_list_of_arguments_is_written_twice() -> None:
    long: dict[str, set[str]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = {
                    a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                }
                if len(names - {"self"}) > 8:
                    long[f"{path.relative_to(SOURCES)}:{node.lineno} {node.name}"] = names - {
                        "self"
                    }
    twice = [
        (first, second)
        for first, second in itertools.combinations(long, 2)
        if len(long[first] & long[second]) > 8
    ]
    assert twice == []
