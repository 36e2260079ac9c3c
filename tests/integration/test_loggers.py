"""Weights & Biases offline and MLflow in a local file: the curves and the pictures are there."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from helpers import Validated, loader, trainer
from lightning.pytorch.loggers import CSVLogger

from jepa_monitor import JepaScoreCallback

FIGURES = ("jepa_score/least_and_most_likely", "density/reliability", "jacobian/spectra")


def fit(folder: pathlib.Path, logger: Any) -> JepaScoreCallback:
    callback = JepaScoreCallback(max_overhead=None, strict=True)
    loggers = [logger, CSVLogger(folder / "csv")]  # several at once
    trainer(folder, [callback], logger=loggers).fit(Validated(), loader(48, 2), loader(16, 3))
    text = pathlib.Path(loggers[1].log_dir, "metrics.csv").read_text()
    assert "jepa_score/mean" in text
    return callback


def test_weights_and_biases_offline(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    callback = fit(tmp_path, logger)
    summary = dict(logger.experiment.summary)
    last = callback.history[-1]
    assert summary["jepa_score/mean"] == pytest.approx(last["jepa_score/mean"])
    assert set(FIGURES) <= set(summary)
    files = {path.name for path in pathlib.Path(logger.experiment.dir, "media").rglob("*.png")}
    wandb.finish()
    assert len(files) >= len(FIGURES)


def test_mlflow_in_a_local_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the slim package has no database
    logger = MLFlowLogger("test", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    callback = fit(tmp_path, logger)
    history = logger.experiment.get_metric_history(logger.run_id, "jepa_score/mean")
    assert [point.value for point in history] == pytest.approx(
        [values["jepa_score/mean"] for values in callback.history]
    )
    assert [point.step for point in history] == [0, 5, 11]
    for tag in FIGURES:
        saved = logger.experiment.list_artifacts(logger.run_id, tag)
        assert [pathlib.Path(item.path).name for item in saved] == [
            "00000000.png", "00000005.png", "00000011.png",
        ]  # fmt: skip
