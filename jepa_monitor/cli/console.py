"""What people see while they wait: in go phases and texts, out come bars and lines on a terminal."""

from __future__ import annotations

import io
import os
import sys
import time

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

__all__ = ["Bars", "printed", "stderr_console"]


def stderr_console() -> Console:
    """Open standard error under a number of its own: libtiff's is turned aside while it decodes.

    Returns:
        A console.
    """
    try:
        return Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1))
    except (OSError, io.UnsupportedOperation):  # somebody else's stream
        return Console(stderr=True)


def printed(what: RenderableType, console: Console | None = None) -> None:
    """Print a text as it is, or a table.

    Args:
        what: It.
        console: Where; default: standard output.
    """
    console = console or Console()
    if isinstance(what, str):
        console.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(what)


class Bars:
    """A progress bar for each phase, with images a second in this session and time left.

    Args:
        console: Where.
        disable: Show nothing.
    """

    def __init__(self, console: Console, disable: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=disable,
        )
        self._tasks: dict[str, tuple[TaskID, int, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._progress.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        """Move a bar; see :data:`~jepa_monitor.cli.phases.Progress`.

        Args:
            phase: Its name.
            done: Images done.
            total: Images of all.
        """
        now = time.perf_counter()
        self._progress.start()  # not before there is anything to show
        if phase not in self._tasks:
            task = self._progress.add_task(phase, total=total, completed=done, rate="")
            self._tasks[phase] = (task, done, now)
            return
        task, before, started = self._tasks[phase]
        rate = f"{(done - before) / max(now - started, 1e-9):.1f}/s"
        self._progress.update(task, completed=done, rate=rate)
