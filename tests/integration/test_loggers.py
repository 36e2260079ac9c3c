"""Every logger, as its own package has it: curves are there, pictures and words where there is room."""

from __future__ import annotations

import csv
import json
import pathlib
import time
from typing import Any

import numpy as np
import pytest
from helpers import Validated, loader, trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from jepa_monitor import JepaScoreCallback

FIGURES = (
    "monitor/overview", "jepa_score/least_and_most_likely", "density/reliability", "jacobian/spectra",
)  # fmt: skip
STEPS = [0, 5, 11]
WORDS = {"monitor/verdict": "ealthy", "monitor/settings": "| probe | 16 images |"}


def fit(folder: pathlib.Path, logger: Any) -> dict[str, list[float]]:
    """Train with this logger beside another; give the callback's own history of each tag."""
    callback = JepaScoreCallback(max_overhead=None, strict=True, max_probe_samples=16)
    loggers = [logger, CSVLogger(folder / "beside")]
    trainer(folder, [callback], logger=loggers).fit(Validated(), loader(48, 2), loader(16, 3))
    assert callback.failures == 0
    assert from_csv(pathlib.Path(loggers[1].log_dir, "metrics.csv")) == STEPS
    return {tag: [look[tag] for look in callback.history] for tag in callback.history[0]}


def beside(folder: pathlib.Path) -> pathlib.Path:
    """The logs of the other logger."""
    return folder / "beside" / "lightning_logs" / "version_0"


def from_csv(path: pathlib.Path) -> list[int]:
    """The steps at which a file has the mean score."""
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("jepa_score/mean")]


def is_drawn(path: pathlib.Path) -> bool:
    """Whether a file is a picture with something in it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return min(pixels.shape[:2]) > 50 and pixels.std() > 1


def test_tensorboard(tmp_path: pathlib.Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    history = fit(tmp_path, logger)
    events = EventAccumulator(logger.log_dir, {"images": 0, "histograms": 0}).Reload()
    assert set(history) - {"step"} <= set(events.Tags()["scalars"])
    points = events.Scalars("jepa_score/mean")
    assert [point.step for point in points] == STEPS
    assert [point.value for point in points] == pytest.approx(history["jepa_score/mean"], rel=1e-6)
    for tag in FIGURES:
        assert [picture.step for picture in events.Images(tag)] == STEPS
    for tag in WORDS:
        assert tag + "/text_summary" in events.Tags()["tensors"]
    assert [look.step for look in events.Histograms("jepa_score/scores")] == STEPS


def test_csv(tmp_path: pathlib.Path) -> None:
    logger = CSVLogger(tmp_path)
    history = fit(tmp_path, logger)
    with pathlib.Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["jepa_score/mean"]]
    for tag, values in history.items():
        if tag != "step":
            assert [float(row[tag]) for row in rows] == pytest.approx(values), tag


def test_weights_and_biases_offline(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    history = fit(tmp_path, logger)
    summary = dict(logger.experiment.summary)
    assert set(history) - {"step"} <= set(summary)
    assert summary["jepa_score/mean"] == pytest.approx(history["jepa_score/mean"][-1])
    assert set(FIGURES) <= set(summary)
    media = pathlib.Path(logger.experiment.dir, "media")
    for tag, words in WORDS.items():
        (first, *_) = sorted(
            media.rglob(f"{tag}_*.table.json"), key=lambda file: file.stat().st_mtime
        )
        table = json.loads(first.read_text())
        assert table["columns"] == ["step", tag.rpartition("/")[2]]
        assert table["data"][0][0] == 0
        assert words in table["data"][0][1]
    (page,) = media.rglob("monitor/run_*.html")
    assert page.read_bytes() == (beside(tmp_path) / "run.html").read_bytes()
    files = {tag: sorted(media.rglob(f"{tag}_*.png")) for tag in FIGURES}
    wandb.finish()
    for tag, pictures in files.items():
        assert len(pictures) == len(STEPS), tag
        assert all(map(is_drawn, pictures)), tag


@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    pytest.importorskip("mlflow")
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")  # which the slim package lacks
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    places = {"file": f"file:{tmp_path / 'mlruns'}", "sqlite": f"sqlite:///{tmp_path / 'runs.db'}"}
    logger = MLFlowLogger(
        "test", tracking_uri=places[store], artifact_location=f"file:{tmp_path / 'artifacts'}"
    )
    history = fit(tmp_path, logger)
    points = logger.experiment.get_metric_history(logger.run_id, "jepa_score/mean")
    assert [point.value for point in points] == pytest.approx(history["jepa_score/mean"])
    assert [point.step for point in points] == STEPS
    assert set(history) - {"step"} <= set(logger.experiment.get_run(logger.run_id).data.metrics)
    for tag in FIGURES:
        saved = logger.experiment.list_artifacts(logger.run_id, tag)
        names = [pathlib.Path(item.path).name for item in saved]
        assert names == [f"{step:08d}.png" for step in STEPS]
        for item in saved:
            local = logger.experiment.download_artifacts(logger.run_id, item.path)
            assert is_drawn(pathlib.Path(local))
    for tag, words in WORDS.items():
        first = logger.experiment.list_artifacts(logger.run_id, tag)[0]
        assert first.path == f"{tag}/00000000.md"
        local = logger.experiment.download_artifacts(logger.run_id, first.path)
        assert words in pathlib.Path(local).read_text()
    page = logger.experiment.download_artifacts(logger.run_id, "run.html")
    assert pathlib.Path(page).read_bytes() == (beside(tmp_path) / "run.html").read_bytes()


def test_stable_pretrainings_registry(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = pytest.importorskip("stable_pretraining.registry.logger")
    logger = registry.RegistryLogger(tmp_path / "run", "one")
    history = fit(tmp_path, logger)
    assert "failed to save" not in capsys.readouterr().out
    assert from_csv(tmp_path / "run" / "metrics.csv") == STEPS
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = json.dumps(summary)
    assert all(f'"{tag}"' in found for tag in history if tag != "step")
    lines = (tmp_path / "run" / "media.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for tag in FIGURES:
        of_tag = [event for event in events if event["tag"] == tag]
        assert [event["step"] for event in of_tag] == STEPS
        assert all(is_drawn(tmp_path / "run" / event["path"]) for event in of_tag)

    from stable_pretraining.web.scan import RunScanner  # what its live viewer, `spt web`, shows

    viewer = RunScanner(tmp_path, poll_interval=0.05)
    viewer.start()
    begun = time.monotonic()
    while not viewer.progress_json()["initial_done"] and time.monotonic() < begun + 30:
        time.sleep(0.05)
    viewer.stop()
    (run,) = viewer.runs_json()
    assert run["has_media"]
    shown = viewer.metrics_json(run["run_id"])["metrics"]
    for tag, values in history.items():
        if tag != "step":
            assert shown[tag]["step"] == STEPS, tag
            assert shown[tag]["y"] == pytest.approx(values, rel=1e-6), tag
    assert {event["tag"] for event in viewer.media_json(run["run_id"])["events"]} >= set(FIGURES)


def test_trackio(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("trackio")
    loggers = pytest.importorskip("stable_pretraining.loggers")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    place = pathlib.Path(utils.TRACKIO_DIR)
    project = f"test-{tmp_path.name}"
    history = fit(tmp_path, loggers.TrackioLogger(project, "one", auto_log_gpu=False))
    logs = SQLiteStorage.get_logs(project, "one")
    scores = {row["step"]: row["jepa_score/mean"] for row in logs if "jepa_score/mean" in row}
    assert list(scores) == STEPS
    assert list(scores.values()) == pytest.approx(history["jepa_score/mean"])
    for tag in FIGURES:
        pictures = {row["step"]: row[tag] for row in logs if tag in row}
        assert list(pictures) == STEPS, tag
        for picture in pictures.values():
            assert picture["_type"] == "trackio.image"
            assert is_drawn(place / "media" / picture["file_path"])
    for tag, words in WORDS.items():
        (first, *_) = (row for row in logs if tag in row)
        assert first["step"] == 0
        assert first[tag]["_type"] == "trackio.markdown"
        assert words in first[tag]["_value"]


def test_aim(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aim")
    from aim.pytorch_lightning import AimLogger
    from aim.storage.context import Context

    monkeypatch.setenv("AIM_ANALYTICS", "0")
    settings = {"system_tracking_interval": None, "capture_terminal_logs": False}
    logger = AimLogger(str(tmp_path), log_system_params=False, **settings)
    history = fit(tmp_path, logger)
    run, context = logger.experiment, Context({})  # which opens the closed run again
    for tag, values in history.items():
        if tag != "step":
            found = run.get_metric(tag, context).dataframe().sort_values("step")
            assert list(found["step"]) == STEPS, tag
            assert list(found["value"]) == pytest.approx(values), tag
    for tag in FIGURES:
        steps, pictures = run.get_image_sequence(tag, context).values.sparse_list()
        assert list(steps) == STEPS, tag
        for picture in pictures:
            assert np.asarray(picture.to_pil_image().convert("RGB")).std() > 1
    for tag, words in WORDS.items():
        steps, texts = run.get_text_sequence(tag, context).values.sparse_list()
        assert steps[0] == 0
        assert words in texts[0].data


def test_swanlab_offline(tmp_path: pathlib.Path) -> None:
    swanlab = pytest.importorskip("swanlab")
    from swanlab.integration.pytorch_lightning import SwanLabLogger
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    logger = SwanLabLogger("test", mode="offline", log_dir=str(tmp_path / "swanlab"))
    history = fit(tmp_path, logger)
    swanlab.finish()
    (run,) = (tmp_path / "swanlab").glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(run)
    records = [Record.FromString(data) for data in reader]
    scalars: dict[str, dict[int, float]] = {}
    media: dict[str, dict[int, list[str]]] = {}
    for record in records:
        if record.HasField("scalar"):
            found = record.scalar
            scalars.setdefault(found.key, {})[found.step] = found.value.number
        elif record.HasField("media"):
            names = [item.filename for item in record.media.value.items]
            media.setdefault(record.media.key, {})[record.media.step] = names
    for tag, values in history.items():
        if tag != "step":
            assert list(scalars[tag]) == STEPS, tag
            assert list(scalars[tag].values()) == pytest.approx(values), tag
    for tag in FIGURES:
        assert list(media[tag]) == STEPS
        for name in [name for names in media[tag].values() for name in names]:
            assert is_drawn(run.parent / "media" / "image" / name)
    assert (run.parent / "run.html").exists()  # not in the folder of all runs
    for tag, words in WORDS.items():
        (name,) = media[tag][0]
        assert words in (run.parent / "media" / "text" / name).read_text()
