"""Which images a source has, how many, and with which labels, however it groups them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import images
from numbered_images import COUNT, Batches, Plain, Sampler, Whole, row
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from jepa_monitor import DensityMonitor
from jepa_monitor.probes import batch_images, collect_images
from jepa_monitor.probes.labels import collect_classes


class BatchedItems(Dataset):  # type: ignore[type-arg]
    """A batch an index, or a batch for a list of indices."""

    def __len__(self) -> int:
        return COUNT // 8

    def __getitem__(self, index: int | list[int]) -> Any:
        rows = index if isinstance(index, list) else range(8 * index, 8 * index + 8)
        return images(COUNT, 3)[list(rows)], torch.tensor(list(rows)) % 3


class Named:
    """Not a torch Dataset, as Hugging Face's are not: items by index, and names."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= COUNT:
            raise IndexError
        return {"pixel_values": row(index), "label": index % 3}


class ThreeWide(Plain):
    """Three channels and three classes that may hold at once: no batch of three."""

    def __getitem__(self, index: int) -> Any:
        return row(index), torch.tensor([0, 1, 1])


def batch_sampler() -> BatchSampler:
    return BatchSampler(range(COUNT), 8, drop_last=False)


SELF_BATCHING: dict[str, Callable[[], Any]] = {
    "stream of batches": Batches,
    "stream of batches without labels": lambda: Batches(labelled=False),
    "its loader": lambda: DataLoader(Batches(), batch_size=None),
    "its loader without labels": lambda: DataLoader(Batches(labelled=False), batch_size=None),
    "batches by index": lambda: DataLoader(BatchedItems(), batch_size=None),
    "batches by index, bare": BatchedItems,
    "indices by the list": lambda: DataLoader(BatchedItems(), sampler=batch_sampler(), batch_size=None),
    "batch sampler": lambda: DataLoader(Plain(), batch_sampler=batch_sampler()),
    "custom batch sampler": lambda: DataLoader(Plain(), batch_sampler=[[*range(5)], [*range(5, 24)]]),
    "samples": Plain,
    "stream of samples": Whole,
    "stream of samples, loaded": lambda: DataLoader(Whole(), 5),
    "items with names": Named,
    "items with names, loaded": lambda: DataLoader(Named(), 7),
    "list of samples, loaded": lambda: DataLoader([row(i) for i in range(COUNT)], 7),
    "three classes": ThreeWide,
    "batches in a list": lambda: [images(COUNT, 3)[:9], images(COUNT, 3)[9:]],
    "own iterable": lambda: iter([(images(COUNT, 3)[:9], 1), (images(COUNT, 3)[9:], 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SELF_BATCHING)
@pytest.mark.parametrize("count", [20, 64])
def test_every_image_counts_as_one(name: str, count: int) -> None:
    assert torch.equal(collect_images(SELF_BATCHING[name](), count), images(COUNT, 3)[:count])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_sample_of_what_has_an_order(seed: int) -> None:
    expected = {tuple(image.flatten().tolist()) for image in images(COUNT, 3)}
    for make in (Plain, lambda: DataLoader(Plain(), 5, sampler=Sampler())):
        found = collect_images(make(), 16, shuffle_seed=seed)
        drawn = {tuple(image.flatten().tolist()) for image in found}
        assert len(drawn) == 16
        assert drawn < expected
        assert not torch.equal(found, images(COUNT, 3)[:16])
        assert torch.equal(found, collect_images(make(), 16, shuffle_seed=seed))


def test_a_sampler_says_which_images_a_loader_has() -> None:
    """A validation loader that shares its data set with the training loader is held out."""
    held_out = DataLoader(Plain(), 4, sampler=SubsetRandomSampler(range(18, 24)))
    found = {tuple(image.flatten().tolist()) for image in collect_images(held_out, 64)}
    assert found == {tuple(image.flatten().tolist()) for image in images(COUNT, 3)[18:]}
    heavy = DataLoader(Plain(), 4, sampler=WeightedRandomSampler([0.0] * 20 + [1.0] * 4, 50))
    found = {tuple(image.flatten().tolist()) for image in collect_images(heavy, 64)}
    assert found == {tuple(image.flatten().tolist()) for image in images(COUNT, 3)[20:]}
    endless = DataLoader(Plain(), 4, sampler=itertools.cycle([5, 6, 7]))
    assert torch.equal(collect_images(endless, 64), images(COUNT, 3)[5:8])


def test_indices_of_any_kind() -> None:
    class Scaled(Plain):
        def __getitem__(self, index: tuple[float, int]) -> Tensor:  # type: ignore[override]
            return index[0] * row(index[1])

    loader = DataLoader(Scaled(), 4, sampler=[(0.5, i) for i in range(COUNT)])  # type: ignore[arg-type]
    assert torch.equal(collect_images(loader, 9), images(COUNT, 3)[:9] / 2)


@pytest.mark.parametrize(
    "name", [n for n in SELF_BATCHING if "without" not in n and "own" not in n]
)
def test_labels_come_with_the_images(name: str) -> None:
    found, labels, _ = collect_classes(SELF_BATCHING[name](), 20, "auto", name="probe")
    assert torch.equal(found, images(COUNT, 3)[:20])
    if name in ("three classes", "list of samples, loaded", "batches in a list"):
        assert not len(labels)
    else:
        expected = torch.arange(20) % 3
        if name in ("stream of batches", "its loader"):
            expected = torch.arange(20) % 8 % 3
        assert torch.equal(labels, expected)


def test_labels_that_name_every_image_are_none() -> None:
    data = TensorDataset(images(COUNT, 3), torch.arange(COUNT))
    assert not len(collect_classes(data, 20, "auto", name="probe")[1])
    labels = collect_classes(data, 20, lambda batch: batch[1] // 2, name="probe")[1]
    assert torch.equal(labels, torch.arange(20) // 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda batch: batch[2], "`labels` failed on a batch of type list of `probe`: IndexError"),
        (lambda batch: batch[0], r"must be one for each image, \(8,\), got shape \(8, 3, 8, 8\)"),
    ],
)
def test_wrong_labels_are_named(labels: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect_classes(DataLoader(Plain(), 8), 20, labels, name="probe")


def test_each_set_has_its_own_way_to_the_images() -> None:
    probe = DataLoader([{"left": row(i), "right": row(i)} for i in range(COUNT)], 8)
    reference = DataLoader([(row(i), row(i)) for i in range(COUNT)], 8)
    ways = {"probe": lambda b: b["right"], "reference": lambda b: 2 * b[1]}
    monitor = DensityMonitor(probe, reference=reference, batch_to_images=ways)
    assert torch.equal(monitor.images, images(COUNT, 3))
    assert torch.equal(monitor.reference.sort(0)[0], 2 * images(COUNT, 3).sort(0)[0])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="of `probe`: KeyError: 'left_'"):
        DensityMonitor(probe, batch_to_images={"probe": lambda b: b["left_"]})
    with pytest.raises(ValueError, match="of `reference`: IndexError"):
        DensityMonitor(images(), reference=reference, batch_to_images=lambda b: b[3])
    with pytest.raises(TypeError, match=r"`ood\['far'\]`: no images found .*\{left: float32"):
        DensityMonitor(images(), ood={"far": probe}, batch_to_images={"probe": batch_images})
    with pytest.raises(ValueError, match="keys probe, reference, ood, got 'train'"):
        DensityMonitor(images(), batch_to_images={"train": batch_images})
    with pytest.raises(TypeError, match=r"`batch_to_images\['ood'\]` must be callable, got int"):
        DensityMonitor(images(), batch_to_images={"ood": 3})
