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
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import embed
from jepa_monitor.jacobian.response import RESPONSES, Nudges, responding_law
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.trust import TRIED, SketchAgreement, method_words, settle

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


def settle_rows(
    task: Task, source: Source, indices: list[int], reference: Source, law: Law
) -> None:
    """Score a few images by a sketch and exactly, and keep what to do about the rest, once a run.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones are scored; those that are tried are drawn from them.
        reference: Where the images are that the law is of.
        law: What whitens the sketch.
    """
    if task.processes.rank or task.run.read(_PHASE, 0) is not None:
        return
    images = _drawn(task, source, indices)
    width = law.base.shape[1]
    options, agreement, whitening = task.options, None, law.law
    arrays = {}
    if options.may_be_deep:
        responses = _responses(task, reference, law)
        whitening = responding_law(law.law, responses)
        arrays["responses"] = responses.numpy()

    def spectra_of(some: Tensor, how: ScoreOptions) -> Spectra:
        return spectra(task.embedder, some.to(task.device), how, whitening)

    inputs = images[0].numel() if len(images) else width
    sketched = row_count(options, width, inputs, whitened=True) is not None
    if sketched or options.demanding:
        options, agreement = settle(options, images, spectra_of)
    rows = row_count(options, width, inputs, whitened=True)
    if rows is None:
        options = options.turned("exact")
    method = f"exact, {width} rows"
    if rows is not None and len(images):
        method = method_words(spectra_of(images[:1], options), whitening, options)
    if agreement is not None:
        method += f"; {agreement}"
    arrays |= {
        "kind": np.array([options.method]),
        "rows": np.array([options.rows or 0]),
        "steps": np.array([options.steps or 0]),
        "method": np.array([method]),
        "agreement": np.array([agreement or [math.nan] * len(SketchAgreement._fields)]).reshape(-1),
    }
    task.run.write(_PHASE, 0, Part(arrays, []))


def read_settled(task: Task, law: Law) -> tuple[Settled, Law]:
    """Read what :func:`settle_rows` kept.

    Args:
        task: The run.
        law: What whitens the sketch.

    Returns:
        How to score, and the law, which knows the response of embeddings to noise where that is wanted.
    """
    arrays: dict[str, Any] = task.run.collect(_PHASE, 1).arrays
    rows, steps = (int(arrays[name][0]) or None for name in ("rows", "steps"))
    options = task.options.turned(str(arrays["kind"][0]), rows)
    options = dataclasses.replace(options, steps=steps)
    if "responses" in arrays:
        responses = torch.from_numpy(arrays["responses"])
        law = law._replace(law=responding_law(law.law, responses))
    pairs = zip(SketchAgreement._fields, arrays["agreement"].tolist(), strict=True)
    numbers = {name: value for name, value in pairs if math.isfinite(value)}
    return Settled(options, str(arrays["method"][0]), numbers), law


def _responses(task: Task, reference: Source, law: Law) -> Tensor:
    """Nudge the images that the law is fitted to, and see how their embeddings move, (n, K)."""
    scored = set() if law.own else set(law.scored.tolist())
    numbers = [number for number in law.numbers.tolist() if number not in scored][:RESPONSES]
    prepared, nudges, found = Prepared(reference, task.transform), Nudges(), []
    for start in range(0, len(numbers), task.batch_size):
        read = [prepared[number].image for number in numbers[start : start + task.batch_size]]
        images = torch.stack([image for image in read if image is not None]).to(task.device)
        moved = nudges(images)

        def work(moved: tuple[Tensor, Tensor] = moved) -> Tensor:
            return nudges.response(*(embed(task.embedder, some, task.device) for some in moved))

        found.append(task.embedder.run(work, task.device))
    return torch.cat(found)


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
