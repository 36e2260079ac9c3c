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
from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions, ShortcutCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.callbacks.huggingface_shortcut import HuggingFaceShortcutCallback
from jepa_monitor.callbacks.settings import CallbackArguments, CallbackSettings
from jepa_monitor.jacobian.options import ScoreArguments
from jepa_monitor.monitor.candidates import ShortcutArguments, ShortcutSettings
from jepa_monitor.monitor.settings import MonitorArguments, MonitorSettings

SCORES = (
    jepa_monitor.jepa_score,
    jepa_monitor.jacobian_spectrum,
    jepa_monitor.log_density,
    jepa_monitor.leverage_map,
)
ENTRIES = [
    *((entry, ScoreOptions, {}) for entry in SCORES),
    (DensityMonitor, MonitorSettings, {}),
    (JepaScoreCallback, MonitorSettings, {"polarity_samples": 8}),
    (JepaScoreCallback, CallbackSettings, {"max_overhead": 0.05}),
    (CollapseCallback, CallbackSettings, {}),
    (ShortcutCallback, ShortcutSettings, {}),
    (HuggingFaceShortcutCallback, ShortcutSettings, {}),
]
SOURCES = pathlib.Path(jepa_monitor.__file__).parent


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (ScoreArguments, ScoreOptions),
        (MonitorArguments, MonitorSettings),
        (CallbackArguments, CallbackSettings),
        (ShortcutArguments, ShortcutSettings),
    ],
)
def test_what_type_checkers_see_is_the_settings(arguments: type, settings: type) -> None:
    assert typing.get_type_hints(arguments) == typing.get_type_hints(settings)


@pytest.mark.parametrize(("entry", "settings", "others"), ENTRIES)
def test_an_entry_spells_out_its_settings(entry: Any, settings: Any, others: Any) -> None:
    found = inspect.signature(entry).parameters
    hints = typing.get_type_hints(settings)
    words = inspect.getdoc(entry)
    assert words is not None
    for field in dataclasses.fields(settings):
        parameter = found[field.name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default == others.get(field.name, field.default)
        assert parameter.annotation == hints[field.name]
        assert f"\n    {field.name}: " in words
    assert "**" not in words.split("Example:")[0].split("Args:")[1]


def test_what_is_spelt_out_is_what_is_meant() -> None:
    callback = JepaScoreCallback()
    assert callback.settings == MonitorSettings(polarity_samples=8)
    assert (callback.max_overhead, callback.strict) == (0.05, False)
    callback = JepaScoreCallback(polarity_samples=0, max_overhead=None, pool="cls", name="x")
    assert callback.settings == MonitorSettings(pool="cls")
    assert (callback.max_overhead, callback.pool, callback.prefix) == (None, "cls", "x/")


def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'row'"):
        jepa_monitor.jepa_score(mlp(), torch.rand(2, 48), row=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_samples'"):
        DensityMonitor(images(), max_samples=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_samples'"):
        JepaScoreCallback(max_samples=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_probe_samples'"):
        CollapseCallback(max_probe_samples=3)


def test_settings_say_what_they_take() -> None:
    settings = MonitorSettings(insights=iter(["neighbors"]), detectors=iter(["knn"]))
    assert [insight.name for insight in settings.insights] == ["neighbors"]
    assert dataclasses.replace(settings, max_probe_samples=3).insights == settings.insights
    assert settings.score_options == ScoreOptions(method="auto")
    monitor = DensityMonitor(images(), **settings.arguments)
    assert monitor.insights == settings.insights


def test_no_long_list_of_arguments_is_written_twice() -> None:
    long: dict[str, set[str]] = {}
    for path in [*sorted(SOURCES.rglob("*.py")), *sorted((SOURCES / "callbacks").glob("*.py"))]:
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
