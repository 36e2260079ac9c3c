"""WebDataset: shards of tar files whose pipeline makes the batches, or leaves them to the loader."""

from __future__ import annotations

import io
import pathlib
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Tiny, images, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_monitor import DensityMonitor, JepaScoreCallback

wds = pytest.importorskip("webdataset")


@pytest.fixture
def shard(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for index, image in enumerate(images(24, 3)):
            for suffix, content in (("pth", dumped(image)), ("cls", str(index % 3).encode())):
                info = tarfile.TarInfo(f"{index:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


def dumped(image: Tensor) -> bytes:
    stream = io.BytesIO()
    torch.save(image.clone(), stream)
    return stream.getvalue()


def samples(shard: str) -> Any:
    data = wds.WebDataset(shard, shardshuffle=False, empty_check=False)
    return data.decode().to_tuple("pth", "cls")


SOURCES: dict[str, Callable[[str], Any]] = {
    "samples": samples,
    "samples, loaded": lambda shard: DataLoader(samples(shard), 8),
    "samples, in a WebLoader": lambda shard: wds.WebLoader(samples(shard), batch_size=8),
    "batches": lambda shard: samples(shard).batched(8),
    "batches, loaded": lambda shard: DataLoader(samples(shard).batched(8), batch_size=None),
    "batches, in a WebLoader": lambda shard: wds.WebLoader(samples(shard).batched(8), batch_size=None),
    "with a worker": lambda shard: wds.WebLoader(samples(shard).batched(8), batch_size=None, num_workers=1),
    "batched anew": lambda shard: wds.WebLoader(samples(shard).batched(4), batch_size=None).unbatched().batched(8),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_every_image_counts_as_one(shard: str, name: str) -> None:
    assert torch.equal(DensityMonitor(SOURCES[name](shard)).images, images(24, 3))


class Seen(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.losses.append(float(batch[0].sum()))
        return self.encoder(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(batch[0].sum()))


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("samples", "batches")])
def test_in_a_trainer(tmp_path: pathlib.Path, shard: str, name: str) -> None:
    def run(*callbacks: Any) -> list[float]:
        torch.manual_seed(0)
        module = Seen()
        trainer(tmp_path, list(callbacks)).fit(module, SOURCES[name](shard), SOURCES[name](shard))
        return module.losses

    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=4, strict=True)
    assert run(callback) == run()
    assert [values["step"] for values in callback.history] == [0, 3, 6]
    assert callback.monitor is not None
    assert torch.equal(callback.monitor.images, images(24, 3))
