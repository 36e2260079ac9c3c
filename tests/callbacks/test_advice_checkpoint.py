"""`ModelCheckpoint(monitor="advice/quality", mode="max")` keeps the weights that the advice speaks of."""

from __future__ import annotations

import pathlib

import lightning.pytorch as pl
import pytest
import torch
from helpers import Validated, loader, smooth_images, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import JepaScoreCallback


class Ruined(Validated):
    """Its embeddings become a point when two of five epochs are over."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch >= 2:
            with torch.no_grad():
                self.encoder[-1].weight.zero_()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_the_best_checkpoint_is_the_last_before_the_ruin(tmp_path: pathlib.Path) -> None:
    pl.seed_everything(7, verbose=False)
    checkpoint = ModelCheckpoint(
        tmp_path, "{epoch}", monitor="advice/quality", mode="max", save_top_k=2
    )
    held_out = TensorDataset(smooth_images(32), torch.arange(32))
    callback = JepaScoreCallback(max_overhead=None, on_collapse=lambda *_: None)
    trainer(tmp_path, [callback, checkpoint], max_epochs=5, enable_checkpointing=True).fit(
        Ruined(), loader(48, 2), DataLoader(held_out, 16)
    )
    assert callback.failures == 0
    quality = [look["advice/quality"] for look in callback.history]
    saved = quality[1:]  # nothing is saved before training
    assert float(checkpoint.best_model_score) == pytest.approx(max(saved))
    kept = torch.load(checkpoint.best_model_path, weights_only=True)
    assert kept["epoch"] < 2
    assert kept["state_dict"]["encoder.5.weight"].abs().sum() > 0
    assert saved[-1] < max(saved) / 2
