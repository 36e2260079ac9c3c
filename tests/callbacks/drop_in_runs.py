"""A run with all that it leaves behind, and a comparison bit for bit."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from helpers import Tiny, Validated, interpreter_settings, loader, trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor


class Recording(Logger):
    """Keeps what the user's own module logs, with its place on the x-axis."""

    name = "recording"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.own: list[tuple[str, float, int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        own = {tag: float(v) for tag, v in metrics.items() if tag.startswith(("train/", "val/"))}
        self.own += [(tag, value, step) for tag, value in own.items()]

    def log_hyperparams(self, params: Any) -> None:
        pass


def run(
    folder: pathlib.Path,
    callbacks: list[pl.Callback],
    module: Callable[[], Tiny] = Validated,
    workers: int = 0,
    persistent: bool = False,
    generator: bool = False,
    files: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """All that a run leaves behind."""
    pl.seed_everything(7, verbose=False)
    logger = Recording()
    watched = module()
    own = torch.Generator().manual_seed(5) if generator else None
    train = loader(
        48, 2, shuffle=True, num_workers=workers, persistent_workers=persistent, generator=own
    )
    loggers = [logger, CSVLogger(folder)] if files else [logger]
    runner = trainer(folder, callbacks, logger=loggers, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fp16 is not supported on CPU")
        runner.fit(watched, train, loader(16, 3))
    return {
        "losses": watched.losses,
        "own logs": logger.own,
        "weights": watched.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in runner.optimizers],
        "interpreter": interpreter_settings(),
        "step": runner.global_step,
    }


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Compare bit for bit, and name the first difference."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where
