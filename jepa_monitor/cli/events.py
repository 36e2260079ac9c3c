"""Event files of the past: in go curves and pictures with the time they are of, out comes what TensorBoard reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from jepa_monitor.callbacks.logging import png_summary

__all__ = ["EVENTS", "DatedEvents", "move_events"]

EVENTS = "events.out.tfevents.*"


class DatedEvents:
    """A logger, as :mod:`jepa_monitor.callbacks.logging` takes one, that dates what it writes.

    Args:
        folder: Where the event file goes.

    Attributes:
        time: When what is written now was so, in seconds since 1970; ``None`` for now.
    """

    def __init__(self, folder: Path) -> None:
        self.time: float | None = None
        self._writer: Any = SummaryWriter(str(folder))

    @property
    def experiment(self) -> DatedEvents:
        """What writes."""
        return self

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write numbers.

        Args:
            metrics: By tag.
            step: The x-coordinate.
        """
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step, walltime=self.time)

    def add_histogram(self, tag: str, values: Any, global_step: int, bins: Any) -> None:
        """Write a histogram.

        Args:
            tag: Its tag.
            values: (n,).
            global_step: The x-coordinate.
            bins: Edges.
        """
        self._writer.add_histogram(tag, values, global_step, bins=bins, walltime=self.time)

    def add_png(self, tag: str, png: bytes, global_step: int) -> None:
        """Write a picture as it is.

        Args:
            tag: Its tag.
            png: A PNG file.
            global_step: The x-coordinate.
        """
        summary = png_summary(tag, png)
        self._writer.file_writer.add_summary(summary, global_step, walltime=self.time)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> None:
        """Write words.

        Args:
            tag: Their tag.
            text_string: Markdown.
            global_step: The x-coordinate.
        """
        self._writer.add_text(tag, text_string, global_step, walltime=self.time)

    def add_custom_scalars(self, layout: Mapping[str, Any]) -> None:
        """Write how to arrange the curves.

        Args:
            layout: As TensorBoard has it.
        """
        self._writer.add_custom_scalars(layout)

    def close(self) -> None:
        """Bring all to the disk."""
        self._writer.close()


def move_events(source: Path, target: Path) -> None:
    """Put event files in the place of those of an earlier telling.

    Args:
        source: Folder of the new ones; removed.
        target: Folder of the old ones.
    """
    old = list(target.glob(EVENTS))
    for file in source.glob(EVENTS):
        file.replace(target / file.name)
    for file in old:
        file.unlink(missing_ok=True)
    source.rmdir()
