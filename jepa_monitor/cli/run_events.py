"""A run from its event files: in goes a folder, out comes what its page shows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from jepa_monitor.cli.events import EVENTS
from jepa_monitor.insights import Panel
from jepa_monitor.insights.dashboard import dashboard
from jepa_monitor.insights.table import all_insights, tag_pattern
from jepa_monitor.monitor.run_page import RunRecord, keep_ends, merge_looks
from jepa_monitor.monitor.tags import all_rows
from jepa_monitor.monitor.telling import read_settings

__all__ = ["read_run"]

_SIGN = "monitor/images"  # of a look that succeeded
_FOLDERS = 5  # that are named in an error


def read_run(folder: str | Path, name: str | None = None, argument: str = "run") -> RunRecord:
    """Read what callback or replay have written to TensorBoard.

    Args:
        folder: That holds the event files, itself or in one folder below.
        name: Of the callback, the prefix of its tags; default: none, or else the only one.
        argument: What to call ``folder`` in errors.

    Returns:
        The run.

    Raises:
        ValueError: If there are no such event files, or those of several runs.
    """
    found = _Found()
    place = _place(Path(folder), argument)
    for event in _events(place):
        found.take(event)
    prefixes = sorted(tag.removesuffix(_SIGN) for tag in found.scalars if tag.endswith(_SIGN))
    if not prefixes:
        raise ValueError(f"`{argument}`: no look was written to the event files of {str(place)!r}.")
    wanted = prefixes[0] if name is None else f"{name}/"
    if wanted not in prefixes or (name is None and wanted and len(prefixes) > 1):
        names = ", ".join(repr(prefix.rstrip("/")) for prefix in prefixes)
        raise ValueError(f"`name` must be one of {names} in {str(place)!r}, got {name!r}.")
    return found.record(place, wanted)


def _place(folder: Path, argument: str) -> Path:
    """Find the one folder with event files."""
    if not folder.is_dir():
        raise ValueError(f"`{argument}` must be a folder with event files, got {str(folder)!r}.")
    if any(folder.glob(EVENTS)):
        return folder
    below = sorted({file.parent for file in folder.rglob(EVENTS)})
    if not below:
        raise ValueError(f"`{argument}`: there are no event files in {str(folder)!r}.")
    if len(below) > 1:
        some = ", ".join(str(place) for place in below[:_FOLDERS])
        more = ", …" if len(below) > _FOLDERS else ""
        raise ValueError(
            f"`{argument}`: there are {len(below)} runs in {str(folder)!r}: {some}{more}."
        )
    return below[0]


def _events(folder: Path) -> Iterator[Any]:
    """Read all event files, the oldest first; one that a crash has cut off counts up to there."""
    for file in sorted(folder.glob(EVENTS), key=lambda path: (path.stat().st_mtime, path.name)):
        for content in RawEventFileLoader(str(file)).Load():
            yield Event.FromString(content)


class _Found:
    """What events hold; of two at a step the later counts."""

    def __init__(self) -> None:
        self.scalars: dict[str, dict[int, float]] = defaultdict(dict)
        self.pictures: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.words: dict[str, str] = {}  # the last ones
        self.layout = Layout()

    def take(self, event: Any) -> None:
        """Take what an event holds."""
        for value in event.summary.value:
            if value.HasField("simple_value"):
                self.scalars[value.tag][event.step] = value.simple_value
            elif value.HasField("image"):
                keep_ends(self.pictures[value.tag], event.step, value.image.encoded_image_string)
            elif value.HasField("tensor") and value.tensor.string_val:
                self._take_words(value.tag, value.tensor.string_val[0])

    def _take_words(self, tag: str, content: bytes) -> None:
        if tag == "custom_scalars__config__":
            self.layout = Layout.FromString(content)
        elif tag.endswith("/text_summary"):
            self.words[tag.removesuffix("/text_summary")] = content.decode(errors="replace")

    def record(self, folder: Path, prefix: str) -> RunRecord:
        """Make the record of what begins with a prefix."""
        own = len(prefix)
        known = [tag_pattern(tag) for row in all_rows() for tag in row.tags]
        panels = self._panels(prefix)
        known += [re.compile(tag) for panel in panels for tag in panel.tags]
        looks, beside = [], {}
        for tag, points in self.scalars.items():
            bare = tag[own:]
            if tag.startswith(prefix) and any(each.fullmatch(bare) for each in known):
                looks += [{"step": float(step), bare: value} for step, value in points.items()]
            else:
                steps = sorted(points)
                beside[tag] = (steps, [points[step] for step in steps])
        settings = self.words.get(f"{prefix}monitor/settings", "")
        return RunRecord(
            str(folder) if not prefix else f"{folder} ({prefix.rstrip('/')})",
            str(folder),
            merge_looks(looks),
            read_settings(settings),
            {t[own:]: shots for t, shots in self.pictures.items() if t.startswith(prefix)},
            all_insights(),
            panels,
            self.words.get(f"{prefix}monitor/alarm"),
            beside,
        )

    def _panels(self, prefix: str) -> list[Panel]:
        """Read the charts of insights that are not the package's: their healthy bands are not known."""
        layout = dashboard(all_insights())
        ours = {(page, title) for page, charts in layout.items() for title in charts}
        ours |= {(panel.page, panel.title) for found in all_insights() for panel in found.panels}
        found = []
        for page in self.layout.category:
            for chart in page.chart:
                title = (page.title.removeprefix(prefix), chart.title)
                band = chart.HasField("margin")
                tags = (
                    [t for s in chart.margin.series for t in (s.value, s.lower, s.upper)]
                    if band
                    else chart.multiline.tag
                )
                if title not in ours and all(tag.startswith(prefix) for tag in tags):
                    found.append(Panel(*title, tuple(tag[len(prefix) :] for tag in tags), band))
        return found
