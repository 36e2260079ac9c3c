"""A look that fails is told, counted and survived; who is strict is told at once."""

from __future__ import annotations

import contextlib
import copy
import os
import pathlib
import signal
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from drop_in_runs import assert_same, run
from helpers import Validated, images, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import Dataset

from jepa_monitor import JepaScoreCallback


class Dying(Dataset):  # type: ignore[type-arg]
    """Cannot be read the first few times, like a disk that comes back."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5 and self.times:
            self.times -= 1
            raise OSError("disk is gone")
        return images(8, 3)[index]


def failing(*steps: int, error: type[Exception] = RuntimeError) -> Callable[[Any], Any]:
    """An encoder that fails at the given steps."""

    def find(module: pl.LightningModule) -> Any:
        def embed(batch: Tensor) -> Tensor:
            if module.global_step in steps:
                raise error("no luck")
            return module.encoder(batch)

        embed.encoder = module.encoder
        return embed

    return find


class BrokenLogger(CSVLogger):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "jepa_score/mean" in metrics and step:
            raise ConnectionError("server is gone")


def to_nan(module: pl.LightningModule) -> Any:
    if module.global_step == 6:
        return lambda batch: module.encoder(batch) * torch.nan
    return module.encoder


# What goes wrong: the callback's arguments, the warning, the failures, the steps that were scored.
FAILURES: dict[str, tuple[dict[str, Any], str, int, list[int]]] = {
    "raises": ({"encoder": failing(6)}, "RuntimeError: no luck", 1, [0, 12]),
    "raises from the first": ({"encoder": failing(0, 6)}, "RuntimeError: no luck", 2, [12]),
    "key error": ({"encoder": failing(6, error=KeyError)}, "KeyError: 'no luck'", 1, [0, 12]),
    "memory": ({"encoder": failing(6, error=MemoryError)}, "MemoryError: no luck", 1, [0, 12]),
    "GPU memory": (
        {"encoder": failing(6, error=torch.OutOfMemoryError)}, "OutOfMemoryError: no luck", 1, [0, 12],
    ),
    "shape": (
        {"encoder": lambda m: (lambda x: x.sum()) if m.global_step == 6 else m.encoder},
        "ValueError: `encoder` must return one embedding", 1, [0, 12],
    ),
    "gone": (
        {"encoder": lambda m: None if m.global_step == 6 else m.encoder},
        "TypeError: `encoder` is a function that must return", 1, [0, 12],
    ),
    "data": ({"probe": Dying(2)}, "OSError: disk is gone", 1, [6, 12]),
    "data for good": ({"probe": Dying(99)}, "OSError: disk is gone", 3, []),
    "logger": ({}, "ConnectionError: server is gone", 2, [0, 6, 12]),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return run(tmp_path_factory.mktemp("plain"), [])["losses"]


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_evaluation_never_ends_training(
    tmp_path: pathlib.Path, plain_losses: list[float], name: str
) -> None:
    arguments, message, failures, scored = FAILURES[name]
    callback = JepaScoreCallback(max_overhead=None, polarity_samples=0, **copy.deepcopy(arguments))
    logger = BrokenLogger(tmp_path) if name == "logger" else False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.seed_everything(7, verbose=False)
        module = Validated()
        runner = trainer(tmp_path, [callback], logger=logger)
        runner.fit(module, loader(48, 2, shuffle=True), loader(16, 3))
    said = [str(w.message) for w in caught if "could not" in str(w.message)]
    assert len(said) == 1
    assert message in said[0]
    assert callback.failures == failures
    assert float(runner.callback_metrics["monitor/failures"]) == failures
    assert [values["step"] for values in callback.history] == scored
    assert module.losses == plain_losses


@pytest.mark.parametrize("name", FAILURES)
def test_strict_raises_what_went_wrong(tmp_path: pathlib.Path, name: str) -> None:
    arguments, message, *_ = FAILURES[name]
    callback = JepaScoreCallback(
        max_overhead=None, polarity_samples=0, strict=True, **copy.deepcopy(arguments)
    )
    logger = BrokenLogger(tmp_path) if name == "logger" else False
    with pytest.raises(Exception) as caught:
        trainer(tmp_path, [callback], logger=logger).fit(Validated(), loader(48, 2), loader(16, 3))
    assert message in f"{type(caught.value).__name__}: {caught.value}"


def test_scores_that_are_not_finite_are_counted_not_averaged(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(to_nan, max_overhead=None, max_probe_samples=8)
    run(tmp_path, [callback])
    assert callback.failures == 0
    nonfinite = [values["monitor/nonfinite"] for values in callback.history]
    assert nonfinite == [0, 8, 0]  # without a law of the reference, it is not scored
    assert ["jepa_score/mean" in values for values in callback.history] == [True, False, True]


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SIGTERM"])
def test_interrupted_in_an_evaluation(tmp_path: pathlib.Path, kind: str) -> None:
    def find(module: pl.LightningModule) -> Any:
        def embed(batch: Tensor) -> Tensor:
            if module.global_step == 4:
                if kind == "KeyboardInterrupt":
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return module.encoder(batch)

        return embed

    plain = ModelCheckpoint(tmp_path / "plain", "{step}", every_n_train_steps=2, save_top_k=-1)
    pl.seed_everything(7, verbose=False)
    trainer(tmp_path, [plain], enable_checkpointing=True).fit(
        Validated(), loader(48, 2), loader(16, 3)
    )
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, save_last=True)
    callback = JepaScoreCallback(find, every_n_steps=2, max_overhead=None)
    pl.seed_everything(7, verbose=False)
    module = Validated()
    before = signal.getsignal(signal.SIGTERM)
    runner = trainer(tmp_path, [checkpoint, callback], enable_checkpointing=True)
    with contextlib.suppress(BaseException):  # Lightning leaves in its own way, which varies
        runner.fit(module, loader(48, 2), loader(16, 3))
    signal.signal(signal.SIGTERM, before)
    assert runner.global_step < 12
    assert all(part.training for part in module.modules())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    expected = torch.load(
        tmp_path / "plain" / f"step={saved['global_step']}.ckpt", weights_only=True
    )
    for part in ("state_dict", "optimizer_states", "epoch"):
        assert_same(saved[part], expected[part], part)
    resumed = Validated()
    resumed.load_state_dict(saved["state_dict"])
    again = JepaScoreCallback(every_n_steps=2, max_overhead=None)
    trainer(tmp_path, [again]).fit(
        resumed, loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt"
    )
    assert again.history[-1]["step"] == 12
