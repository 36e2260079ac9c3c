"""What images are compared with: in goes a reference, out come its law and detectors fitted to it.

A reference of other images has three parts, of which no image serves twice: the law of the embeddings
is fitted to one, detectors learn usual scores from the second, thresholds are set on the third. Images
that are their own reference have no threshold to be set: all of them make the law, and what a detector
has learned from is judged by one that has learned from others.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.cli.images import Source
from jepa_monitor.cli.runs import Part
from jepa_monitor.cli.task import Prepared, Task
from jepa_monitor.detectors import (
    Detector,
    ScoredSet,
    most_scored,
)
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.law import law_scalars
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.prepared import embed
from jepa_monitor.jacobian.score import LogDensity, density_terms
from jepa_monitor.jacobian.spectra import Spectra

__all__ = [
    "Law",
    "embed_reference",
    "nothing_read",
    "precondition",
    "read_examples",
    "read_law",
    "score_examples",
    "scored_set",
]

_PHASE = "examples"
_FIELDS = ("embeddings", "scores", "log_density", "singular_values", "noise_floors")


class Law(NamedTuple):
    """The embeddings that everything is compared with.

    Args:
        embeddings: Of the whole reference, (N, K), finite, float64.
        numbers: Which images of their data they are of, (N,).
        base: Those that the law is fitted to, (M, K).
        law: Fitted to them.
        scored: Numbers of the images that are scored, (n,), those that detectors learn from first.
        own: Whether their data are the ones that are judged.
    """

    embeddings: Tensor
    numbers: Tensor
    base: Tensor
    law: Gaussian
    scored: Tensor
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
        count, width = self.embeddings.shape
        return (
            f"{count} images do not determine a normal law of embeddings of {width} dimensions, "
            f"{width + 1} would"
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


def read_law(task: Task, indices: list[int], own: bool, asked: int) -> Law:
    """Fit the law to what :func:`embed_reference` wrote, in whatever process, and draw what is scored.

    Args:
        task: The run.
        indices: What was to be embedded.
        own: Whether the reference is part of the images that are judged.
        asked: How many images of the reference to score at most.

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
    embeddings = embeddings[finite]
    total, width = embeddings.shape
    if total < 2:
        raise ValueError(f"`reference` must have at least 2 finite embeddings, got {total}.")
    numbers = torch.from_numpy(part.arrays["index"])[finite]
    # Drawn, not taken evenly: of three parts of one law none must be of other classes than the rest.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    scored = order[: _to_score(task.detectors, total, width, own, asked)]
    kept = torch.ones(total, dtype=torch.bool)
    if not own:
        kept[scored] = False
    base = embeddings[kept]
    return Law(embeddings, numbers, base, Gaussian.fit(base), numbers[scored], own)


def _to_score(
    detectors: tuple[Detector, ...], total: int, width: int, own: bool, asked: int
) -> int:
    """Choose how many reference images to score: as many as asked, none if no detector can learn."""
    if own:  # two halves that detectors learn from, and no threshold
        count = most_scored(total, asked, 0)
    else:  # the law and the neighbours keep what they need, where it is there
        needed = max((each.least_reference for each in detectors), default=0)
        count = most_scored(total, asked, max(needed, width + 1 if total > width else 2))
    learners = [each.least_examples for each in detectors if each.least_examples]
    return count if learners and count >= 2 * min(learners) else 0


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


def scored_set(
    task: Task, images: Tensor, law: Law, own: Tensor
) -> tuple[ScoredSet, Spectra, LogDensity]:
    """Take the Jacobians of images.

    Args:
        task: The run.
        images: (B, ...).
        law: What they are compared with.
        own: Which of them the law is fitted to, (B,), bool.

    Returns:
        What detectors may know of them, the Jacobians, and the terms of their density.
    """
    found = spectra(task.embedder, images.to(task.device), task.options, law.law)
    terms = density_terms(found, law.law, task.options.eps)
    known = ScoredSet(
        images,
        found.embeddings.cpu(),
        terms.jepa_score.cpu(),
        terms.log_density.cpu(),
        found.singular_values.cpu(),
        found.noise_floors.cpu(),
        own,
    )
    return known, found, terms


def score_examples(task: Task, source: Source, law: Law) -> None:
    """Score the part of the reference that detectors learn from and thresholds are set on.

    Args:
        task: The run.
        source: Where the images are.
        law: Which ones, and what they are compared with.
    """
    indices = law.scored.tolist()
    if not indices:
        return
    for batch, (items, images, problems) in task.batches(_PHASE, source, indices):
        arrays: dict[str, Any] = {}
        if images is not None:
            own = torch.full((len(images),), law.own)
            known, _, _ = scored_set(task, images, law, own)
            arrays = {name: getattr(known, name).numpy() for name in _FIELDS}
            arrays["index"] = np.array([item.number for item in items])
        task.run.write(_PHASE, batch, Part(arrays, problems))


def read_examples(task: Task, source: Source, law: Law) -> tuple[ScoredSet | None, Tensor]:
    """Read what :func:`score_examples` wrote, and the images themselves once more.

    Args:
        task: The run.
        source: Where the images are, of which some detectors take more than their scores.
        law: Which ones.

    Returns:
        What is known of them, ``None`` if none is scored; and their numbers.

    Raises:
        ValueError: If an image can no longer be read.
    """
    none = torch.zeros(0, dtype=torch.int64)
    indices = law.scored.tolist()
    part = task.run.collect(_PHASE, task.count(indices)) if indices else Part({}, [])
    if not part.arrays:
        return None, none
    prepared = Prepared(source, task.transform)
    numbers = torch.from_numpy(part.arrays["index"])
    images = []
    for number in numbers.tolist():
        item = prepared[number]
        if item.image is None:
            raise ValueError(
                f"`reference`: {source.key(number)!r} {item.problem}, but was read before."
            )
        images.append(item.image)
    fields = {name: torch.from_numpy(part.arrays[name]) for name in _FIELDS}
    own = torch.full((len(numbers),), law.own)
    return ScoredSet(torch.stack(images), **fields, in_reference=own), numbers


def precondition(law: Law) -> dict[str, float]:
    """Ask whether embeddings are Gaussian, and those of one half under the law of the other.

    Args:
        law: Whose embeddings are asked.

    Returns:
        The scalars of ``density/``; nothing of too few embeddings.
    """
    probe, reference = law.embeddings[::2], law.embeddings[1::2]
    return law_scalars(probe, reference)
