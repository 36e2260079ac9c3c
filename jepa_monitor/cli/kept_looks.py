"""Looks that are kept: in goes a report, out comes a file that has all that is told of it later."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_monitor._files import write_bytes
from jepa_monitor.detectors import ScoredSet
from jepa_monitor.insights import Look
from jepa_monitor.insights._drawing import as_png
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.monitor.report import Report

__all__ = ["KeptLook", "keep_look", "read_look"]

_PROBE = ("embeddings", "scores", "log_density", "singular_values", "noise_floors")
_MEMORY = "memory"


class KeptLook(NamedTuple):
    """A look at a checkpoint, as it lies on the disk.

    Args:
        scalars: By tag.
        failed: Insights that could not say anything, with the reason.
        method: How the scores were made.
        begun: What the look began with: how to score, and whose the memory is.
        settled: How to score, as it was settled.
        arrays: By name.
    """

    scalars: dict[str, float]
    failed: dict[str, str]
    method: str
    begun: dict[str, Any]
    settled: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]

    @property
    def embeddings(self) -> Tensor:
        """Of the probe, (N, K)."""
        return torch.from_numpy(self.arrays["embeddings"])

    def memory(self) -> dict[str, Any]:
        """What the look remembers for later ones; nothing if it was not the first."""
        found = self.arrays.get(_MEMORY)
        if found is None:
            return {}
        remembered: dict[str, Any] = torch.load(io.BytesIO(found.tobytes()), weights_only=True)
        return remembered

    def histograms(self) -> dict[str, Tensor]:
        """Finite values by tag."""
        return {tag: torch.from_numpy(a) for tag, a in self._under("histogram:").items()}

    def pictures(self) -> dict[str, bytes]:
        """PNG files by tag."""
        return {tag: a.tobytes() for tag, a in self._under("figure:").items()}

    def look(self, images: Tensor, options: ScoreOptions) -> Look:
        """Give back the probe's part of the look.

        Args:
            images: Of the probe, (N, ...).
            options: How it was scored.

        Returns:
            The look, without reference, other sets and parts.
        """
        arrays = {name: torch.from_numpy(self.arrays[name]) for name in _PROBE}
        scored = images[: len(arrays["scores"])]
        return Look(options, self.method, ScoredSet(images=scored, **arrays))

    def _under(self, begin: str) -> dict[str, np.ndarray[Any, Any]]:
        return {n.removeprefix(begin): a for n, a in self.arrays.items() if n.startswith(begin)}


def keep_look(
    path: Path,
    report: Report,
    begun: dict[str, Any],
    settled: dict[str, Any],
    memory: dict[str, Any],
    pictures: bool,
) -> None:
    """Write a look, whole or not at all.

    Args:
        path: Where.
        report: What was found.
        begun: See :class:`KeptLook`.
        settled: Likewise.
        memory: What later looks begin with, numbers and tensors; empty if they do not begin with it.
        pictures: Whether to draw the figures.
    """
    arrays = {name: getattr(report.probe, name).numpy() for name in _PROBE}
    if memory:
        with io.BytesIO() as remembered:
            torch.save(memory, remembered)
            arrays[_MEMORY] = np.frombuffer(remembered.getvalue(), dtype=np.uint8)
    arrays |= {f"histogram:{tag}": values.numpy() for tag, values in report.histograms.items()}
    if pictures:
        arrays |= {
            f"figure:{tag}": np.frombuffer(as_png(tag, figure), dtype=np.uint8)
            for tag, figure in report.figures().items()
        }
    about = {
        "scalars": report.scalars,
        "failed": report.failed,
        "method": report.method,
        "begun": begun,
        "settled": settled,
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    # Not by keywords: numpy would take a tag for an argument of its own.
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{_quoted(name)}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
    write_bytes(path, stream.getvalue())


def read_look(path: Path, whole: bool = True) -> KeptLook | None:
    """Read a look.

    Args:
        path: Where.
        whole: Read the arrays too.

    Returns:
        The look; ``None`` if there is none, or its file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            names = [name for name in archive.files if name != "about"] if whole else []
            arrays = {name.replace("|", "/"): archive[name] for name in names}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return KeptLook(**about, arrays=arrays)


def _quoted(name: str) -> str:
    return name.replace("/", "|")  # a slash makes folders of the archive
