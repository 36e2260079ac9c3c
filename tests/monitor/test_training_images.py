"""Training batches as they pass: what is told of them, and that nothing else happens."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Tiny, images, interpreter_settings, loader, mlp, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.monitor.training_images import TrainingImages
from jepa_monitor.probes.finding import batch_views

A, B, SMALL = images(40, 1), images(40, 2), images(40, 3)[..., ::2, ::2]
LABELS = torch.arange(40)
ONE = A[:1].expand(40, -1, -1, -1)


def noisy(batch: Tensor, seed: int, sd: float = 0.3) -> Tensor:
    return batch + sd * torch.randn(batch.shape, generator=torch.Generator().manual_seed(seed))


def told(*batches: Any, ways: Any = None) -> dict[str, float]:
    training = TrainingImages(ways)
    for batch in batches:
        training.see(batch)
    return training.scalars()


@pytest.mark.parametrize(
    "batch",
    [
        [[A, B], LABELS],
        (LABELS, [A, B, SMALL], LABELS),
        {"views": [A, B], "label": LABELS},
        {"views": [{"image": A, "label": LABELS}, {"image": B, "label": LABELS}]},
        {"global_crops": [A, B], "local_crops": [SMALL, SMALL]},
        [[SMALL, A, B], LABELS],
        {"data": LABELS, "crops": (A, B)},
    ],
)
def test_views_are_found_where_a_batch_says_so(batch: Any) -> None:
    found = batch_views(batch)
    assert found is not None
    assert found[0] is A
    assert found[1] is B


@pytest.mark.parametrize(
    "batch",
    [A, [A, B], (A, B, LABELS), [A, LABELS], {"image": A, "mask": B}, [[A, SMALL], LABELS], [[A], LABELS],
     [[LABELS, LABELS], A], [], {"views": A}, [[torch.rand(40, 3), torch.rand(40, 3)], LABELS]],
)  # fmt: skip
def test_no_views_where_they_may_be_something_else(batch: Any) -> None:
    assert batch_views(batch) is None


def test_one_image_is_told_and_many_are() -> None:
    assert told([ONE, LABELS])["data/duplicates_low"] == 1
    assert told([A, LABELS]) == {
        "data/duplicates": 0.0, "data/duplicates_low": 0.0, "data/duplicates_high": 0.0,
    }  # fmt: skip
    bytes_of_one = (ONE * 255).to(torch.uint8)
    assert told(bytes_of_one)["data/duplicates"] == 1


def test_views_of_an_image_are_no_duplicates() -> None:
    healthy = told([[A, noisy(A, 1, 0.01)], LABELS])
    assert healthy["data/duplicates"] == 0
    assert healthy["data/variety_low"] > 0.9


def test_one_image_under_augmentation_is_told_by_its_views() -> None:
    found = told(*([[noisy(ONE, i), noisy(ONE, i + 10)], LABELS] for i in range(4)))
    assert found["data/duplicates"] < 0.1  # no two are alike any more
    assert found["data/variety_high"] < 0.1
    healthy = told(*([[noisy(A, i), noisy(A, i + 10)], LABELS] for i in range(4)))
    assert healthy["data/variety_low"] > 0.2


@pytest.mark.parametrize(
    "batches",
    [[A[:1]] * 5, [A[:7]], [torch.rand(40)], [torch.rand(40, 3)], [{"left": A, "right": B}], ["text"],
     [None], [torch.full((40, 3, 8, 8), float("nan"))], [torch.arange(40)]],
)  # fmt: skip
def test_nothing_is_said_where_nothing_is_known(batches: list[Any]) -> None:
    assert told(*batches) == {}


def test_batches_of_two_add_up() -> None:
    assert told(*(A[i : i + 2] for i in range(0, 40, 2))) == {}  # 16 pairs at most
    assert told(*(ONE[:4] for _ in range(8)))["data/duplicates"] == 1


def test_the_function_that_finds_images_is_asked_and_draws_no_random_numbers() -> None:
    def find(batch: Any) -> Tensor:
        torch.rand(3)
        return batch["odd"]["place"]

    before = interpreter_settings()
    found = told({"odd": {"place": ONE}}, ways={"reference": find})
    assert found["data/duplicates"] == 1
    assert interpreter_settings() == before


def test_a_batch_is_left_as_it_was() -> None:
    batch = A.clone().requires_grad_()
    version = batch._version
    assert told([batch, LABELS])
    assert torch.equal(batch, A)
    assert batch._version == version
    assert batch.grad is None


class Repeating(Dataset):  # type: ignore[type-arg]
    """The fault of half of the loaders that were ever written: the index is not used."""

    def __init__(self, fault: bool) -> None:
        self.data, self.fault = images(48, 4), fault

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return self.data[0 if self.fault else index], index


@pytest.mark.parametrize("fault", [True, False])
@pytest.mark.parametrize("kind", [CollapseCallback, JepaScoreCallback])
def test_a_loader_that_repeats_one_image_is_an_alarm(
    tmp_path: pathlib.Path, kind: Any, fault: bool
) -> None:
    callback = kind(every_n_steps=2, strict=True)
    rang = []
    callback.on_collapse = lambda _, __, reading: rang.append(reading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.seed_everything(1, verbose=False)
        run = trainer(tmp_path, [callback], max_epochs=1)
        run.fit(Tiny(), DataLoader(Repeating(fault), 8), None)
    looks = callback.history
    assert "data/duplicates" not in looks[0]  # before the first step nobody has seen a batch
    assert [look["data/duplicates"] for look in looks[1:]] == [float(fault)] * 3
    assert [look["collapse/alarm"] for look in looks] == [0, 0, float(fault), float(fault)]
    assert len(rang) == fault
    if fault:
        assert rang[0].cause.name == "the training images repeat"
        assert "Look first at the loader" in rang[0].reason


def test_of_two_callbacks_one_tells(tmp_path: pathlib.Path) -> None:
    callbacks = [JepaScoreCallback(every_n_steps=2), CollapseCallback(every_n_steps=2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, list(callbacks), max_epochs=1).fit(Tiny(), loader(32), loader(24, 2))
    assert "data/duplicates" not in callbacks[0].history[-1]
    assert "data/duplicates" in callbacks[1].history[-1]


def test_a_plain_loop_tells_too_and_a_strange_batch_ends_nothing() -> None:
    class Strange:
        def __iter__(self) -> Any:
            raise RuntimeError("read me twice")

    class Trap(dict):  # type: ignore[type-arg]
        def __contains__(self, key: object) -> bool:
            raise RuntimeError("no peeking")

    watch = DensityMonitor(images(20), polarity_samples=0).watch(every_n_steps=1)
    encoder = mlp(192)
    watch(encoder, 0)
    watch.see([ONE, LABELS])
    watch.see(Strange())
    assert watch(encoder, 1).scalars["data/duplicates"] == 1
    assert "data/duplicates" not in watch(encoder, 2).scalars  # nothing passed since
    with pytest.warns(UserWarning, match="cannot tell whether the training images repeat.*peeking"):
        watch.see(Trap())
    watch.see([ONE, LABELS])
    assert "data/duplicates" not in watch(encoder, 3).scalars
    assert watch.failures == 0
    strict = DensityMonitor(images(20), polarity_samples=0).watch(strict=True)
    with pytest.raises(RuntimeError, match="no peeking"):
        strict.see(Trap())
