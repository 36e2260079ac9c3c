"""Labels that stand beside images are found, and what learns from them never sees what it is asked."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Validated, mlp, trainer
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from jepa_monitor import DensityMonitor, JepaScoreCallback

CLASSES = 3


def pictures(count: int, seed: int, apart: float = 0.6) -> tuple[Tensor, Tensor]:
    """Noise around a picture for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return apart * centres[labels] / 4 + noise, labels


def labelled(count: int, seed: int, **options: float) -> TensorDataset:
    return TensorDataset(*pictures(count, seed, **options))


def found(
    probe: Any, reference: Any = None, encoder: Any = None, **settings: Any
) -> dict[str, float]:
    monitor = DensityMonitor(probe, reference=reference, max_probe_samples=2, **settings)
    scalars = monitor.evaluate(encoder or nn.Flatten()).scalars
    return {tag: x for tag, x in scalars.items() if tag.startswith("quality/")}


def votes(known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> float:
    (x, y), (q, t) = ((z.flatten(1).numpy(), labels.numpy()) for z, labels in (known, asked))
    k = min(20, len(x))
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    return float(model.fit(x, y).score(q, t))


def test_training_images_teach_and_the_whole_probe_is_asked() -> None:
    scalars = found(labelled(90, 1), labelled(120, 2))
    expected = votes(pictures(120, 2), pictures(90, 1))
    assert scalars["quality/knn"] == pytest.approx(expected)
    assert scalars["quality/knn_pixels"] == pytest.approx(expected)  # which the encoder copies
    assert 0.4 < expected < 0.95
    assert {f"quality/{name}" for name in ("linear", "few_shot_1", "few_shot_10")} <= set(scalars)


class Dicts(Dataset):  # type: ignore[type-arg]
    """Two views and a label, as a data set of Hugging Face's would have them."""

    def __len__(self) -> int:
        return 90

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = (part[index] for part in pictures(90, 1))
        return {"views": [image, image.flip(-1)], "label": int(label)}


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(TensorDataset(*pictures(90, 1)))


SOURCES = {
    "loader": lambda: DataLoader(labelled(90, 1), batch_size=7, shuffle=True),
    "dicts of views": Dicts,
    "stream": Stream,
    "list of batches": lambda: list(DataLoader(labelled(90, 1), batch_size=30)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_labels_are_found_as_images_are(name: str) -> None:
    assert found(SOURCES[name](), labelled(120, 2)) == found(labelled(90, 1), labelled(120, 2))


class Wrapped(Dataset):  # type: ignore[type-arg]
    """The same images in another object."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.parts = images, labels

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.parts[0][index], int(self.parts[1][index])


def test_an_image_that_taught_is_not_asked() -> None:
    # Noise and classes have nothing to do with each other: only an image itself knows its class.
    probe = labelled(90, 1, apart=0.0)
    alone = found(probe)
    assert alone["quality/knn"] < 0.6
    wide = {"max_embedding_samples": 90}
    assert found(probe, probe, **wide) == alone
    assert found(DataLoader(probe, 8), probe, **wide) == alone
    assert found(Subset(probe, range(90)), probe, **wide) == alone
    halves = Subset(probe, range(45)), Subset(probe, range(45, 90))
    expected = votes(*(tuple(x[i] for x in probe.tensors) for i in (slice(45, 90), slice(45))))
    assert found(*halves)["quality/knn"] == pytest.approx(expected)
    again = Wrapped(*(torch.cat([x, y]) for x, y in zip(
        pictures(90, 1, apart=0.0), pictures(90, 2, apart=0.0), strict=True)))  # fmt: skip
    expected = votes(pictures(90, 2, apart=0.0), pictures(90, 1, apart=0.0))
    assert found(probe, again)["quality/knn"] == pytest.approx(expected)


def test_where_training_images_do_not_teach_all_classes_half_of_the_probe_does() -> None:
    probe = labelled(90, 1)
    alone = found(probe)
    images, labels = pictures(90, 2)
    assert found(probe, images) == alone  # without labels
    assert found(probe, TensorDataset(images[labels > 0], labels[labels > 0])) == alone
    assert (
        found(pictures(90, 1)[0], images, labels=pictures(90, 1)[1]) == alone
    )  # of the probe only
    assert 0.4 < alone["quality/knn"] < 0.95


def test_images_without_a_class_are_left_out() -> None:
    images, labels = pictures(120, 2)
    some = torch.where(torch.arange(120) % 4 == 0, -100, labels)
    expected = votes((images[some >= 0], labels[some >= 0]), pictures(90, 1))
    assert found(labelled(90, 1), TensorDataset(images, some))["quality/knn"] == pytest.approx(
        expected
    )
    asked = torch.where(torch.arange(90) < 30, -1, pictures(90, 1)[1])
    probe = TensorDataset(pictures(90, 1)[0], asked)
    expected = votes(pictures(120, 2), tuple(x[30:] for x in pictures(90, 1)))
    assert found(probe, labelled(120, 2))["quality/knn"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "labels",
    {
        "an index": torch.arange(90),
        "pairs": torch.arange(90) // 2,
        "one class": torch.zeros(90).long(),
        "unknown": torch.full((90,), -1),
        "numbers": torch.arange(90) % 3 / 2,
        "boxes": torch.ones(90, 4).long(),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_class_is_no_label(labels: tuple[str, Tensor]) -> None:
    few = found(TensorDataset(pictures(90, 1)[0], labels[1]))
    assert (few == {}) == (labels[0] != "pairs")  # 45 classes of two are classes, if barely


def test_labels_can_be_refused_and_shown() -> None:
    probe, reference = labelled(90, 1), labelled(120, 2)
    assert found(probe, reference, labels=None) == {}
    assert found(probe, reference, labels=lambda batch: batch[1]) == found(probe, reference)
    swapped = found(probe, reference, labels=lambda batch: 5 - batch[1])
    assert swapped["quality/linear"] == found(probe, reference)["quality/linear"]
    with pytest.raises(ValueError, match=r"`labels` failed .* KeyError"):
        found(probe, labels=lambda batch: {}["class"])
    with pytest.raises(ValueError, match=r"`labels` failed .* whole numbers, got fractions"):
        found(probe, labels=lambda batch: batch[1] / 2)
    with pytest.raises(
        ValueError, match=r"at least 2 classes, each of .* a different one for each"
    ):
        found(TensorDataset(pictures(9, 1)[0], torch.arange(9)), labels=lambda batch: batch[1])


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * 0 + 2


class Unlucky(nn.Module):
    """NaN for some images."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        return torch.where(z[:, :1] > 1, torch.nan, z)


def test_constant_embeddings_are_as_good_as_chance() -> None:
    images, labels = pictures(120, 2)
    labels[:20] = 2
    scalars = found(labelled(90, 1), TensorDataset(images, labels), Constant())
    chance = (pictures(90, 1)[1] == 2).double().mean().item()
    for name in ("chance", "knn", "linear"):
        assert scalars[f"quality/{name}"] == pytest.approx(chance), name


def test_embeddings_that_are_not_finite_are_left_out() -> None:
    scalars = found(labelled(90, 1), labelled(120, 2), Unlucky())
    sound = [
        [part[x[:, 0, 0, 0] <= 1] for part in (x, y)]
        for x, y in (pictures(120, 2), pictures(90, 1))
    ]
    assert scalars["quality/knn"] == pytest.approx(votes(*sound))


@pytest.mark.parametrize("given", ["nothing", "other images", "the training data"])
def test_the_callback_finds_labels_in_the_trainer_s_data(
    tmp_path: pathlib.Path, given: str
) -> None:
    # What training sees may be cropped and coloured, which raw pixels have not learned to overlook.
    training = labelled(60, 2)
    reference = {"other images": labelled(60, 3), "the training data": training}.get(given)
    callback = JepaScoreCallback(reference=reference, max_overhead=None, max_probe_samples=2)
    loaders = DataLoader(training, 20), DataLoader(labelled(60, 1), 20)
    trainer(tmp_path, [callback], max_epochs=1).fit(Validated(), *loaders)
    expected = votes(pictures(60, 3), pictures(60, 1))
    if given != "other images":
        expected = found(labelled(60, 1))["quality/knn_pixels"]
    assert [look["quality/knn_pixels"] for look in callback.history] == [
        pytest.approx(expected)
    ] * 2
    assert callback.history[0]["quality/knn"] != callback.history[1]["quality/knn"]
    assert callback.failures == 0


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.5, 0.6, "better"), (0.1, 0.2, "worse"), (0.3, 0.5, "")]
)
def test_the_verdict_compares_with_pixels(low: float, high: float, words: str) -> None:
    report = DensityMonitor(labelled(30, 1), max_probe_samples=2).evaluate(mlp(192))
    scalars = {"quality/knn_low": low, "quality/knn_high": high, "quality/knn_pixels": 0.4}
    (quality,) = (insight for insight in report.insights if insight.name == "quality")
    said = quality.says(scalars)
    assert words in said
    assert bool(said) == bool(words)
