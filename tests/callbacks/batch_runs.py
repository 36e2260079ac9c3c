"""Runs that keep a mark of every batch, with and without monitors, and data that a second reader would disturb."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
from helpers import OwnLoader, Tiny, images, trainer
from torch import Tensor
from torch.utils.data import Dataset

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.probes import batch_images


class Recorder(Tiny):
    """Keeps a mark of every batch, masks and all."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float]] = []

    def keep(self, kind: str, batch: Any) -> None:
        total = sum(float(leaf.double().sum()) for leaf in leaves(batch))
        self.seen.append((kind, total))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.keep("train", batch)
        return self.encoder(batch_images(batch)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.keep("validate", batch)


def leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from leaves(part)
    elif isinstance(batch, Tensor):
        yield batch


class Noisy(Dataset):  # type: ignore[type-arg]
    """A random generator of its own, which no seed of the process reaches."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return images(24, 2)[index] + self.rng.normal(), index % 3


class Elsewhere(OwnLoader):
    """Works in its own process only, as a loader on a GPU does."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = os.getpid()

    def __iter__(self) -> Iterator[Any]:
        if os.getpid() != self.owner:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
        return super().__iter__()


def run(
    folder: pathlib.Path,
    train: Any,
    val: Any,
    *callbacks: pl.Callback,
    module: Any = None,
    **kw: Any,
) -> Recorder:
    pl.seed_everything(3, verbose=False)
    module = module or Recorder()
    runner = trainer(folder, list(callbacks), **kw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(train, pl.LightningDataModule):
            runner.fit(module, datamodule=train)
        else:
            runner.fit(module, train, val)
    return module


def watch(**kwargs: Any) -> list[pl.Callback]:
    return [
        JepaScoreCallback(max_overhead=None, max_probe_samples=4, polarity_samples=0, strict=True, **kwargs),
        CollapseCallback(name="fast", every_n_steps=2, strict=True),
    ]  # fmt: skip
