"""Reading a source gives its images and leaves it as it was, whatever it is made of."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import multiprocessing.shared_memory
import os
import pathlib
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Masking, OwnLoader, images, interpreter_settings
from numbered_images import COUNT, Batches, Plain, Sampler, Whole, row
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from jepa_monitor.probes import collect_images
from jepa_monitor.probes.apart import Unread, read_apart
from jepa_monitor.probes.labels import collect_classes
from jepa_monitor.probes.sources import Source

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a fork of the process")


class OwnGenerator(Plain):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        return row(index) + self.rng.normal(), 0


GLOBAL = random.Random(0)


class GlobalGenerator(Plain):
    def __getitem__(self, index: int) -> Any:
        return row(index) + GLOBAL.random(), 0


class Counting(Plain):
    def __init__(self) -> None:
        self.drawn = 0

    def __getitem__(self, index: int) -> Any:
        self.drawn += 1
        return row(index) + self.drawn, 0


class SharedTensor(Plain):
    def __init__(self) -> None:
        self.drawn = torch.zeros(1).share_memory_()

    def __getitem__(self, index: int) -> Any:
        self.drawn += 1
        return row(index) + self.drawn, 0


class SharedBlock(Plain):
    def __init__(self) -> None:
        self.block = multiprocessing.shared_memory.SharedMemory(create=True, size=8)
        self.block.buf[0] = 0

    def __getitem__(self, index: int) -> Any:
        self.block.buf[0] += 1
        return row(index) + self.block.buf[0], 0

    def __del__(self) -> None:
        self.block.close()
        self.block.unlink()


class OpenFile(Plain):
    """Reads on from where it was, through Python's buffer and past its end."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(folder.name, "bytes")
        path.write_bytes(bytes(range(251)) * 4000)
        self.folder, self.file = folder, path.open("rb")

    def __getitem__(self, index: int) -> Any:
        return row(index) + sum(self.file.read(5000)[-3:]), 0


class Mapped(Plain):
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.drawn = np.memmap(pathlib.Path(self.folder.name, "n"), np.uint8, "w+", shape=(1,))

    def __getitem__(self, index: int) -> Any:
        self.drawn[0] += 1
        return row(index) + int(self.drawn[0]), 0


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Goes on where it was."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.position += 1
            yield row(self.position % COUNT), self.position


class Rows(OwnLoader):
    def batch(self) -> Any:
        return torch.stack([row(i) for i in range(8)]) + self.drawn


class Resuming(DataLoader):  # type: ignore[type-arg]
    """As torchdata's StatefulDataLoader: the loader itself remembers its position."""

    def __init__(self) -> None:
        super().__init__(Stream(), batch_size=8)
        self.drawn = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.drawn += 1
            yield batch[0] + self.drawn


STATEFUL: dict[str, Callable[[], Any]] = {
    "generator of a data set": lambda: DataLoader(OwnGenerator(), 8),
    "shuffled": lambda: DataLoader(OwnGenerator(), 8, shuffle=True, generator=torch.Generator()),
    "generator of a file of Python": lambda: DataLoader(GlobalGenerator(), 8),
    "counter": lambda: DataLoader(Counting(), 8),
    "generator in a closure": lambda: DataLoader(Plain(), 8, collate_fn=functools.partial(_noisy, np.random.default_rng(0))),
    "shared tensor": lambda: DataLoader(SharedTensor(), 8),
    "shared memory": lambda: DataLoader(SharedBlock(), 8),
    "file": lambda: DataLoader(OpenFile(), 8),
    "memory map": lambda: DataLoader(Mapped(), 8),
    "stream": lambda: DataLoader(Stream(), 8),
    "collate function": lambda: DataLoader(Plain(), 8, collate_fn=Masking()),
    "own loader": Rows,
    "loader that resumes": Resuming,
    "sampler's generator": lambda: DataLoader(Plain(), 8, sampler=SubsetRandomSampler(range(16), torch.Generator().manual_seed(3))),
    "sampler with a counter": lambda: DataLoader(Plain(), 8, sampler=Sampler()),
}  # fmt: skip


def _noisy(rng: np.random.Generator, samples: list[Any]) -> Any:
    return default_collate([(image + rng.normal(), label) for image, label in samples])


def two_epochs(loader: Any) -> list[Tensor]:
    torch.manual_seed(0)
    GLOBAL.seed(0)
    batches = [*itertools.islice(loader, 3), *itertools.islice(loader, 3)]
    # What follows the images, such as masks, counts too.
    return [torch.as_tensor(part).double() for batch in batches for part in _leaves(batch)]


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, list | tuple):
        for part in batch:
            yield from _leaves(part)
    else:
        yield batch


@linux
@pytest.mark.parametrize("name", STATEFUL)
def test_what_was_read_yields_what_it_would_have_yielded(name: str) -> None:
    GLOBAL.seed(0)
    alone = two_epochs(STATEFUL[name]())
    watched = STATEFUL[name]()
    GLOBAL.seed(0)
    state = GLOBAL.getstate()
    before = interpreter_settings()
    first = collect_images(watched, 20)
    again = collect_images(watched, 20)
    assert interpreter_settings() == before
    assert GLOBAL.getstate() == state
    assert first.shape == (16 if name == "sampler's generator" else 20, 3, 8, 8)
    assert torch.equal(first, again)
    after = two_epochs(watched)
    assert len(after) == len(alone)
    assert all(torch.equal(one, other) for one, other in zip(after, alone, strict=True))


@linux
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_at_work_goes_on_undisturbed(workers: int) -> None:
    def batches(read: bool) -> list[float]:
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        torch.manual_seed(0)
        loader = DataLoader(OwnGenerator(), 4, shuffle=True, collate_fn=Masking(), **options)
        seen = []
        for _ in range(2):
            for index, ((found, _), masks) in enumerate(loader):
                seen.append(float(found.sum() + masks.sum() * (workers == 0)))
                if read and index == 1:
                    collect_images(loader, 12)
        return seen

    assert batches(read=True) == batches(read=False)


@linux
def test_a_generator_that_runs_once_is_still_to_be_run() -> None:
    batches = (images(8, seed) for seed in range(3))
    found = collect_images(batches, 12)
    assert torch.equal(found, torch.cat([images(8, 0), images(8, 1)[:4]]))
    assert torch.equal(next(batches), images(8, 0))


class Broken(Plain):
    def __init__(self, kind: str) -> None:
        self.kind, self.owner = kind, os.getpid()

    def __getitem__(self, index: int) -> Any:
        if index == 10 and (os.getpid() != self.owner or self.kind == "always"):
            if self.kind == "death":
                os._exit(3)
            raise {"always": KeyError, "cuda": RuntimeError}[self.kind]("Cannot re-initialize CUDA")
        return super().__getitem__(index)


@linux
@pytest.mark.parametrize("kind", ["death", "cuda"])
def test_what_cannot_be_read_elsewhere_is_read_here_and_said(kind: str) -> None:
    reason = {"death": r"died \(exit code 3\)", "cuda": "RuntimeError: Cannot re-init"}[kind]
    with pytest.warns(UserWarning, match=f"`probe` was read in this process.*{reason}"):
        found = collect_images(DataLoader(Broken(kind), 4), 20)
    assert torch.equal(found, images(COUNT, 3)[:20])
    with pytest.raises(Unread, match=reason):
        collect_images(Source(DataLoader(Broken(kind), 4), only_apart=True), 20)


def test_the_error_of_a_data_set_is_its_own() -> None:
    with pytest.raises(KeyError, match="Cannot re-init"):
        collect_images(DataLoader(Broken("always"), 4), 20)
    assert len(collect_images(DataLoader(Broken("always"), 4), 8)) == 8


@linux
def test_a_process_that_hangs_is_given_up() -> None:
    def draw() -> Iterator[int]:
        yield 1
        time.sleep(600)

    items = read_apart(draw, patience=0.3)
    assert next(items) == 1
    with pytest.raises(Unread, match="gave nothing for 0 s"):
        next(items)
    assert not multiprocessing.active_children()


@linux
def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(Unread, match="pickle"):
        list(read_apart(lambda: [lambda: 0]))

    class OddError(ValueError):
        def __init__(self, one: int, other: int) -> None:
            super().__init__("odd")

    def fail() -> Iterator[int]:
        raise OddError(1, 2)
        yield 1

    with pytest.raises(Unread, match="OddError: odd"):
        list(read_apart(fail))


@linux
def test_nobody_waits_for_what_is_not_wanted() -> None:
    endless = read_apart(lambda: (torch.zeros(1000) for _ in itertools.count()))
    assert torch.equal(next(endless), torch.zeros(1000))
    endless.close()
    assert not multiprocessing.active_children()


def test_tensors_are_read_without_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa_monitor.probes.images.read_apart", None)
    data = TensorDataset(images(COUNT, 3), torch.arange(COUNT))
    for source in (data, DataLoader(data, 8, shuffle=True), [images(COUNT, 3)], images(COUNT, 3)):
        assert torch.equal(collect_images(source, 20), images(COUNT, 3)[:20])


def test_where_no_process_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (Plain(), DataLoader(Plain(), 8), DataLoader(Whole(), 8), Batches()):
            assert torch.equal(collect_images(source, 20), images(COUNT, 3)[:20])
    only = Source(DataLoader(Plain(), 8), only_apart=True)
    assert torch.equal(collect_images(only, 20), images(COUNT, 3)[:20])
    with pytest.raises(Unread, match="this system cannot"):
        collect_images(Source(Whole(), only_apart=True), 20)


def test_what_happens_on_the_way_to_the_model_happens() -> None:
    owner = os.getpid()

    def transfer(batch: Any) -> Any:
        assert os.getpid() == owner
        return [batch[0].float() / 255, batch[1]]

    pixels = [((row(i) * 255).to(torch.uint8), i % 3) for i in range(COUNT)]
    source = Source(DataLoader(pixels, 8), transfer=transfer)  # type: ignore[arg-type]
    found, labels, _ = collect_classes(source, 20, "auto", name="probe")
    expected = (images(COUNT, 3)[:20] * 255).to(torch.uint8).float() / 255
    assert torch.equal(found, expected)
    assert torch.equal(labels, torch.arange(20) % 3)
    with pytest.raises(TypeError, match="`probe` must be floating point"):
        collect_images(DataLoader(pixels, 8), 20)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "empty", [[], TensorDataset(torch.zeros(0, 3, 4, 4)), DataLoader([]), Stream]
)
def test_nothing_to_read_is_an_error(empty: Any) -> None:
    if empty is Stream:
        empty = DataLoader(Whole(), 8, sampler=None)
        empty.dataset.__class__ = type("Empty", (Whole,), {"__iter__": lambda self: iter(())})
    with pytest.raises(ValueError, match="`probe` is empty"):
        collect_images(empty, 8)


def test_files_that_are_written_are_shared_as_before(tmp_path: pathlib.Path) -> None:
    """A log goes on at its end, also after a data set has written to it."""
    with (tmp_path / "log.txt").open("w") as log:

        class Talking(Plain):
            def __getitem__(self, index: int) -> Any:
                log.write(f"{index}\n")
                log.flush()
                return super().__getitem__(index)

        log.write("before\n")
        log.flush()
        collect_images(DataLoader(Talking(), 3), 3)
        log.write("after\n")
    assert (tmp_path / "log.txt").read_text().split() == ["before", "0", "1", "2", "after"]
