"""Sources whose images say which they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from helpers import images
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

COUNT = 24


def row(index: int) -> Tensor:
    """An image that says which one it is."""
    return images(COUNT, 3)[index]


class Plain(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return row(index), index % 3


class Sampler:
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(
            torch.randperm(COUNT, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        )


class Batches(IterableDataset):  # type: ignore[type-arg]
    """Batches itself, as WebDataset does with `.batched(8)`."""

    def __init__(self, labelled: bool = True) -> None:
        self.labelled = labelled

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, COUNT, 8):
            found = images(COUNT, 3)[start : start + 8]
            yield (found, torch.arange(8) % 3) if self.labelled else (found,)


class Whole(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return ((row(index), index % 3) for index in range(COUNT))
