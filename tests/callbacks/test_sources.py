"""Where a Trainer's data come from, and in what containers: all are read, and none is disturbed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Tiny, Validated, images, loader, trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Without a length: the truth value of its loader is an error."""

    def __init__(self, count: int, seed: int) -> None:
        self.images = images(count, seed)

    def __iter__(self) -> Any:
        return ((image, 0) for image in self.images)


def stream(count: int, seed: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(Stream(count, seed), 8)


class Anyhow(Validated):
    """Takes its images from the first loader, in whatever container the batches come."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(first(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


def first(batch: Any) -> Any:
    """The first loader's batch, [images, labels]."""
    while not (isinstance(batch, list | tuple) and isinstance(batch[0], torch.Tensor)):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return batch


CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "alone": lambda one, other: one,
    "list": lambda one, other: [one, other],
    "dict": lambda one, other: {"a": one, "b": other},
    "nested": lambda one, other: {"a": [one, other], "b": other},
    "combined": lambda one, other: CombinedLoader({"a": one, "b": other}, "min_size"),
    "combined of one": lambda one, other: CombinedLoader(one, "min_size"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("make", [stream, loader])
def test_loaders_in_any_container(
    tmp_path: pathlib.Path, container: str, make: Callable[[int, int], Any]
) -> None:
    pack = CONTAINERS[container]
    callbacks = [
        JepaScoreCallback(max_overhead=None, max_probe_samples=4, strict=True),
        CollapseCallback(name="fast", strict=True),
    ]
    validation = pack(make(16, 3), make(16, 5))
    if container == "nested":
        validation = make(16, 3)  # Lightning itself takes nested loaders for training only
    if isinstance(validation, CombinedLoader):
        validation = CombinedLoader(validation.iterables, "sequential")
    runner = trainer(tmp_path, list(callbacks), max_epochs=1)
    runner.fit(Anyhow(), pack(make(48, 2), make(48, 4)), validation)
    monitor = callbacks[0].monitor
    assert monitor is not None
    assert torch.equal(monitor.images, images(16, 3))
    assert torch.equal(callbacks[1].images, images(16, 3))
    assert monitor.reference is not None
    expected = {tuple(image.flatten().tolist()) for image in images(48, 2)}
    assert {tuple(image.flatten().tolist()) for image in monitor.reference} == expected


@pytest.mark.parametrize("empty", [[], {}, None])
def test_no_validation_data_at_all(tmp_path: pathlib.Path, empty: Any) -> None:
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=4, strict=True)
    with pytest.warns(UserWarning, match="they are not held out"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Tiny(), stream(48, 2), empty)
    assert callback.monitor is not None
    assert len(callback.monitor.images) == 48
