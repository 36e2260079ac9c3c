"""The page of a run beside its logs: in goes what a watch remembers of a run, out comes ``run.html``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_monitor._files import write_bytes
from jepa_monitor.insights.spectrum import plot_spectra
from jepa_monitor.monitor.closing import close_run
from jepa_monitor.monitor.report import Report
from jepa_monitor.monitor.run_page import RUN_PAGE, RunRecord, merge_looks, run_page
from jepa_monitor.monitor.watch import Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures_of", "say_verdict", "without_prefix", "write_page"]


def figures_of(report: Report, memory: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw a look, and the mean spectra of up to a dozen looks.

    Args:
        report: Of the look.
        memory: Of the run, which has the spectra.

    Returns:
        Figures by tag.
    """
    spectra = memory.get("spectra")
    fan = {"jacobian/spectra": plot_spectra(spectra, report.look.options.eps)} if spectra else {}
    return report.figures() | fan


def without_prefix(looks: Iterable[Mapping[str, float]], prefix: str) -> list[dict[str, float]]:
    """Take the callback's prefix from the tags of looks.

    Args:
        looks: Scalars by tag, with ``step``.
        prefix: Of all other tags.

    Returns:
        The same under the tags of the documents.
    """
    return [{tag.removeprefix(prefix): value for tag, value in look.items()} for look in looks]


def say_verdict(stories: Sequence[Watch], name: str, tell: Callable[[str], object]) -> None:
    """Say the verdict on the run; the run is sound, whatever the words lack: what goes wrong is a warning.

    Args:
        stories: Of the run, the main one first, and of others that share its tags.
        name: The prefix of all tags, if they have one.
        tell: Takes the run's state, since when, why, and which checkpoint to keep.
    """
    try:
        tell(str(close_run(*_told_of(stories, name))))
    except Exception as error:  # noqa: BLE001 - a story of another version, a logger of somebody's own
        _warn_of(stories[0], "say the verdict on the run", error)


def write_page(
    stories: Sequence[Watch],
    name: str,
    rest: Callable[[], Mapping[str, Any]],
    folder: Path | None,
    called: str = "",
    takers: Iterable[Callable[[str, str], object]] = (),
) -> Path | None:
    """Write the page of a run; the run is sound, whatever a page lacks: what goes wrong is a warning.

    Args:
        stories: Of the run, the main one first, and of others that share its tags.
        name: The prefix of all tags, if they have one; the page is ``run-NAME.html`` then.
        rest: Makes what else a :class:`~jepa_monitor.monitor.run_page.RunRecord` holds: settings,
            insights, pictures.
        folder: Of the logs; ``None`` if they are in none.
        called: What people call the run; default: the folder.
        takers: Who else takes the page, a file's name and its text.

    Returns:
        Its path; ``None`` if there is no folder, or if something could not be written.
    """
    called = called or str(folder)
    plain = re.sub(r"[^\w.-]+", "_", name)
    file = f"run-{plain}.html" if name else RUN_PAGE
    try:
        looks, cause = _told_of(stories, name)
        record = RunRecord(
            f"{called} ({name})" if name else called,
            None if folder is None else str(folder),
            looks,
            cause=cause,
            **rest(),
        )
        page = run_page([record])
        place = None if folder is None else folder / file
        if place is not None:
            write_bytes(place, page.encode())
        for take in takers:
            take(file, page)
    except Exception as error:  # noqa: BLE001 - a full disk, an insight or a logger of somebody's own
        _warn_of(stories[0], "write the page of the run", error)
        return None
    return place


def _warn_of(story: Watch, what: str, error: Exception) -> None:
    story.say(f"{story.who} could not {what}: {type(error).__name__}: {error}")


def _told_of(stories: Sequence[Watch], name: str) -> tuple[list[dict[str, float]], str | None]:
    """Give the looks of all stories, one a step, and what the alarm said when it last began."""
    prefix = f"{name}/" if name else ""
    looks = (look for story in reversed(stories) for look in without_prefix(story.history, prefix))
    causes = [c for story in stories if (c := story.memory.get("cause")) is not None]
    return merge_looks(looks), causes[0] if causes else None
