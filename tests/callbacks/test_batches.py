"""Training draws the very batches that it would draw alone, whatever they come from."""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batch_runs import Elsewhere, Noisy, Recorder, run, watch
from helpers import Masking, OwnLoader, Tiny, images, loader, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from jepa_monitor import JepaScoreCallback

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a fork of the process")


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(24):
            self.position += 1
            yield images(24, 2)[self.position % 24] + self.position


class Resuming(DataLoader):  # type: ignore[type-arg]
    """As torchdata's StatefulDataLoader: it goes on where it was."""

    def __init__(self) -> None:
        super().__init__(TensorDataset(images(24, 2)), 8)
        self.epoch = 0

    def __iter__(self) -> Any:
        self.epoch += 1
        return ([batch[0] * self.epoch] for batch in super().__iter__())


class Views(Noisy):
    def __getitem__(self, index: int) -> Any:
        image = super().__getitem__(index)[0]
        return {"views": [{"image": image}, {"image": image[:, ::2, ::2]}], "label": index % 3}


class Crops(Noisy):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return index, [image, image.flip(-1), image[:, ::2, ::2]], label


class Named:
    """As a Hugging Face data set: no torch Dataset, and items with names."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": images(24, 2)[index] * self.rng.normal(), "labels": index % 3}


class Batched(IterableDataset):  # type: ignore[type-arg]
    """As WebDataset with `.batched(8)`."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for part in images(24, 2).split(8):
            yield part + self.epoch, torch.arange(8)


SOURCES: dict[str, Callable[[], Any]] = {
    "generator of a data set": lambda: DataLoader(Noisy(), 8),
    "shuffled": lambda: DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "masks": lambda: DataLoader(Noisy(), 8, shuffle=True, collate_fn=Masking()),
    "stream": lambda: DataLoader(Stream(), 8),
    "own loader": OwnLoader,
    "loader that resumes": Resuming,
    "views": lambda: DataLoader(Views(), 8),
    "index, crops, label": lambda: DataLoader(Crops(), 8),
    "names": lambda: DataLoader(Named(), 8),
    "stream of batches": lambda: DataLoader(Batched(), batch_size=None),
    "stream of batches, its own loader": Batched,
    "only here": Elsewhere,
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_batches_are_those_of_a_run_without_a_monitor(tmp_path: pathlib.Path, name: str) -> None:
    make = SOURCES[name]
    alone = run(tmp_path, make(), make())
    callbacks = watch()
    watched = run(tmp_path, make(), make(), *callbacks)
    assert watched.seen == alone.seen
    assert len(alone.seen) >= 2 * 3 + 2 * 3
    assert len(callbacks[0].history) >= 2
    assert len(callbacks[1].history) >= (2 if name == "only here" else 3)
    monitor = callbacks[0].monitor
    assert monitor is not None
    assert monitor.images.shape == (24, 3, 8, 8)
    assert monitor.reference is not None
    assert monitor.reference.shape == (24, 3, 8, 8)


@pytest.mark.parametrize("shared", ["one data set", "one loader", "workers", "persistent workers"])
def test_data_that_both_loops_share(tmp_path: pathlib.Path, shared: str) -> None:
    def data() -> tuple[Any, Any]:
        samples, collate = Noisy(), Masking()
        if shared == "one loader":
            both = DataLoader(samples, 8, collate_fn=collate)
            return both, both
        # With more than one worker, who reads the shared counter first is a matter of luck.
        workers = {} if shared == "one data set" else {"num_workers": 1}
        if shared == "persistent workers":
            workers["persistent_workers"] = True
        return tuple(DataLoader(samples, 8, collate_fn=collate, **workers) for _ in range(2))  # type: ignore[return-value]

    alone = run(tmp_path, *data())
    watched = run(tmp_path, *data(), *watch())
    assert watched.seen == alone.seen


def test_two_workers(tmp_path: pathlib.Path) -> None:
    def data() -> Any:
        return DataLoader(Noisy(), 4, num_workers=2, persistent_workers=True, shuffle=True)

    assert run(tmp_path, data(), data(), *watch()).seen == run(tmp_path, data(), data()).seen


@pytest.mark.parametrize("held_out", [True, False])
def test_what_cannot_be_read_is_taken_as_it_passes(tmp_path: pathlib.Path, held_out: bool) -> None:
    count = 8
    score = JepaScoreCallback(
        max_overhead=None, max_probe_samples=4, max_embedding_samples=count, every_n_steps=1, strict=True
    )  # fmt: skip
    runner = trainer(tmp_path, [score], max_epochs=3)
    module = Recorder() if held_out else Tiny()
    with pytest.warns(UserWarning, match="cannot read the probe without touching.*Cannot re-init"):
        runner.fit(module, Elsewhere(), Elsewhere() if held_out else None)
    passed = [images(8, seed) for seed in range(1, 10)]
    steps = [int(values["step"]) for values in score.history]
    assert score.monitor is not None
    assert score.monitor.reference is not None
    if held_out:
        # After two batches of the sanity check come those of the first validation.
        assert torch.equal(score.monitor.images, passed[2])
        assert steps[0] == 4
    else:
        assert torch.equal(score.monitor.images, passed[0])
        assert torch.equal(score.monitor.reference, passed[1])
        assert steps[0] == 1
    assert steps[-1] == 9
    without = [values for values in score.history if "log_density/mean" not in values]
    assert all(values["step"] <= 6 for values in without)
    assert "log_density/mean" in score.history[-1]


def test_of_what_passes_labels_and_groups_are_not_known_and_looks_go_on(
    tmp_path: pathlib.Path,
) -> None:
    score = JepaScoreCallback(
        max_overhead=None, max_probe_samples=4, max_embedding_samples=8, every_n_steps=1,
        labels=lambda batch: batch[1], groups={"site": lambda batch: batch[1]},
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match="goes without `labels` and `groups`: of batches that pass"
    ):
        trainer(tmp_path, [score], max_epochs=3).fit(Tiny(), Elsewhere())
    assert score.failures == 0
    assert score.history


def test_batches_without_images_pass_with_one_failure(tmp_path: pathlib.Path) -> None:
    class Odd(Elsewhere):
        def __iter__(self) -> Iterator[Any]:
            return ({"left": x, "right": x} for x, _ in super().__iter__())

    class Lefthanded(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch["left"]], batch_idx)

    score = JepaScoreCallback(max_overhead=None)
    module = run(tmp_path, Odd(), None, score, module=Lefthanded())
    assert len(module.losses) == 6
    assert not score.history
    assert score.failures >= 1


def test_a_generator_is_left_to_training(tmp_path: pathlib.Path) -> None:
    """Batches that can be drawn once only."""

    class Once:
        def __init__(self) -> None:
            self.batches = ((images(8, seed), seed) for seed in itertools.count())

        def __iter__(self) -> Any:
            return itertools.islice(self.batches, 3)

    alone = run(tmp_path, Once(), loader(24, 3))
    watched = run(tmp_path, Once(), loader(24, 3), *watch())
    assert watched.seen == alone.seen
