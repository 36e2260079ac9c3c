"""Processes that share work, played by threads: each sees its part, all see the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_monitor.encoders import Processes, processes


class Group:
    """What ``torch.distributed`` offers, among threads of this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=30)
        self.slots: list[Any] = [None] * count
        self.own = threading.local()
        self.collectives = 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return self.count

    def get_rank(self) -> int:
        rank: int = self.own.rank
        return rank

    def all_gather_object(self, found: list[Any], given: Any) -> None:
        self.slots[self.own.rank] = given
        self.collectives += self.own.rank == 0
        self.barrier.wait()
        found[:] = self.slots
        self.barrier.wait()

    def broadcast_object_list(self, parcel: list[Any]) -> None:
        if self.own.rank == 0:
            self.slots[0] = list(parcel)
        self.barrier.wait()
        parcel[:] = self.slots[0]
        self.barrier.wait()


def together(
    monkeypatch: pytest.MonkeyPatch, count: int, work: Callable[[Processes], Any]
) -> list[Any]:
    """Do something in some processes; give what each returned or raised."""
    group = Group(count)
    monkeypatch.setattr(processes, "distributed", group)
    found: list[Any] = [None] * count

    def one(rank: int) -> None:
        group.own.rank = rank
        try:
            found[rank] = work(Processes(True))
        except Exception as error:  # noqa: BLE001 - what is tested
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 7, 12])
def test_images_are_shared_out_and_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch, count: int, images: int
) -> None:
    given = torch.arange(images * 2.0).view(images, 2)

    def work(shared: Processes) -> tuple[tuple[Tensor, ...], list[int]]:
        seen: list[int] = []

        def one(part: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(len(part))
            return part.square(), part.sum(1)

        return shared.map(one, given), seen

    for (squares, sums), seen in together(monkeypatch, count, work):
        assert torch.equal(squares, given.square())
        assert torch.equal(sums, given.sum(1))
        assert seen == [-(-images // count)]


def test_tensors_that_differ_are_those_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(shared: Processes) -> list[tuple[Tensor, ...]]:
        rank = float(shared.rank)
        return [
            shared.same(lambda: (torch.ones(2), torch.full((3,), rank))),
            shared.same(lambda: (torch.ones(2 + shared.rank),)),
            shared.same(
                lambda: (torch.ones(2, dtype=[torch.float32, torch.float64][shared.rank]),)
            ),
            shared.same(lambda: (torch.arange(4.0),)),
        ]

    for found in together(monkeypatch, 2, work):
        expected = [(torch.ones(2), torch.zeros(3)), (torch.ones(2),), (torch.ones(2),),
                    (torch.arange(4.0),)]  # fmt: skip
        for tensors, wanted in zip(found, expected, strict=True):
            assert all(map(torch.equal, tensors, wanted))
            assert [t.dtype for t in tensors] == [t.dtype for t in wanted]


@pytest.mark.parametrize("kind", [TypeError, ValueError, MemoryError, RuntimeError, KeyError])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_in_one_is_an_error_in_all(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], failing: int
) -> None:
    def work(shared: Processes) -> list[Exception | int]:
        found: list[Exception | int] = []

        def fails(part: Any = None) -> tuple[Tensor, ...]:
            if shared.rank == failing:
                raise kind("no luck")
            return (torch.ones(1),)

        for method in (
            lambda: shared.agree(fails),
            lambda: shared.same(fails),
            lambda: shared.map(fails, torch.ones(3, 1)),
            lambda: shared.gather(fails),
        ):
            with pytest.raises(Exception, match="no luck") as caught:
                method()
            found.append(caught.value)
        found.append(shared.agree(lambda: shared.rank))  # nobody waits for another
        return found

    kept = kind if kind in (TypeError, ValueError, MemoryError) else RuntimeError
    for rank, found in enumerate(together(monkeypatch, 3, work)):
        *errors, last = found
        assert last == rank
        for error in errors:
            assert type(error) is (kind if rank == failing else kept)
            message = f"process {failing} failed with {kind.__name__}: "
            assert str(error).startswith(message) == (rank != failing)


def test_everybody_gets_all_results_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = together(monkeypatch, 3, lambda shared: shared.gather(lambda: shared.rank * 10))
    assert found == [[0, 10, 20]] * 3


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(2)
    group.own.rank = 1
    monkeypatch.setattr(processes, "distributed", group)
    alone = Processes(False)
    assert (alone.count, alone.rank) == (1, 0)
    assert alone.gather(lambda: 3) == [3]
    assert alone.agree(lambda: 4) == 4
    assert torch.equal(alone.same(lambda: (torch.ones(2),))[0], torch.ones(2))
    assert torch.equal(alone.map(lambda x: (x + 1,), torch.ones(2, 1))[0], torch.full((2, 1), 2.0))
    with pytest.raises(KeyError, match="no luck"):
        alone.agree(lambda: {}["no luck"])
    assert group.collectives == 0
