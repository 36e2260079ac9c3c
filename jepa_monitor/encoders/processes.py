"""Share work among processes: in goes what one of them does, out comes what all have found."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

__all__ = ["Processes"]

_T = TypeVar("_T")
_KEPT_KINDS = {kind.__name__: kind for kind in (TypeError, ValueError, MemoryError)}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


class Processes:
    """The processes that evaluate together.

    Every method is for all of them to call, in the same order. A failure in one is an error in all,
    so that none of them waits for one that has gone on to something else.

    Args:
        together: Whether the processes of ``torch.distributed`` share the work, where it is
            initialised; by itself otherwise.
    """

    def __init__(self, together: bool) -> None:
        together = together and distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if together else 1
        self.rank = distributed.get_rank() if together else 0

    def agree(self, work: Callable[[], _T]) -> _T:
        """Do something in every process, or in none.

        Args:
            work: What to do; calls no method of this object.

        Returns:
            What this process's work returned.

        Raises:
            RuntimeError: If the work failed in another process; ``TypeError``, ``ValueError`` and
                ``MemoryError`` stay what they were. What it raises here is raised here.
        """
        done: list[_T] = []
        self.gather(lambda: done.append(work()))
        return done[0]

    def same(self, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Make tensors in every process, and take the first one's where they differ.

        Args:
            make: Makes them, on the CPU.

        Returns:
            The tensors, the same in all processes.
        """
        if self.count == 1:
            return make()
        made: list[tuple[Tensor, ...]] = []

        def work() -> list[Any]:
            made.append(make())
            return [(t.shape, t.dtype, zlib.crc32(_bytes(t))) for t in made[0]]

        marks = self.gather(work)
        if all(mark == marks[0] for mark in marks):
            return made[0]
        parcel: list[Any] = made if self.rank == 0 else [None]
        distributed.broadcast_object_list(parcel)
        first: tuple[Tensor, ...] = parcel[0]
        return first

    def map(
        self, work: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
    ) -> tuple[Tensor, ...]:
        """Apply a function to images, each process to its share of them.

        Shares are equally large, so that no process has nothing to do and all do the same number of
        passes: where the images do not divide evenly, some are done twice and count once.

        Args:
            work: Takes (b, ...), returns tensors of b entries, one an image.
            images: (B, ...), B ≥ 1, the same in all processes.

        Returns:
            Its results for all images, on the CPU, the same in all processes.
        """
        if self.count == 1:
            return tuple(found.cpu() for found in work(images))
        share = -(-len(images) // self.count)
        mine = (self.rank + self.count * torch.arange(share)) % len(images)
        parts = self.gather(lambda: tuple(found.cpu() for found in work(images[mine])))
        return tuple(
            torch.stack(found, 1).flatten(0, 1)[: len(images)] for found in zip(*parts, strict=True)
        )

    def gather(self, work: Callable[[], _T]) -> list[_T]:
        """Do something in every process, and hand all results to everybody.

        Args:
            work: What to do; calls no method of this object. Its result can be pickled.

        Returns:
            What it returned, in the order of the processes.

        Raises:
            RuntimeError: If the work failed in another process, as for :meth:`agree`.
        """
        if self.count == 1:
            return [work()]
        result: _T | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised below, once the others know of it
            error = caught
        failure = None if error is None else (type(error).__name__, str(error))
        answers: list[Any] = [None] * self.count
        distributed.all_gather_object(answers, (result, failure))
        if error is not None:
            raise error
        for rank, (_, failed) in enumerate(answers):
            if failed is not None:
                kind, message = failed
                raise _KEPT_KINDS.get(kind, RuntimeError)(
                    f"process {rank} failed with {kind}: {message}"
                )
        return [answer for answer, _ in answers]
