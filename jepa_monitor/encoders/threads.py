"""How many threads to compute with: in goes some work, out comes all of them or one.

Threads that wait for one another make small computations many times slower where other processes
keep the cores busy (``benchmarks/threads.py``). How busy they are cannot be known beforehand, so it is
tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["faster_threads", "using_threads"]

_HOPELESS = 5  # times as slow as one thread: no warming up is to blame


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute with a number of threads on the CPU.

    Args:
        count: The number.

    Yields:
        Nothing; on exit it is what it was.
    """
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def faster_threads(work: Callable[[], object]) -> int:
    """Find out whether all threads do some work sooner than one.

    Args:
        work: On the CPU; repeatable. It is done three or four times, or never if there is one thread.

    Returns:
        The number of threads in force, or 1.
    """
    every = torch.get_num_threads()
    if every == 1:
        return 1
    seconds: dict[int, list[float]] = {1: [], every: []}
    for count in (1, 1, every, every):  # of two, the first may have to warm up
        with using_threads(count):
            started = time.perf_counter()
            work()
            seconds[count].append(time.perf_counter() - started)
        if seconds[every] and seconds[every][0] > _HOPELESS * min(seconds[1]):
            break
    return 1 if min(seconds[1]) < min(seconds[every]) else every
