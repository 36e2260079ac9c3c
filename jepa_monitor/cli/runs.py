"""Work that survives its process: in go results batch by batch, out come those of all processes.

Every batch is a file of its own that is whole or not there, so a run that is killed loses the batch
it was at. A manifest says what the batches are results of; another run does not mix with them.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa_monitor._files import write_bytes
from jepa_monitor.cli.errors import RefusedError

__all__ = ["Part", "Run", "check_same"]

_MANIFEST = "manifest.json"


class Part(NamedTuple):
    """What a batch gave.

    Args:
        arrays: By name, one entry an image that could be read.
        problems: One an image that could not.
    """

    arrays: dict[str, np.ndarray[Any, Any]]
    problems: list[dict[str, Any]]


class Run:
    """The unfinished work on one table.

    Args:
        folder: Where its files are; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run away from the folder; a lock that ends with its process.

        Yields:
            Nothing.

        Raises:
            RefusedError: If another run is at work.
        """
        try:
            import fcntl
        except ImportError:  # Windows; two runs at once do no more than each other's work there
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RefusedError(f"another process is at work on {self.folder}.") from error
            yield

    def claim(self, identity: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
        """Begin, or go on with what has been begun.

        Args:
            identity: What must not have changed since.
            planned: What is decided at the beginning and kept.

        Returns:
            ``planned`` as it was at the beginning.
        """
        path = self.folder / _MANIFEST
        if path.exists():
            before = json.loads(path.read_text())
            check_same(before["identity"], identity, f"the unfinished run in {self.folder}")
            kept: dict[str, Any] = before["planned"]
            return kept
        content = {"identity": identity, "planned": planned}
        write_bytes(path, json.dumps(content, indent=1).encode())
        return planned

    def write(self, phase: str, batch: int, part: Part) -> None:
        """Keep what a batch gave.

        Args:
            phase: Of the work.
            batch: Its number.
            part: What to keep.
        """
        stream = io.BytesIO()
        problems = np.frombuffer(json.dumps(part.problems).encode(), dtype=np.uint8)
        # Not allow_pickle=False: numpy before 2.1 would store it as one of the arrays.
        arrays: dict[str, Any] = {**part.arrays, "__problems__": problems}
        np.savez(stream, **arrays)
        write_bytes(self._place(phase, batch), stream.getvalue())

    def read(self, phase: str, batch: int) -> Part | None:
        """Read what a batch gave.

        Args:
            phase: Of the work.
            batch: Its number.

        Returns:
            What was kept; ``None`` if it is not done, or its file is damaged.
        """
        try:
            with np.load(self._place(phase, batch), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        problems = json.loads(arrays.pop("__problems__").tobytes())
        return Part(arrays, problems)

    def missing(self, phase: str, batches: int) -> list[int]:
        """List the batches that are still to be done.

        Args:
            phase: Of the work.
            batches: How many there are.

        Returns:
            Their numbers.
        """
        return [batch for batch in range(batches) if self.read(phase, batch) is None]

    def collect(self, phase: str, batches: int) -> Part:
        """Join all batches of a phase.

        Args:
            phase: Of the work.
            batches: How many there are.

        Returns:
            All of them, in order.

        Raises:
            RuntimeError: If one is missing.
        """
        parts = [self.read(phase, batch) for batch in range(batches)]
        whole = [part for part in parts if part is not None]
        if len(whole) < batches:
            raise RuntimeError(
                f"{batches - len(whole)} of {batches} batches of {self.folder / phase} are damaged "
                "or missing: run the same command again to do them over."
            )
        filled = [part.arrays for part in whole if part.arrays]
        names = filled[0] if filled else {}
        arrays = {name: np.concatenate([each[name] for each in filled]) for name in names}
        return Part(arrays, [problem for part in whole for problem in part.problems])

    def clear(self) -> None:
        """Forget what has been done."""
        with suppress(FileNotFoundError):
            (self.folder / _MANIFEST).unlink()  # first: half a folder must not look like a run
        for phase in self.folder.glob("*"):
            if phase.is_dir():
                shutil.rmtree(phase)

    def remove(self) -> None:
        """Delete the work; to be called once its result lies elsewhere."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, phase: str, batch: int) -> Path:
        return self.folder / phase / f"{batch:08d}.npz"


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Refuse to go on if anything has changed.

    Args:
        before: Identity of what is there.
        now: Identity of what is asked for.
        what: What is there, in words.

    Raises:
        RefusedError: If they differ; says in what.
    """
    changes = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            said = name in ("options", "settings")  # by the user, under these names
            changes += [
                f"{f'`{key}`' if said else f'{name}.{key}'}: "
                f"{_short(old.get(key))} → {_short(new.get(key))}"
                for key in keys
            ]
        else:
            changes.append(f"{name}: {_short(old)} → {_short(new)}")
    if changes:
        raise RefusedError(
            f"{what} is of other settings ({'; '.join(changes)}). Use the same, another `out`, or "
            "`overwrite` to begin again."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}…"
