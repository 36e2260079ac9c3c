"""The phases of scoring a data set: in go images and an encoder, out come the parts of a run.

They embed the reference, score the images, and score worse versions of some; each goes on where an
interrupted run was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.cli.images import Source
from jepa_monitor.cli.labels import Classes, fit_classes
from jepa_monitor.cli.quality import NUMBERS, Looks
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.tables import LOG_PRIOR
from jepa_monitor.cli.task import Prepared, Task
from jepa_monitor.detectors import Detector, Reference, ScoredSet, fit_detectors, score_with
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.law import law_scalars
from jepa_monitor.insights.polarity import polarity_scalars
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.score import density_terms, embed
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.spectrum import log_volume
from jepa_monitor.jacobian.trust import TRIED, sketch_agreement
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

_VERSIONS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


class Law(NamedTuple):
    """The embeddings that everything is compared with.

    Args:
        base: (M, K), finite, float64.
        law: Fitted to them.
        numbers: Which images of their data they are of, (M,).
        own: Whether their data are the ones that are scored.
    """

    base: Tensor
    law: Gaussian
    numbers: Tensor
    own: bool

    @property
    def holds(self) -> bool:
        """Whether the embeddings determine it: of M in K dimensions, M ≤ K have a flat covariance.

        What such a law says rests on its shrinkage, and to the embeddings that it was fitted to all
        of them are alike, outliers too.
        """
        return len(self.base) > self.base.shape[1]

    @property
    def void(self) -> str:
        """Why nothing is said by it, in words; empty if it holds."""
        if self.holds:
            return ""
        count, width = self.base.shape
        return (
            f"{count} images do not determine a normal law of embeddings of {width} dimensions, "
            f"{width + 1} would"
        )


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
        row_count(
            dataclasses.replace(options, method="sketch"), width, image.numel(), whitened=False
        )


def embed_reference(task: Task, source: Source, indices: list[int]) -> None:
    """Embed the images that the others are compared with.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones.
    """
    for batch, (items, images, problems) in task.batches("reference", source, indices):
        arrays = {}
        if images is not None:
            work = functools.partial(embed, task.embedder, images, task.device)
            embeddings = task.embedder.run(work, task.device)
            arrays["index"] = np.array([item.number for item in items])
            arrays["embedding"] = embeddings.double().numpy()
        task.run.write("reference", batch, Part(arrays, problems))


def read_law(task: Task, indices: list[int], own: bool) -> Law:
    """Fit the law to all that :func:`embed_reference` wrote, in whatever process.

    Args:
        task: The run.
        indices: What was to be embedded.
        own: Whether the reference is part of the images that are scored.

    Returns:
        The law, of the finite embeddings.

    Raises:
        ValueError: If there are fewer than two of them.
    """
    part = task.run.collect("reference", task.count(indices))
    if not part.arrays:
        raise ValueError(nothing_read(indices, part))
    embeddings = torch.from_numpy(part.arrays["embedding"])
    finite = torch.isfinite(embeddings).all(1)
    base = embeddings[finite]
    if len(base) < 2:
        raise ValueError(f"`reference` must have at least 2 finite embeddings, got {len(base)}.")
    numbers = torch.from_numpy(part.arrays["index"])[finite]
    return Law(base, Gaussian.fit(base), numbers, own)


def nothing_read(indices: list[int], part: Part) -> str:
    """Say that no image could be read, and why the first could not.

    Args:
        indices: The images.
        part: What was collected of them.

    Returns:
        A sentence.
    """
    first = f"{part.problems[0]['path']!r} {part.problems[0]['reason']}"
    return f"`data`: none of {len(indices)} images can be read; {first}."


def score_images(
    task: Task, source: Source, indices: list[int], law: Law, reference: Source
) -> None:
    """Score the images by every detector; what would rest on a void law is NaN.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones.
        law: What they are compared with.
        reference: Where the images are that it is of.
    """
    classes = fit_classes(law.base, [reference.label(int(number)) for number in law.numbers])
    able = [each for each in task.detectors if law.holds or not each.by_law]
    fitted = fit_detectors(able, Reference(law.base, law.law))
    for batch, (items, images, problems) in task.batches("scores", source, indices):
        arrays = {}
        if images is not None:
            found = spectra(task.embedder, images.to(task.device), task.options, law.law)
            terms = density_terms(found, law.law, task.options.eps)
            numbers = torch.tensor([item.number for item in items])
            itself = (numbers[:, None] == law.numbers) & law.own
            own = itself.any(1)
            data = ScoredSet(
                images,
                found.embeddings.cpu(),
                terms.jepa_score.cpu(),
                terms.log_density.cpu(),
                found.singular_values.cpu(),
                found.noise_floors.cpu(),
                own,
            )
            void = torch.full_like(data.scores, torch.nan)
            scores = {each.name: void for each in task.detectors}
            scores |= {name: _score(each, data) for name, each in fitted.items()}
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
    distances = torch.cdist(embeddings.where(finite[:, None], 0.0), law.base)
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


def _score(detector: Detector, data: ScoredSet) -> Tensor:
    try:
        return score_with(detector, data)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"`detectors`: {detector.name} has failed: {reason}") from error


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


def precondition(law: Law) -> dict[str, float]:
    """Ask whether embeddings are Gaussian, and those of one half under the law of the other.

    Args:
        law: Whose embeddings are asked.

    Returns:
        The scalars of ``density/``; nothing of too few embeddings.
    """
    probe, reference = law.base[::2], law.base[1::2]
    return law_scalars(probe, reference)


def method_used(task: Task, source: Source, law: Law, indices: list[int], scores: Any) -> str:
    """Say in words how the Jacobians were taken and, of a sketch, how far it can be trusted.

    Args:
        task: The run.
        source: Where the images are.
        law: What they are compared with.
        indices: Some images with finite scores, of which a few are scored exactly as well.
        scores: JEPA-SCORE of these images, shape (N,), nats.

    Returns:
        Such as ``sketch, 24 of 384 rows; sketches of 24 rows correlate 0.97 …``.
    """
    width = law.base.shape[1]
    prepared = Prepared(source, task.transform)
    read = [prepared[index].image for index in indices[:TRIED]]
    few = [image for image in read if image is not None]
    inputs = few[0].numel() if few else width
    rows = row_count(task.options, width, inputs, whitened=True)
    if rows is None:
        return f"exact, {width} rows"
    words = f"sketch, {rows} of {width} rows"
    if len(few) < len(read) or len(few) < TRIED:
        return words
    everything = dataclasses.replace(task.options, method="exact", rows=None)
    found = spectra(task.embedder, torch.stack(few).to(task.device), everything)
    exact = log_volume(found.singular_values, task.options.eps).cpu()
    return f"{words}; {sketch_agreement(torch.from_numpy(scores[:TRIED]), exact, rows, width)}"
