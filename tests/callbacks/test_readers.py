"""EarlyStopping, ModelCheckpoint and schedulers act on new values, or are named in a warning."""

from __future__ import annotations

import pathlib
import warnings
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Tiny, Validated, float64_score, images, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback

PROBE = images(16, 3)


def watch(**kwargs: Any) -> JepaScoreCallback:
    """A callback that has no time but for what others wait for."""
    return JepaScoreCallback(
        probe=PROBE, reference=images(24, 2), max_probe_samples=2, polarity_samples=0, **kwargs
    )


class Busy(Validated):
    """Its optimizer moves it in every step, so that no two values are alike."""


@pytest.fixture
def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look is ever affordable."""
    from jepa_monitor.monitor import watch as watching

    monkeypatch.setattr(watching, "FREE_SECONDS", -1.0)
    monkeypatch.setattr(watching, "_seconds", lambda: 0.0)


class Reading(pl.Callback):
    """Somebody's own, which keeps what it reads beside what the weights at that moment would give."""

    monitor = "jepa_score/mean"

    def __init__(self) -> None:
        self.read: list[tuple[float, float]] = []

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.enable_grad():
            really = float64_score(pl_module.encoder, PROBE[:2]).mean().item()
        self.read.append((float(trainer.callback_metrics[self.monitor]), really))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._read(trainer, pl_module)


VALIDATIONS: dict[str, dict[str, Any]] = {
    "every epoch": {},
    "twice an epoch": {"val_check_interval": 0.5},
    "every 2 epochs": {"check_val_every_n_epoch": 2},
    "every 4 batches of the run": {"check_val_every_n_epoch": None, "val_check_interval": 4},
    "none": {"limit_val_batches": 0},
}


@pytest.mark.usefixtures("_no_time")
@pytest.mark.parametrize("validation", VALIDATIONS)
def test_what_somebody_reads_is_of_the_weights_at_hand(
    tmp_path: pathlib.Path, validation: str
) -> None:
    reading = Reading()
    callback = watch(max_overhead=0.01)
    runner = trainer(tmp_path, [callback, reading], max_epochs=2, **VALIDATIONS[validation])
    runner.fit(Busy(), loader(48, 2), loader(16, 3))
    assert len(reading.read) >= 2
    for found, really in reading.read:
        assert found == pytest.approx(really, abs=0.02)
    assert len({found for found, _ in reading.read}) > 1


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "after validations": {"save_on_train_epoch_end": False},
    "after epochs": {"save_on_train_epoch_end": True},
    "every 4 steps": {"every_n_train_steps": 4},
    "every 2 epochs": {"every_n_epochs": 2},
}


@pytest.mark.usefixtures("_no_time")
@pytest.mark.parametrize("validation", ["every epoch", "twice an epoch"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_carries_the_value_of_the_weights_in_it(
    tmp_path: pathlib.Path, name: str, validation: str
) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path, "{step}", monitor="jepa_score/mean", mode="max", save_top_k=-1,
        **CHECKPOINTS[name],
    )  # fmt: skip
    runner = trainer(
        tmp_path, [watch(max_overhead=0.01), checkpoint], max_epochs=2, enable_checkpointing=True,
        **VALIDATIONS[validation],
    )  # fmt: skip
    runner.fit(Busy(), loader(48, 2), loader(16, 3))
    assert checkpoint.best_k_models
    for path, value in checkpoint.best_k_models.items():
        module = Busy()
        module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        really = float64_score(module.encoder, PROBE[:2]).mean().item()
        assert float(value) == pytest.approx(really, abs=0.02)


@pytest.mark.usefixtures("_no_time")
def test_stopping_counts_measurements(tmp_path: pathlib.Path) -> None:
    class Improving(Tiny):
        """Its embeddings grow with every step, and the score with them."""

        def on_train_batch_start(self, *_: Any) -> None:
            self.encoder[-1].weight.data.mul_(1.5)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    stopping = EarlyStopping("jepa_score/mean", mode="max", patience=1, min_delta=0.1)
    callback = watch(max_overhead=0.01)
    runner = trainer(tmp_path, [stopping, callback], max_epochs=6)
    runner.fit(Improving(), loader(48, 2))
    assert runner.current_epoch == 6
    assert [values["step"] for values in callback.history] == [0, 6, 12, 18, 24, 30, 36]


@pytest.mark.usefixtures("_no_time")
def test_a_scheduler_on_a_plateau_reads_new_values(tmp_path: pathlib.Path) -> None:
    class Scheduled(Busy):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "collapse/rankme"},
            }

    callback = watch(max_overhead=0.01)
    runner = trainer(tmp_path, [callback], max_epochs=3)
    runner.fit(Scheduled(), loader(48, 2), loader(16, 3))
    assert [values["step"] for values in callback.history] == [0, 6, 12, 18]


def test_collapse_is_measured_when_it_is_read_besides_every_50_steps(
    tmp_path: pathlib.Path,
) -> None:
    callback = CollapseCallback(probe=PROBE)
    stopping = EarlyStopping("collapse/rankme", mode="max", patience=9)
    runner = trainer(tmp_path, [callback, stopping], max_epochs=9)
    runner.fit(Busy(), loader(48, 2), loader(16, 3))
    assert [values["step"] for values in callback.history] == [0, *range(6, 50, 6), 50, 54]


# The cadence that was asked for, who reads, the Trainer's settings, and whether it can keep up.
CADENCES: dict[str, tuple[dict[str, Any], Any, dict[str, Any], bool]] = {
    "every epoch": ({"every_n_epochs": 1}, lambda: EarlyStopping("jepa_score/mean"), {}, True),
    "every 5 epochs": ({"every_n_epochs": 5}, lambda: EarlyStopping("jepa_score/mean"), {}, False),
    "both every 2": (
        {"every_n_epochs": 2},
        lambda: ModelCheckpoint(monitor="jepa_score/mean", every_n_epochs=4), {}, True,
    ),
    "checkpoints every epoch": (
        {"every_n_epochs": 3}, lambda: ModelCheckpoint(monitor="jepa_score/mean"), {}, False,
    ),
    "validation every 2": (
        {"every_n_epochs": 2}, lambda: EarlyStopping("jepa_score/mean"),
        {"check_val_every_n_epoch": 2}, True,
    ),
    "validation in between": (
        {"every_n_epochs": 1}, lambda: EarlyStopping("jepa_score/mean"),
        {"val_check_interval": 0.5}, False,
    ),
    "every step": (
        {"every_n_steps": 1}, lambda: EarlyStopping("jepa_score/mean"),
        {"val_check_interval": 0.5}, True,
    ),
    "3 steps and half epochs": (
        {"every_n_steps": 3}, lambda: EarlyStopping("jepa_score/mean"),
        {"val_check_interval": 0.5}, True,
    ),
    "4 steps and epochs of 6": (
        {"every_n_steps": 4}, lambda: EarlyStopping("jepa_score/mean"), {}, False,
    ),
    "3 steps and checkpoints every 6": (
        {"every_n_steps": 3},
        lambda: ModelCheckpoint(monitor="jepa_score/mean", every_n_train_steps=6), {}, True,
    ),
    "3 steps and checkpoints every 4": (
        {"every_n_steps": 3},
        lambda: ModelCheckpoint(monitor="jepa_score/mean", every_n_train_steps=4), {}, False,
    ),
    "by the clock": (
        {"every_n_steps": 1},
        lambda: ModelCheckpoint(
            monitor="jepa_score/mean", train_time_interval=timedelta(minutes=1)
        ), {}, False,
    ),
    "nobody of ours": ({"every_n_epochs": 5}, lambda: EarlyStopping("val/loss"), {}, True),
    "our own cadence": ({}, lambda: EarlyStopping("jepa_score/mean"), {}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CADENCES)
def test_who_cannot_keep_up_with_a_cadence_is_named_once(tmp_path: pathlib.Path, name: str) -> None:
    cadence, reader, settings, keeps_up = CADENCES[name]
    callback, other = watch(max_overhead=None, **cadence), reader()
    runner = trainer(
        tmp_path, [callback, other], max_epochs=2, enable_checkpointing=True, **settings
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(Busy(), loader(48, 2), loader(16, 3))
    said = [str(w.message) for w in caught if "acts on" in str(w.message)]
    assert len(said) == (not keeps_up)
    for text in said:
        assert f"{type(other).__name__} acts on jepa_score/mean more often than Jepa" in text
