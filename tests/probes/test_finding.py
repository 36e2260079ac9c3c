"""Which tensor of a batch is the images, and which the labels: other libraries' batches."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_monitor.probes import batch_images, batch_labels

X = torch.rand(4, 3, 8, 8)
VIEW, SMALL = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 4, 4)
INDEX, LABEL = torch.arange(4), torch.tensor([0, 1, 0, 1])


@dataclasses.dataclass
class Fields:
    index: Tensor
    images: Tensor
    labels: Tensor


class Crops(NamedTuple):
    large: tuple[Tensor, ...]
    small: tuple[Tensor, ...]


# Batch, its images, and its labels if it has any.
BATCHES: dict[str, tuple[Any, Tensor, Tensor | None]] = {
    "tensor": (X, X, None),
    "image, label": ([X, LABEL], X, LABEL),
    "image, label (B, 1)": ((X, LABEL[:, None]), X, LABEL),
    "vectors, label": ([X.flatten(1), LABEL], X.flatten(1), LABEL),
    "views, label": ([[X, VIEW], LABEL], X, LABEL),
    "index, views, label": ([INDEX, [X, VIEW, SMALL], LABEL], X, LABEL),
    "views, label, file names": ([[X, VIEW], LABEL, ["a", "b", "c", "d"]], X, LABEL),
    "image, label, index": ([X, LABEL, INDEX], X, LABEL),
    "names first": ([["a", "b", "c", "d"], X, LABEL], X, LABEL),
    "views of stable-pretraining": ({"views": [{"image": X, "label": LABEL}, {"image": VIEW, "label": LABEL}]}, X, LABEL),
    "named views": ({"views": {"global": {"image": X}, "local": {"image": SMALL}}, "label": LABEL}, X, LABEL),
    "views under other names": ({"global_1": {"image": X}}, X, None),
    "Hugging Face": ({"pixel_values": X, "labels": LABEL}, X, LABEL),
    "masked": ({"bool_masked_pos": torch.ones(4, 9, dtype=torch.bool), "pixel_values": X}, X, None),
    "the one tensor of a dict": ({"sample": X, "index": INDEX}, X, None),
    "DINOv2": ({"collated_global_crops": X, "collated_local_crops": SMALL, "collated_masks": torch.ones(4, 9, dtype=torch.bool), "masks_weight": torch.rand(7)}, X, None),
    "I-JEPA": (([X, LABEL], [torch.zeros(4, 5, dtype=torch.long)], [torch.zeros(4, 6, dtype=torch.long)]), X, LABEL),
    "V-JEPA": ([([[X, VIEW]], LABEL, [INDEX]), [torch.zeros(4, 5, dtype=torch.long)]], X, LABEL),
    "dataclass": (Fields(INDEX, X, LABEL), X, LABEL),
    "named tuple": ([Crops((X, VIEW), (SMALL,)), LABEL], X, LABEL),
    "several loaders": ({"a": [X, LABEL]}, X, None),
    "numbers before": ([3, None, "name", X], X, None),
    "video": ({"video": X[:, :, None]}, X[:, :, None], None),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_images_and_labels_of(name: str) -> None:
    batch, images, labels = BATCHES[name]
    assert batch_images(batch) is images or torch.equal(batch_images(batch), images)
    found = batch_labels(batch)
    if labels is None:
        assert found is None
    else:
        assert found is not None
        assert found.dtype == torch.int64
        assert torch.equal(found, labels)


def test_arrays_are_found_too() -> None:
    assert torch.equal(batch_images({"image": X.numpy(), "label": LABEL.numpy()}), X)
    found = batch_labels([X.numpy(), np.array([0, 1, 0, 1], dtype=np.uint8)])
    assert found is not None
    assert torch.equal(found, LABEL)


def test_bytes_are_images_where_nothing_else_is() -> None:
    pixels = (X * 255).to(torch.uint8)
    assert batch_images([INDEX, pixels, LABEL]) is pixels
    assert torch.equal(batch_labels([INDEX, pixels, LABEL]), LABEL)  # type: ignore[arg-type]


NONE: dict[str, tuple[Any, str]] = {
    "two under unknown names": ({"left": X, "right": VIEW}, r"\{left: float32 \(4, 3, 8, 8\), right"),
    "labels only": ([INDEX, LABEL], r"\[int64 \(4,\), int64 \(4,\)\]"),
    "nothing": ([], "a batch of type list"),
    "words": (["a", {"b": None}], r"\[str, \{b: NoneType\}\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_a_batch_without_images_is_described(name: str) -> None:
    batch, described = NONE[name]
    with pytest.raises(TypeError, match=described):
        batch_images(batch)
    assert batch_labels(batch) is None


def test_a_class_under_a_name_of_images_does_not_count() -> None:
    assert batch_labels({"image": X, "label": ["cat", "dog", "cat", "dog"]}) is None
    assert batch_labels({"image": X, "label": torch.rand(4)}) is None
    assert batch_labels([X, torch.zeros(4, 7, dtype=torch.long)]) is None
