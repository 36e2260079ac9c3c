"""Fit work into memory: in goes a budget and what one image takes, out come chunks that fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["adaptive_chunks", "default_budget", "graph_bytes", "is_out_of_memory"]

_SHARE = 0.25  # of what is free; the rest belongs to the training run
_CPU_CAP = 2**30  # more brings no speed on a CPU


def default_budget(device: torch.device) -> int:
    """Say how many bytes an evaluation may take beyond the model if the user does not.

    Args:
        device: Where it runs.

    Returns:
        A quarter of the free memory in bytes; at most 1 GiB on a CPU. On CUDA, memory that
        PyTorch holds but does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + unused) * _SHARE)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        free = 4 * _CPU_CAP
    return min(int(free * _SHARE), _CPU_CAP)


def graph_bytes(forward: Callable[[], Tensor], exclude: set[int]) -> int:
    """Measure the memory that the graph of a forward pass holds for the backward pass.

    Args:
        forward: The pass.
        exclude: Addresses of storages that do not count, such as the parameters'.

    Returns:
        Bytes of all distinct saved storages.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in exclude:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself could close a reference cycle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output  # kept until here, so that no address is handed out twice
    return sum(sizes.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Tell errors for want of memory from others.

    Args:
        error: What was raised.

    Returns:
        Whether it is one.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What PyTorch's CPU allocator says on Linux and macOS, and on Windows.
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def adaptive_chunks(
    total: int, chunk: int, work: Callable[[slice], None]
) -> Iterator[tuple[slice, int]]:
    """Run ``work`` over all images, in smaller chunks whenever memory runs out.

    Args:
        total: Number of images.
        chunk: Number of images to start with at a time.
        work: Called with each slice; must be repeatable.

    Yields:
        The slice that was done and the chunk size in force.

    Raises:
        MemoryError: If a single image does not fit.
        RuntimeError: If the work fails for another reason.
    """
    start = 0
    while start < total:
        part = slice(start, min(start + chunk, total))
        failure: str | None = None
        try:
            work(part)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        if failure is not None:  # outside the handler, where the traceback no longer holds tensors
            if chunk == 1:
                raise MemoryError(f"one image does not fit into memory: {failure}")
            chunk = max(1, min(chunk, part.stop - part.start) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield part, chunk
        start = part.stop
