"""Encoders and Trainers as people have them: lazy, a plain function, of either package, from a file."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from drop_in_runs import assert_same, run
from helpers import Validated, float64_score, images, loader, mlp, trainer
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor, nn

from jepa_monitor import JepaScoreCallback, ScoreOptions
from jepa_monitor.callbacks import CollapseCallback


def test_a_lazy_encoder_is_watched_from_its_first_batch_on(tmp_path: pathlib.Path) -> None:
    class Lazy(Validated):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(12))

        def configure_optimizers(self) -> None:
            return None  # a lazy parameter's optimizer is the user's affair

    callback = JepaScoreCallback(max_overhead=None)
    with pytest.warns(UserWarning, match="`encoder` has parameters without a shape"):
        trainer(tmp_path, [callback], num_sanity_val_steps=0).fit(
            Lazy(), loader(48, 2), loader(16, 3)
        )
    assert [values["step"] for values in callback.history] == [6, 12]


def test_a_plain_callable_is_watched_too(tmp_path: pathlib.Path) -> None:
    net = mlp(192)
    callback = JepaScoreCallback(lambda module: lambda batch: net(batch) / 2, max_overhead=None)
    plain = run(tmp_path, [])
    watched = run(tmp_path, [callback])
    assert callback.failures == 0
    assert_same(watched, plain)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_either_import_name(tmp_path: pathlib.Path, package: str) -> None:
    other = pytest.importorskip(package)
    if package == "pytorch_lightning" and RequirementCache("pytorch-lightning<2.6"):
        pytest.skip("its Trainer refuses callbacks of lightning before 2.6")

    class Module(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = mlp(192)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.encoder(batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val/loss", self.encoder(batch[0]).square().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    score = JepaScoreCallback(max_overhead=None, strict=True)
    fast = CollapseCallback(every_n_steps=2, name="fast", strict=True)
    checkpoint = other.callbacks.ModelCheckpoint(tmp_path, monitor="jepa_score/mean")
    stopping = other.callbacks.EarlyStopping("fast/collapse/rankme", mode="max", patience=9)
    logger = other.loggers.CSVLogger(tmp_path)
    runner = other.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[score, fast, checkpoint, stopping],
        logger=logger, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    module = Module()
    runner.fit(module, loader(48, 2), loader(16, 3))
    assert [values["step"] for values in score.history] == [0, 6, 12]
    assert len(fast.history) == 7
    expected = float64_score(module.encoder, images(16, 3)).mean().item()
    assert float(runner.callback_metrics["jepa_score/mean"]) == pytest.approx(expected, abs=0.02)
    assert "jepa_score/mean" in pathlib.Path(logger.log_dir, "metrics.csv").read_text()
    state = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert len([key for key in state if key.startswith(("JepaScore", "Collapse"))]) == 2


def test_a_configuration_file_makes_the_round_trip(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(16, 2)

        def val_dataloader(self) -> Any:
            return loader(16, 3)

    first = tmp_path / "first.yaml"
    first.write_text(
        textwrap.dedent("""
            trainer:
              max_epochs: 1
              accelerator: cpu
              logger: false
              enable_checkpointing: true
              enable_progress_bar: false
              enable_model_summary: false
              callbacks:
                - class_path: jepa_monitor.JepaScoreCallback
                  init_args:
                    encoder: encoder
                    every_n_steps: 1
                    max_probe_samples: 3
                    max_overhead: null
                    pool: flatten
                    options: {method: sketch, rows: 4}
                    strict: true
                - class_path: jepa_monitor.callbacks.CollapseCallback
                  init_args: {name: fast, every_n_steps: 2, on_collapse: stop}
        """)
    )

    def train(config: pathlib.Path, folder: str) -> tuple[pathlib.Path, list[Any]]:
        root = tmp_path / folder
        cli = LightningCLI(
            Validated, Data, args=["fit", "--config", str(config), "--trainer.default_root_dir", str(root)],
            seed_everything_default=1,
        )  # fmt: skip
        kinds = (JepaScoreCallback, CollapseCallback)
        ours = [callback for callback in cli.trainer.callbacks if isinstance(callback, kinds)]
        return root / "config.yaml", ours

    saved, (score, fast) = train(first, "one")
    again, (same_score, same_fast) = train(saved, "two")
    assert saved.read_text().replace("/one", "/two") == again.read_text()
    assert (score.every_n_steps, score.settings.max_probe_samples, score.pool) == (1, 3, "flatten")
    assert score.settings.options == same_score.settings.options == ScoreOptions("sketch", rows=4)
    assert (fast.name, fast.on_collapse) == ("fast", "stop")
    assert len(score.history) == 3
    own = [timeless(values) for values in score.history]
    assert own == [timeless(values) for values in same_score.history]
    assert len(fast.history) == len(same_fast.history) == 2


def timeless(scalars: dict[str, float]) -> dict[str, float]:
    clocks = ("monitor/seconds", "monitor/overhead")
    return {tag: value for tag, value in scalars.items() if tag not in clocks}
