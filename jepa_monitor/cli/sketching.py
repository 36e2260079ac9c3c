"""How the Jacobians of a run are taken: in go a few images, out come the rows that all of it uses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.cli.images import Source
from jepa_monitor.cli.reference import Law
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.task import Prepared, Task
from jepa_monitor.jacobian.engine import Spectra, spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.trust import TRIED, SketchAgreement, settle

__all__ = ["Settled", "read_settled", "settle_rows"]

_PHASE = "sketch"
_SPARE = 4  # so many times the images that are tried may have to be read: some cannot be


class Settled(NamedTuple):
    """How the images of a run are scored, whatever process it goes on in.

    Args:
        options: With the rows that the check of the sketch has led to.
        method: The same in words, with how far the sketch can be trusted.
        agreement: The numbers behind these words, by name; empty where nothing is sketched, or where
            too few images could be tried.
    """

    options: ScoreOptions
    method: str
    agreement: dict[str, float]


def settle_rows(task: Task, source: Source, indices: list[int], law: Law) -> None:
    """Score a few images by a sketch and exactly, and keep what to do about the rest, once a run.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones are scored; those that are tried are drawn from them.
        law: What whitens the sketch.
    """
    if task.processes.rank or task.run.read(_PHASE, 0) is not None:
        return
    images = _drawn(task, source, indices)
    width = law.base.shape[1]
    options, agreement = task.options, None

    def spectra_of(some: Tensor, how: ScoreOptions) -> Spectra:
        return spectra(task.embedder, some.to(task.device), how, law.law)

    inputs = images[0].numel() if len(images) else width
    if row_count(options, width, inputs, whitened=True) is not None:
        options, agreement = settle(options, images, spectra_of)
    rows = row_count(options, width, inputs, whitened=True)
    method = f"exact, {width} rows" if rows is None else f"sketch, {rows} of {width} rows"
    if agreement is not None:
        method += f"; {agreement}"
    arrays = {
        "exact": np.array([rows is None]),
        "rows": np.array([options.rows or 0]),
        "method": np.array([method]),
        "agreement": np.array([agreement or [math.nan] * len(SketchAgreement._fields)]).reshape(-1),
    }
    task.run.write(_PHASE, 0, Part(arrays, []))


def read_settled(task: Task) -> Settled:
    """Read what :func:`settle_rows` kept.

    Args:
        task: The run.

    Returns:
        How to score.
    """
    arrays: dict[str, Any] = task.run.collect(_PHASE, 1).arrays
    rows = int(arrays["rows"][0]) or None
    options = dataclasses.replace(task.options, rows=rows)
    if arrays["exact"][0]:
        options = dataclasses.replace(options, method="exact", rows=None)
    pairs = zip(SketchAgreement._fields, arrays["agreement"].tolist(), strict=True)
    numbers = {name: value for name, value in pairs if math.isfinite(value)}
    return Settled(options, str(arrays["method"][0]), numbers)


def _drawn(task: Task, source: Source, indices: list[int]) -> Tensor:
    """Read as many images as the check of a sketch may take, drawn: sorted data begin with one class."""
    prepared, found = Prepared(source, task.transform), []
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
    for position in order[: _SPARE * 2 * TRIED].tolist():
        image = prepared[indices[position]].image
        if image is not None:
            found.append(image)
        if len(found) == 2 * TRIED:
            break
    return torch.stack(found) if found else torch.zeros(0)
