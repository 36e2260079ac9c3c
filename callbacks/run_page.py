"""The page of a run beside its logs: in goes what a callback remembers of a fit, out comes ``run.html``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jepa_monitor._files import write_bytes
from jepa_monitor.monitor.run_page import RUN_PAGE, RunRecord, merge_looks, run_page

__all__ = ["log_folder", "page_of", "without_prefix", "write_record"]


def log_folder(loggers: Iterable[Any]) -> Path | None:
    """Find the folder that belongs to this run alone.

    Args:
        loggers: Lightning's loggers.

    Returns:
        ``log_dir`` of the first that has one on this machine, as TensorBoard's and CSV's do; ``None`` if
        none has.
    """
    for logger in loggers:
        folder = getattr(logger, "log_dir", None)
        if isinstance(folder, (str, Path)) and "://" not in str(folder):
            return Path(folder)
    return None


def page_of(folder: Path, name: str) -> Path:
    """Say where the page goes.

    Args:
        folder: Of the logs.
        name: Of the callback.

    Returns:
        ``run.html``, or ``run-NAME.html``.
    """
    plain = re.sub(r"[^\w.-]+", "_", name)
    return folder / (RUN_PAGE if not name else f"run-{plain}.html")


def without_prefix(looks: Iterable[Mapping[str, float]], prefix: str) -> list[dict[str, float]]:
    """Take the callback's prefix from the tags of looks.

    Args:
        looks: Scalars by tag, with ``step``.
        prefix: Of all other tags.

    Returns:
        The same under the tags of the documents.
    """
    return [{tag.removeprefix(prefix): value for tag, value in look.items()} for look in looks]


def write_record(
    folder: Path, name: str, histories: Sequence[Iterable[Mapping[str, float]]], **record: Any
) -> Path:
    """Write the page.

    Args:
        folder: Of the logs.
        name: Of the callback.
        histories: Looks of all callbacks of that name, with the prefix.
        **record: What else there is: see :class:`~jepa_monitor.monitor.run_page.RunRecord`.

    Returns:
        Its path.
    """
    prefix = f"{name}/" if name else ""
    looks = merge_looks(look for history in histories for look in without_prefix(history, prefix))
    shown = f"{folder} ({name})" if name else str(folder)
    place = page_of(folder, name)
    write_bytes(place, run_page([RunRecord(shown, str(folder), looks, **record)]).encode())
    return place
