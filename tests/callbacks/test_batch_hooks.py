"""The monitor sees what hooks make of a batch, and training draws what it would draw alone."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from batch_runs import Noisy, Recorder, run, watch
from helpers import images, loader
from torch.utils.data import DataLoader, TensorDataset, default_collate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a fork of the process")


class Module(pl.LightningDataModule):
    """Batches are bytes until they are on the device."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, 8, collate_fn=self.bytes)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, 8, collate_fn=self.bytes)

    @staticmethod
    def bytes(samples: list[Any]) -> Any:
        pixels, labels = default_collate(samples)
        return (pixels * 40 + 128).clamp(0, 255).to(torch.uint8), labels

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0] - 128.0) / 40, batch[1]


def test_a_data_module_with_hooks(tmp_path: pathlib.Path) -> None:
    callbacks = watch()
    watched = run(tmp_path, Module(Noisy()), None, *callbacks)
    assert watched.seen == run(tmp_path, Module(Noisy()), None).seen
    assert len(callbacks[0].history) == 3
    callbacks = watch()
    run(tmp_path, Module(TensorDataset(images(24, 2), torch.arange(24))), None, *callbacks)
    pixels = (images(24, 2) * 40 + 128).to(torch.uint8)
    torch.testing.assert_close(callbacks[0].monitor.images, (pixels - 128.0) / 40)


class Normalising(Recorder):
    """What its hooks do depends on the loop, and on chance."""

    hooks = ("before", "after")

    def __init__(self, hooks: tuple[str, ...] = hooks) -> None:
        super().__init__()
        self.hooks = hooks

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].float() / 255, *batch[1:]] if "before" in self.hooks else batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "after" not in self.hooks:
            return batch
        if self.trainer.training:
            assert self.training
            return [-batch[0] - 0.1 * torch.rand(len(batch[0]), 1, 1, 1), *batch[1:]]
        assert not self.training
        return [batch[0] - 0.5, *batch[1:]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("hooks", [("before",), ("before", "after")])
def test_the_monitor_sees_what_hooks_make_of_a_batch(
    tmp_path: pathlib.Path, dtype: torch.dtype, hooks: tuple[str, ...]
) -> None:
    def data(seed: int) -> Any:
        return DataLoader(TensorDataset((images(24, seed) * 255).to(dtype)), 8)

    expected = {seed: (images(24, seed) * 255).to(dtype).float() / 255 for seed in (2, 3, 4)}
    callbacks = watch(ood={"far": data(4)})
    watched = run(tmp_path, data(2), data(3), *callbacks, module=Normalising(hooks))
    alone = run(tmp_path, data(2), data(3), module=Normalising(hooks))
    assert watched.seen == alone.seen
    monitor = callbacks[0].monitor  # type: ignore[attr-defined]
    shift = 0.5 if "after" in hooks else 0.0
    torch.testing.assert_close(monitor.images, expected[3] - shift)
    torch.testing.assert_close(monitor.ood["far"], expected[4] - shift)
    torch.testing.assert_close(callbacks[1].images, expected[3] - shift)  # type: ignore[attr-defined]
    if "after" in hooks:
        noise = -monitor.reference.sort(0)[0] - expected[2].flip(0).sort(0)[0]
        assert -0.1 <= monitor.reference.max() <= 0
        assert noise.isfinite().all()
    else:
        torch.testing.assert_close(monitor.reference.sort(0)[0], expected[2].sort(0)[0])
    again = watch()
    run(tmp_path, data(2), data(3), *again, module=Normalising(hooks))
    assert torch.equal(again[0].monitor.reference, monitor.reference)  # type: ignore[attr-defined]


def test_a_tensor_is_what_the_encoder_takes(tmp_path: pathlib.Path) -> None:
    callbacks = watch(probe=images(24, 5), reference=images(24, 6))
    data = DataLoader(TensorDataset((images(24) * 255).to(torch.uint8)), 8)
    run(tmp_path, data, data, *callbacks, module=Normalising())
    assert torch.equal(callbacks[0].monitor.images, images(24, 5))  # type: ignore[attr-defined]
    assert torch.equal(callbacks[0].monitor.reference, images(24, 6))  # type: ignore[attr-defined]


def test_a_hook_that_fails_for_us_does_not_fail_training(tmp_path: pathlib.Path) -> None:
    class Needy(Recorder):
        """Its hook works in the loops only."""

        def on_train_epoch_start(self) -> None:
            self.ready = True

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert hasattr(self, "ready") or self.trainer.sanity_checking
            return [batch[0] / 2, *batch[1:]]

    callbacks = watch()
    data = loader(24, 2), loader(24, 3)
    watched = run(tmp_path, *data, *callbacks, module=Needy())
    assert watched.seen == run(tmp_path, *data, module=Needy()).seen
    assert torch.equal(callbacks[0].monitor.images, images(24, 3) / 2)  # type: ignore[attr-defined]
    reference = callbacks[0].monitor.reference  # type: ignore[attr-defined]
    assert torch.equal(reference.sort(0)[0], images(24, 2).sort(0)[0] / 2)
