"""At the end of a fit its page lies beside the logs, in one process, and is no reason for anything else."""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from typing import Any

import pytest
import torch
from helpers import Validated, loader, trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.cli import report


def watch(**settings: Any) -> JepaScoreCallback:
    quick = {
        "max_probe_samples": 8,
        "polarity_samples": 0,
        "max_overhead": None,
        "every_n_steps": 4,
    }
    return JepaScoreCallback(**(quick | settings))


def content(page: pathlib.Path) -> dict[str, Any]:
    found = re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


class Collapsing(Validated):
    def on_train_batch_start(self, *_: Any) -> None:
        if self.global_step >= 8:
            nn.init.zeros_(self.encoder[-1].weight)
            nn.init.constant_(self.encoder[-1].bias, 100)


class Breaking(Validated):
    def on_train_batch_start(self, *_: Any) -> None:
        if self.global_step == 5:
            raise RuntimeError("broken")


def test_the_page_says_what_tensorboard_and_the_report_of_its_files_say(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = watch(patience_steps=4)
    logger = TensorBoardLogger(tmp_path)
    with pytest.warns(UserWarning, match="complete collapse"), caplog.at_level("INFO"):
        trainer(tmp_path, [callback], logger=logger, max_epochs=5).fit(
            Collapsing(), loader(40), loader(32, 2)
        )
    place = pathlib.Path(logger.log_dir, "run.html")
    page = content(place)
    (shown,) = page["runs"]
    assert shown["name"] == logger.log_dir
    assert shown["headline"] == "Complete collapse, which began at step 12"
    assert shown["cause"].startswith("Cause: complete collapse.")  # what the alarm said
    (closing,) = (r.message for r in caplog.records if " Keep: " in r.message)
    keep = f"{shown['keep']['why']} {shown['keep']['sure']}"
    assert closing == f"JepaScoreCallback: {shown['headline']}. {shown['cause']} Keep: {keep}"
    events = EventAccumulator(logger.log_dir, {"tensors": 0}).Reload()
    (said,) = events.Tensors("monitor/closing/text_summary")
    assert said.tensor_proto.string_val[0].decode() == closing.partition(": ")[2]
    assert shown["keep"]["step"] == 8
    for tag, value in callback.history[-1].items():
        if tag != "step":
            steps, values = shown["series"][tag]
            assert (steps[-1], values[-1]) == (24, pytest.approx(value, rel=1e-5, abs=1e-9)), tag
    settings = dict(shown["settings"])
    assert settings["encoder"] == "Collapsing.encoder (Sequential)"
    assert settings["probe"] == "32 images"
    assert "torch" in settings["versions"]
    assert {p["tag"] for p in shown["pictures"]} >= {
        "jepa_score/least_and_most_likely",
        "jacobian/spectra",
    }
    assert [shot["step"] for shot in shown["pictures"][0]["shots"]] == [0, 24]

    # The same of the event files, where Lightning counts a step less.
    again = content(report(logger.log_dir, str(tmp_path / "again.html")))
    (told,) = again["runs"]
    assert told["headline"] == "Complete collapse, which began at step 11"
    assert (told["cause"], told["keep"]["step"], told["healthy"]) == (shown["cause"], 7, False)
    assert told["settings"] == shown["settings"]
    assert [panel["title"] for panel in again["panels"]] == [
        panel["title"] for panel in page["panels"]
    ]
    for tag, (steps, values) in shown["series"].items():
        steps_there, values_there = told["series"][tag]
        assert steps_there == [max(step - 1, 0) for step in steps], tag
        assert values_there == pytest.approx(values, rel=1e-5, abs=1e-6), tag
    assert {p["tag"]: p["shots"][-1]["src"] for p in told["pictures"]} == {
        p["tag"]: p["shots"][-1]["src"] for p in shown["pictures"]
    }
    assert {"train/loss", "val/loss"} <= told["series"].keys()  # what else the run has logged
    assert [v["headline"].partition(" since")[0] for v in told["verdicts"]] == [
        v["headline"].partition(" since")[0] for v in shown["verdicts"]
    ]


class Client:
    """MLflow's, as far as texts go."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "7f"
        self.texts[artifact_file] = text


class LikeMLflow(Logger):
    """Keeps its runs in no folder of this machine."""

    name, version, run_id = "study", "7f", "7f"

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.experiment = client

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, *_: Any) -> None: ...


def test_a_logger_that_keeps_files_gets_the_page_where_there_is_no_folder(
    tmp_path: pathlib.Path,
) -> None:
    client = Client()
    callback = watch(name="teacher")
    trainer(tmp_path, [callback], logger=LikeMLflow(client)).fit(
        Validated(), loader(40), loader(32, 2)
    )
    assert not list(tmp_path.rglob("*.html"))
    page = tmp_path / "kept.html"
    page.write_text(client.texts["run-teacher.html"])
    (shown,) = content(page)["runs"]
    assert shown["name"] == "study 7f (teacher)"
    assert shown["look"] == []  # there are no event files to look at
    assert shown["series"]["jepa_score/mean"][0] == [0, 4, 8]

    class Full(Client):
        def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
            if artifact_file.endswith(".html"):
                raise OSError("no space left")

    with pytest.warns(UserWarning, match="page of the run: OSError: no space left"):
        trainer(tmp_path, [watch()], logger=LikeMLflow(Full())).fit(
            Validated(), loader(40), loader(32, 2)
        )


def test_names_keep_pages_and_stories_apart_and_pictures_are_drawn_for_the_page_alone(
    tmp_path: pathlib.Path,
) -> None:
    callbacks = [watch(name="a/b"), CollapseCallback(name="a/b", every_n_steps=2), watch()]
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, callbacks, logger=logger).fit(Validated(), loader(40), loader(32, 2))
    folder = pathlib.Path(logger.log_dir)
    assert {page.name for page in folder.glob("*.html")} == {"run.html", "run-a_b.html"}
    (shown,) = content(folder / "run-a_b.html")["runs"]
    assert shown["series"]["collapse/state"][0] == [0, 2, 4, 6, 8, 10]  # by the other callback
    assert shown["series"]["jepa_score/mean"][0] == [0, 4, 8]
    assert [shot["step"] for shot in shown["pictures"][0]["shots"]] == [8]


def test_without_a_folder_for_logs_there_is_no_page_and_no_word(tmp_path: pathlib.Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, [watch()], logger=False).fit(Validated(), loader(40), loader(32, 2))
    assert not list(tmp_path.rglob("*.html"))


class Second(SingleDeviceStrategy):
    """As another process than the first sees itself."""

    is_global_zero = False  # type: ignore[assignment]


def test_the_first_process_alone_writes_it(tmp_path: pathlib.Path) -> None:
    logger = CSVLogger(tmp_path)
    run = trainer(tmp_path, [watch()], logger=logger, strategy=Second("cpu"))
    run.fit(Validated(), loader(40), loader(32, 2))
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_that_cannot_be_written_leaves_the_run_as_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    weights = []
    for broken in (False, True):
        if broken:
            monkeypatch.setattr("jepa_monitor.monitor.page_file.write_bytes", full)
        torch.manual_seed(0)
        module, callback = Validated(), watch(strict=True)
        run = trainer(tmp_path, [callback], logger=CSVLogger(tmp_path / str(broken)))
        if broken:
            with pytest.warns(
                UserWarning, match="could not write the page of the run: OSError: .*No space"
            ):
                run.fit(module, loader(40), loader(32, 2))
        else:
            run.fit(module, loader(40), loader(32, 2))
        assert len(list(tmp_path.rglob("*.html"))) == 1
        weights.append(module.state_dict())
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])


def test_a_run_that_breaks_off_has_a_page(tmp_path: pathlib.Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, [watch()], logger=logger).fit(Breaking(), loader(40), loader(32, 2))
    (shown,) = content(pathlib.Path(logger.log_dir, "run.html"))["runs"]
    assert shown["span"] == [0, 4]


def test_several_runs_or_none_in_a_folder_are_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="`results`: there are no event files"):
        report(str(tmp_path))
    for name in ("a", "b"):
        logger = TensorBoardLogger(tmp_path, name)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
    with pytest.raises(ValueError, match="`results`: there are 2 runs in"):
        report(str(tmp_path))
    with pytest.raises(ValueError, match="`results`: no look was written"):
        report(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="`results` must be one run or two, got 3"):
        report([str(tmp_path)] * 3)


def test_an_error_of_the_run_is_told_whatever_the_verdict_lacks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> None:
        raise KeyError("step")

    monkeypatch.setattr("jepa_monitor.monitor.page_file.close_run", odd)
    run = trainer(tmp_path, [watch()], logger=CSVLogger(tmp_path))
    with (
        pytest.warns(UserWarning, match="could not say the verdict on the run: KeyError"),
        pytest.raises(RuntimeError, match="broken"),
    ):
        run.fit(Breaking(), loader(40), loader(32, 2))
