"""The phases of scoring a data set: in go images and an encoder, out come the parts of a run.

They score the images, and worse versions of some; each goes on where an interrupted run was. What the
images are compared with is in `reference.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.cli.fits import Fits
from jepa_monitor.cli.images import Source
from jepa_monitor.cli.labels import Classes, fit_classes
from jepa_monitor.cli.quality import NUMBERS, Looks
from jepa_monitor.cli.reference import Law, scored_set
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.tables import LOG_PRIOR
from jepa_monitor.cli.task import Prepared, Task
from jepa_monitor.detectors import ScoredSet
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.insights.polarity import polarity_scalars
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import embed
from jepa_monitor.jacobian.score import density_terms
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

_VERSIONS = [(name, max(SEVERITIES)) for name in CORRUPTIONS]


def check_rows(
    embedder: Embedder,
    source: Source,
    transform: Callable[[Any], Tensor] | None,
    options: ScoreOptions,
    device: torch.device,
) -> None:
    """Refuse more rows than embeddings are wide by looking at one image, not at all of a reference.

    Args:
        embedder: The encoder.
        source: Where the images are.
        transform: Makes tensors of them.
        options: How to score.
        device: Where.
    """
    if options.rows is None:
        return
    prepared = Prepared(source, transform)
    read = (prepared[index].image for index in range(len(source)))
    image = next((image for image in read if image is not None), None)
    if image is not None:
        work = functools.partial(embed, embedder, image[None], device)
        width = embedder.run(work, device).shape[1]
        row_count(options.turned("sketch", options.rows), width, image.numel(), whitened=False)


def score_images(
    task: Task, source: Source, indices: list[int], law: Law, reference: Source, fits: Fits
) -> None:
    """Score the images by every detector; what would rest on a void law is NaN.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones.
        law: What they are compared with.
        reference: Where the images are that it is of.
        fits: The detectors.
    """
    labels = [reference.label(int(number)) for number in law.numbers]
    classes = fit_classes(law.embeddings, labels)
    for batch, (items, images, problems) in task.batches("scores", source, indices):
        arrays = {}
        if images is not None:
            numbers = torch.tensor([item.number for item in items])
            itself = (numbers[:, None] == law.numbers) & law.own
            data, found, terms = scored_set(task, images, law, itself.any(1))
            void = torch.full_like(data.scores, torch.nan)
            scores = {each.name: void for each in task.detectors}
            scores |= fits.score(data, numbers)
            scores[LOG_PRIOR] = terms.log_prior.cpu() if law.holds else void
            arrays = {
                "index": numbers.numpy(),
                "note": np.array([item.note for item in items], dtype=np.str_),
                "neighbour": _nearest(data.scored_embeddings, law, itself).numpy(),
                **_looks([item.looks for item in items]),
                **_labelled(classes, data, source, numbers),
                "below_noise_floor": found.under_floor.cpu().numpy(),
                **{name: values.numpy() for name, values in scores.items()},
            }
        task.run.write("scores", batch, Part(arrays, problems))


def _nearest(embeddings: Tensor, law: Law, itself: Tensor) -> Tensor:
    """Find which reference image is nearest, apart from the image itself; −1 if there is none."""
    finite = torch.isfinite(embeddings).all(1)
    distances = torch.cdist(embeddings.where(finite[:, None], 0.0), law.embeddings)
    nearest = distances.masked_fill(itself, torch.inf).min(1)
    known = finite & torch.isfinite(nearest.values)
    return torch.where(known, law.numbers[nearest.indices], -1)


def _looks(found: Sequence[Looks | None]) -> dict[str, Any]:
    """Store what images look like; of tensors nothing is known."""
    unknown = [math.nan] * len(NUMBERS)
    return {
        "looks": np.array([list(each[: len(NUMBERS)]) if each else unknown for each in found]),
        "pixels": np.array([each.pixels.hex() if each else "" for each in found], dtype="U32"),
        "gradients": np.array([each.gradients if each else 0 for each in found], dtype=np.uint64),
    }


def _labelled(
    classes: Classes | None, data: ScoredSet, source: Source, numbers: Tensor
) -> dict[str, Any]:
    """Compare labels with the classes that embeddings are near to; NaN where there are none."""
    scores, others = torch.full_like(data.scores, torch.nan), [""] * len(numbers)
    if classes is not None and data.in_reference is not None:
        labels = [source.label(int(number)) for number in numbers]
        scores, others = classes.score(data.scored_embeddings, labels, data.in_reference)
    return {"label_score": scores.numpy(), "other_label": np.array(others, dtype=np.str_)}


def score_corrupted(task: Task, source: Source, indices: list[int], law: Law) -> None:
    """Score worse versions of some images; each kind and severity is a batch of its own.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones.
        law: What they are compared with.
    """
    missing = [n for n in task.run.missing("polarity", len(_VERSIONS)) if indices]
    mine = [n for n in missing if n % task.processes.count == task.processes.rank]
    images: Tensor | None = None
    for n in mine:
        if images is None:
            prepared = Prepared(source, task.transform)
            read = [prepared[index].image for index in indices]
            images = torch.stack([image for image in read if image is not None])
        if images.ndim != 4:
            return
        name, severity = _VERSIONS[n]
        worse = CORRUPTIONS[name](images, severity).to(task.device)
        values = []
        for part in torch.split(worse, task.batch_size):
            found = spectra(task.embedder, part, task.options, law.law)
            values.append(density_terms(found, law.law, task.options.eps).jepa_score.cpu())
        task.run.write("polarity", n, Part({"score": torch.cat(values).numpy()}, []))
        task.report("polarity", len(_VERSIONS) - len(missing) + 1 + mine.index(n), len(_VERSIONS))


def read_polarity(task: Task, clean: Any) -> dict[str, float]:
    """Compare what :func:`score_corrupted` wrote with the scores of the sound images.

    Args:
        task: The run.
        clean: JEPA-SCORE of the same images, shape (N,), nats.

    Returns:
        The scalars of :func:`~jepa_monitor.insights.polarity.polarity_scalars`; nothing if some are missing.
    """
    corrupted: dict[str, dict[int, Tensor]] = {}
    for n, (name, severity) in enumerate(_VERSIONS):
        part = task.run.read("polarity", n)
        if part is None:
            return {}
        corrupted.setdefault(name, {})[severity] = torch.from_numpy(part.arrays["score"])
    return polarity_scalars(torch.from_numpy(clean), corrupted)
