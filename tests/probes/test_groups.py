"""Groups of images: found in batches of any kind, numbered alike everywhere."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images
from torch.utils.data import DataLoader

from jepa_monitor import DensityMonitor
from jepa_monitor.probes.groups import check_groups, group_numbers

PATIENTS = [f"patient {i // 3}" for i in range(24)]


class Cases(torch.utils.data.Dataset[Any]):
    def __init__(self, make: Any) -> None:
        self.make, self.images = make, images(24)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return self.make(self.images[index], index // 12, PATIENTS[index])


Case = namedtuple("Case", "image label patient")
SHAPES = {
    "dict": lambda x, y, who: {"image": x, "label": y, "patient": who},
    "inside of a tuple": lambda x, y, who: (x, y, {"patient": who}),
    "inside of a dict": lambda x, y, who: {"image": x, "label": y, "meta": {"patient": who}},
    "named tuple": Case,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_found_beside_images_and_classes(shape: str) -> None:
    data = Cases(SHAPES[shape])
    monitor = DensityMonitor(DataLoader(data, 5), groups="patient", max_probe_samples=2)
    assert torch.equal(monitor.images, data.images)
    assert monitor.labels is not None
    assert monitor.labels.tolist() == [0] * 12 + [1] * 12
    numbers = monitor.groups["patient"]
    assert torch.equal(
        numbers[:, None] == numbers, torch.arange(24)[:, None] // 3 == torch.arange(24) // 3
    )
    again = DensityMonitor(
        DataLoader(data, 7, shuffle=True), groups=["patient"], max_probe_samples=2
    )
    assert set(again.groups["patient"].tolist()) == set(numbers.tolist())


def test_functions_find_what_has_no_name() -> None:
    data = DataLoader(Cases(lambda x, y, who: (x, y, int(who.split()[1]))), 8)
    monitor = DensityMonitor(
        data, groups={"who": lambda batch: batch[2], "half": lambda batch: batch[2] // 4}
    )
    assert monitor.groups["who"].tolist() == [i // 3 for i in range(24)]
    assert monitor.groups["half"].tolist() == [i // 12 for i in range(24)]
    assert DensityMonitor(data).groups == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([[4], [7], [-5]]), [4, 7, -1]),
        (np.array([1, 2, 3], dtype=np.int16), [1, 2, 3]),
        ([2.0, None, np.int64(9)], [2, -1, 9]),
        ([torch.tensor(3), True, 0], [3, 1, 0]),
    ],
)
def test_numbers_stay(values: Any, expected: list[int]) -> None:
    assert group_numbers(values, 3).tolist() == expected


def test_texts_have_one_number_wherever_they_are() -> None:
    first = group_numbers(["a", "b", "a"], 3)
    assert first[0] == first[2] != first[1]
    assert group_numbers(np.array(["b"]), 1)[0] == first[1] == group_numbers((b"b",), 1)[0]
    assert bool((first >= 0).all())


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (3, TypeError, "`groups` must be a name in the batches, .* got 3"),
        ([3], TypeError, "`groups` must be a name in the batches"),
        (torch.arange(3), TypeError, "`groups` must be a name in the batches"),
        (["a", "a"], ValueError, "`groups` must name each group once"),
        ("a/b", ValueError, "`groups` must have names without '/', got 'a/b'"),
        ("", ValueError, "`groups` must have names without '/', got ''"),
        ({"a": 3}, TypeError, r"`groups\['a'\]` must be callable, got int"),
    ],
)
def test_what_cannot_be_is_an_error(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_groups(groups)
    with pytest.raises(error, match=message):
        DensityMonitor(images(8), groups=groups)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        ("doctor", "LookupError: nothing in the batch has the name 'doctor'"),
        ({"x": lambda b: b["label"][:2]}, "they must be one for each of 8 images, got 2"),
        ({"x": lambda b: b["label"] / 2}, "they must be whole numbers or texts, got 0.5"),
        ({"x": lambda b: 5}, "they must be one for each image, got int"),
        ({"x": lambda b: [object()] * 8}, "they must be whole numbers or texts, got object"),
    ],
)
def test_a_probe_without_its_groups_is_an_error(find: Any, message: str) -> None:
    data = Cases(lambda x, y, who: {"image": x, "label": index_of(who) % 2, "patient": who})
    with pytest.raises(ValueError, match=f"`groups.*` failed on a batch .*{message}"):
        DensityMonitor(DataLoader(data, 8), groups=find)


def index_of(who: str) -> int:
    return int(who.split()[1])


def test_a_reference_without_groups_is_said() -> None:
    data = Cases(SHAPES["dict"])
    with pytest.warns(
        UserWarning, match="`groups` names 'patient', which the reference does not have"
    ):
        monitor = DensityMonitor(DataLoader(data, 8), reference=images(40, 1), groups="patient")
    assert monitor.reference_groups == {}
