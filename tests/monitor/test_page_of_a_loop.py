"""A plain loop has what a Trainer has at its end: the page of the run, and the run in one picture."""

from __future__ import annotations

import base64
import html
import json
import pathlib
import re
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, mlp
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from jepa_monitor import DensityMonitor
from jepa_monitor.cli import report
from jepa_monitor.monitor.loop import DensityWatch
from jepa_monitor.monitor.watch import Look


def watch(**settings: Any) -> DensityWatch:
    monitor = DensityMonitor(images(20, 3), reference=images(40, 4), max_probe_samples=4)
    return monitor.watch(**{"max_overhead": None, "patience_steps": 2} | settings)


def point(broken: bool, encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda batch: encoder(batch) * 0 + 1 if broken else encoder(batch)


def collapse(look_at: DensityWatch, steps: int) -> list[Look]:
    """Watch an encoder that is a point from step 3 on."""
    encoder = mlp(192)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        looks = [look_at(point(step > 2, encoder), step) for step in range(steps)]
    assert ["complete collapse" in str(warning.message) for warning in caught] == [True]
    return looks


def content(page: pathlib.Path) -> dict[str, Any]:
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_the_page_says_what_the_report_of_the_event_files_says(tmp_path: pathlib.Path) -> None:
    look_at, writer = watch(), SummaryWriter(str(tmp_path / "logs"))
    for look in collapse(look_at, 8):
        for tag, value in look.scalars.items():
            writer.add_scalar(tag, value, look.step)
    writer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also where a plot has but one point
        place = look_at.write_page(tmp_path / "new" / "run")
    assert place == tmp_path / "new" / "run" / "run.html"
    (shown,) = content(place)["runs"]
    (told,) = content(report(str(tmp_path / "logs")))["runs"]
    assert shown["headline"] == told["headline"] == "Complete collapse, which began at step 3"
    assert shown["cause"].startswith("Cause: complete collapse.")
    assert shown["keep"]["step"] == told["keep"]["step"]
    assert shown["keep"]["step"] <= 2
    assert shown["alarms"] == told["alarms"] == [4]
    assert shown["series"].keys() == told["series"].keys()
    for tag, (steps, values) in shown["series"].items():
        assert steps == told["series"][tag][0], tag
        assert values == pytest.approx(told["series"][tag][1], rel=1e-5, abs=1e-6), tag
    settings = dict(shown["settings"])
    assert settings["encoder"].endswith("point.<locals>.<lambda>")
    assert settings["probe"] == "20 images"
    assert settings["reference"] == "40 images"
    pictures = {picture["tag"]: picture["shots"] for picture in shown["pictures"]}
    assert {"jacobian/spectra", "jepa_score/least_and_most_likely"} <= pictures.keys()
    assert {shot["step"] for shots in pictures.values() for shot in shots} == {7}


def test_a_page_amid_the_run_leaves_no_trace(tmp_path: pathlib.Path) -> None:
    def run(folder: pathlib.Path | None) -> tuple[list[dict[str, float]], Tensor]:
        torch.manual_seed(0)
        look_at, encoder = watch(), mlp(192)
        for step in range(3):
            look_at(encoder, step)
            if folder is not None:
                assert look_at.write_page(folder) == folder / "run.html"
            nn.init.normal_(encoder[-1].weight)
        assert folder is None or content(folder / "run.html")["runs"][0]["span"] == [0, 2]
        clocks = ("monitor/seconds", "monitor/overhead")
        looks = [{t: v for t, v in look.items() if t not in clocks} for look in look_at.history]
        return looks, torch.cat([torch.rand(3), encoder[-1].weight.detach().flatten()])

    with_pages, without = run(tmp_path), run(None)
    assert with_pages[0] == without[0]
    assert torch.equal(with_pages[1], without[1])


def test_without_looks_there_is_a_word_and_no_page(tmp_path: pathlib.Path) -> None:
    look_at = watch()
    with pytest.warns(UserWarning, match="could not write the page of the run: .*has no looks"):
        assert look_at.write_page(tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert look_at._repr_html_() is None
    with pytest.raises(ValueError, match="no look has succeeded yet"):
        look_at.overview()
    with pytest.raises(TypeError, match="`folder` must be a path, got int"):
        look_at.write_page(3)  # type: ignore[arg-type]


def test_what_goes_wrong_is_a_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at = watch(strict=True)
    look_at(mlp(192), 0)
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="could not write the page of the run: .*Error: "):
        assert look_at.write_page(tmp_path / "file" / "below") is None
    monkeypatch.setattr(look_at.processes, "rank", 1)  # as another process sees itself
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look_at.write_page(tmp_path) is None
    assert not list(tmp_path.glob("*.html"))


def test_a_resumed_run_has_its_whole_story_on_the_page(tmp_path: pathlib.Path) -> None:
    first, second = watch(), watch()
    collapse(first, 6)
    second.load_state_dict(first.state_dict())
    assert first.write_page(tmp_path / "a") is not None
    assert second.write_page(str(tmp_path / "b")) is not None  # not looked at since
    (before,) = content(tmp_path / "a/run.html")["runs"]
    (after,) = content(tmp_path / "b/run.html")["runs"]
    for key in ("headline", "cause", "keep", "series", "verdicts", "alarms", "states"):
        assert after[key] == before[key], key
    assert after["pictures"] == []


def test_the_overview_is_of_the_whole_run_and_a_notebook_shows_it() -> None:
    look_at = watch()
    collapse(look_at, 6)
    figure = look_at.overview()
    (median,) = (a for a in figure.axes if a.get_title(loc="left").startswith("JEPA-SCORE: median"))
    assert list(median.lines[0].get_xdata()) == [0, 1, 2, 3, 4, 5]
    heights = [look["jepa_score/p50"] for look in look_at.history]
    np.testing.assert_array_equal(median.lines[0].get_ydata(), heights)
    assert figure.texts[0].get_text() == "▲ Complete collapse since step 3"
    shown = look_at._repr_html_()
    assert shown is not None
    assert "<p>Complete collapse, which began at step 3. Cause: " in html.unescape(shown)
    with Image.open(BytesIO(base64.b64decode(shown.split("base64,")[1].split('"')[0]))) as image:
        assert image.width == 800
        assert np.asarray(image.convert("RGB")).std() > 1
