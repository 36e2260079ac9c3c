"""Read data without moving them: in goes a function that draws items, out come the items.

Reading calls other people's code: a data set with a random generator of its own, a collate function
that counts, a loader that remembers where it was. Training must find them as it left them. So the
function runs in a fork of this process, of which nothing comes back but its items.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pathlib
import pickle
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

__all__ = ["Unread", "can_read_apart", "read_apart"]

_T = TypeVar("_T")
_PATIENCE = 120.0  # seconds without an item, after which the process counts as hung
_SHARED_BYTES = 2**31  # of shared memory that a process copies at most


class Unread(Exception):  # noqa: N818 - the cause is the error; this says where it came from
    """The source of the data raised, or the process that read it died or hung."""

    name: str = ""  # of the set, once it is known


def can_read_apart() -> bool:
    """Say whether this system can read data in a fork of the process.

    Returns:
        Whether it is Linux: on macOS a forked process must not use the system's libraries, and
        Windows has none.
    """
    return sys.platform == "linux"


def read_apart(
    draw: Callable[[], Iterable[_T]], patience: float = _PATIENCE
) -> Generator[_T, None, None]:
    """Run a function in another process and hand over its items.

    The other process has copies of everything, what this one shares with its workers included:
    shared memory, such as the counter of a mask collator, and the positions in open files. Outside
    of both are connections (sockets, queues) that were open before.

    Args:
        draw: Makes the items; each must be picklable.
        patience: Seconds to wait for an item.

    Yields:
        The items.

    Raises:
        Unread: If the process cannot be started, dies, hangs, or raises this itself.
        Exception: Whatever else ``draw`` raises.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(draw, receiver, sender), daemon=False)
    try:
        with warnings.catch_warnings():  # of Python 3.12 on, as for every worker of a DataLoader
            warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
            process.start()
    except Exception as error:
        raise Unread(f"no process could be started: {error}") from error
    try:
        sender.close()
        while True:
            kind, item = _receive(receiver, patience, process)
            if kind == "end":
                process.join(1.0)
                return
            if kind == "error":
                raise item
            yield item
    finally:
        receiver.close()
        process.kill()
        process.join()
        process.close()


def _receive(receiver: Connection, patience: float, process: Any) -> tuple[str, Any]:
    if not receiver.poll(patience):
        raise Unread(f"the process that reads gave nothing for {patience:.0f} s")
    try:
        message = receiver.recv_bytes()
    except EOFError:
        process.join(1.0)
        raise Unread(f"the process that reads died (exit code {process.exitcode})") from None
    try:
        kind, item = pickle.loads(message)  # noqa: S301 - from a fork of this process
    except Exception as error:
        raise Unread(f"a batch cannot be unpickled: {type(error).__name__}: {error}") from error
    return kind, item


def _serve(draw: Callable[[], Iterable[Any]], receiver: Connection, sender: Connection) -> None:
    """Be the other process."""
    receiver.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the others of a forked process do not exist
    with contextlib.suppress(BrokenPipeError):  # nobody wants any more
        try:
            _own_files()
            _own_memory()
            for item in draw():
                # Not `send`, which would put tensors into shared memory, of which containers have little.
                sender.send_bytes(_packed_item(item))
            sender.send_bytes(pickle.dumps(("end", None)))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again in the first process
            sender.send_bytes(_packed(error))


def _packed_item(item: Any) -> bytes:
    try:
        return pickle.dumps(("item", item), protocol=5)
    except Exception as error:
        raise Unread(f"a batch cannot be pickled: {type(error).__name__}: {error}") from error


def _packed(error: Exception) -> bytes:
    try:
        packed = pickle.dumps(("error", error))
        pickle.loads(packed)  # noqa: S301 - packed in the line before
    except Exception:  # noqa: BLE001 - errors may hold anything, and be made in any way
        return pickle.dumps(("error", Unread(f"{type(error).__name__}: {error}")))
    return packed


def _own_files() -> None:
    """Open anew what is read from files, whose position a fork shares."""
    import fcntl  # Windows has none

    for number in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - as numbers
        try:
            mode, flags = os.fstat(number).st_mode, fcntl.fcntl(number, fcntl.F_GETFL)
            if not stat.S_ISREG(mode) or flags & os.O_ACCMODE != os.O_RDONLY:
                continue
            own = os.open(f"/proc/self/fd/{number}", os.O_RDONLY)
            os.lseek(own, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(own, number, inheritable=os.get_inheritable(number))
            os.close(own)
        except OSError:  # the listing's own, or one that may not be opened twice
            continue


def _own_memory() -> None:
    """Put a private copy in the place of all memory that can be written by more than one process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    fixed, left = 0x10, _SHARED_BYTES  # MAP_FIXED
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        span, flags, _, _, _, *name = line.split(maxsplit=5)
        if flags[:2] != "rw" or flags[3] != "s" or not name or not _is_memory(name[0]):
            continue
        start, end = (int(address, 16) for address in span.split("-"))
        left -= end - start
        if left < 0:
            raise Unread(f"the process shares more than {_SHARED_BYTES >> 30} GiB of memory")
        contents = ctypes.string_at(start, end - start)
        own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed
        if libc.mmap(start, end - start, mmap.PROT_READ | mmap.PROT_WRITE, own, -1, 0) != start:
            raise Unread(f"mmap failed with error {ctypes.get_errno()}")
        ctypes.memmove(start, contents, end - start)


def _is_memory(name: str) -> bool:
    """Tell memory and files from the devices that are mapped too, such as a GPU."""
    device = name.startswith("/dev/") and not name.startswith(("/dev/shm/", "/dev/zero"))  # noqa: S108
    return name.startswith("/") and not device
