"""Budgets, what a graph takes, and chunks that fit: compared with what can be counted by hand."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from jepa_monitor.jacobian.engine import plan
from jepa_monitor.jacobian.memory import adaptive_chunks, default_budget, graph_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "expected"), [(2 * GIB, GIB // 2), (100 * GIB, GIB), (4096, 1024)]
)
def test_a_quarter_of_what_is_free_but_a_gibibyte_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    sizes = {"SC_AVPHYS_PAGES": free // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert default_budget(torch.device("cpu")) == expected


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_a_system_that_does_not_say_gets_a_gibibyte(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def sysconf(name: str) -> int:
        raise error(name)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert default_budget(torch.device("cpu")) == GIB


def test_memory_that_pytorch_holds_but_does_not_use_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 6 * GIB)
    assert default_budget(torch.device("cuda")) == 8 * GIB


def test_what_a_graph_holds() -> None:
    leaf = torch.randn(3, 50, requires_grad=True)
    weight = torch.randn(50, 20, requires_grad=True)
    numbers = {
        "exp keeps its output": (leaf.exp, 150),
        "two outputs": (lambda: leaf.exp().tanh(), 300),
        "a square keeps its input once": (lambda: leaf * leaf, 150),
        "a sum keeps nothing": (lambda: leaf + 1, 0),
        "a product keeps both factors": (lambda: leaf @ weight, 150 + 1000),
    }
    for name, (forward, expected) in numbers.items():
        assert graph_bytes(forward, set()) == 4 * expected, name
    product = graph_bytes(lambda: leaf @ weight, {weight.untyped_storage().data_ptr()})
    assert product == 4 * 150
    view = graph_bytes(lambda: leaf[:, :10].exp() * leaf.detach()[:, :10], set())
    assert view == 4 * (30 + 150)  # of a view, the storage that it keeps alive


@pytest.mark.parametrize("budget", [10**power for power in range(2, 9)])
@pytest.mark.parametrize(("rows", "width"), [(8, 48), (48, 48), (100, 48), (16, 3072)])
@pytest.mark.parametrize("graph", [0, 1000, 10**6])
def test_a_plan_fits_its_budget_and_fills_it(
    budget: int, rows: int, width: int, graph: int
) -> None:
    def takes(images: int, kept: int) -> int:
        """The graph and what a pass adds, input, leaf and gradient, three Grams; and the rows."""
        rank = min(rows, width)
        return images * (2 * graph + 3 * 4 * width + 3 * 8 * rank**2 + kept * 4 * width)

    images, block = plan(torch.zeros(1, width), graph, rows, budget)
    assert images >= 1
    assert 1 <= block <= rows
    if block == rows:
        assert images == 1 or takes(images, rows) <= budget
        assert takes(images + 1, rows) > budget
    else:
        assert images == 1
        assert block == 1 or takes(1, block) <= budget
        assert takes(1, block + 1) > budget


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
)
def test_chunks_that_do_not_fit_are_halved_and_stay_small(error: Exception) -> None:
    done: list[tuple[int, int]] = []

    def work(part: slice) -> None:
        if part.stop - part.start > 3:
            raise error
        done.append((part.start, part.stop))

    sizes = [size for _, size in adaptive_chunks(11, 9, work)]
    assert done == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    assert sizes == [2] * 6


def test_a_short_last_chunk_halves_what_it_holds() -> None:
    tried: list[int] = []

    def work(part: slice) -> None:
        tried.append(part.stop - part.start)
        if part.start == 8 and part.stop - part.start > 1:
            raise MemoryError

    list(adaptive_chunks(11, 8, work))
    assert tried == [8, 3, 1, 1, 1]


def test_tensors_are_free_when_a_smaller_chunk_is_tried() -> None:
    import weakref

    left: list[weakref.ref[Tensor]] = []

    def work(part: slice) -> None:
        assert all(found() is None for found in left)
        tensor = torch.empty(10)
        left.append(weakref.ref(tensor))
        if part.stop - part.start > 1:
            raise MemoryError

    assert len(list(adaptive_chunks(4, 4, work))) == 4
