"""The phases of scoring a data set: in go images and an encoder, out come the parts of a run.

They embed the reference, score the images, and score worse versions of some; each goes on where an
interrupted run was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.runs import Part, Run
from jepa_monitor.cli.sources import Source
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.neighbors import knn_distance
from jepa_monitor.insights.law import law_scalars
from jepa_monitor.insights.polarity import polarity_scalars
from jepa_monitor.jacobian.engine import Spectra, spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.score import density_terms, embed
from jepa_monitor.jacobian.sketch import sketch_matrix
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

_NEIGHBOURS = 10  # as of `DensityMonitor`
_VERSIONS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]

Progress = Callable[[str, int, int], None]


class _Item(NamedTuple):
    number: int
    image: Tensor | None
    note: str
    problem: str | None


class _Prepared(Dataset[_Item]):
    """Images of a source as the encoder takes them, or why not."""

    def __init__(self, source: Source, transform: Callable[[Any], Tensor] | None) -> None:
        self._source, self._transform = source, transform

    def __getitem__(self, index: int) -> _Item:
        try:
            image, note = self._source.load(index)
        except BadImage as error:
            return _Item(index, None, "", str(error))
        if not isinstance(image, Tensor):
            if self._transform is None:
                raise TypeError(
                    "`data` yields Pillow images, but there is no `transform` to make tensors of "
                    "them: pass one, or a name as `encoder`."
                )
            image = self._transform(image)
        if not (isinstance(image, Tensor) and image.is_floating_point()):
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"`data` must yield floating-point images after `transform`, got {kind}."
            )
        problem = None if bool(torch.isfinite(image).all()) else "has NaN or infinite pixels"
        return _Item(index, None if problem else image, note, problem)


class _Images(NamedTuple):
    """The images of a batch that could be read."""

    items: list[_Item]
    tensor: Tensor | None
    problems: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that the phases of a run share."""

    run: Run
    processes: Processes
    embedder: Embedder
    transform: Callable[[Any], Tensor] | None
    device: torch.device
    options: ScoreOptions
    workers: int
    batch_size: int
    strict: bool
    progress: Progress | None

    def batches(
        self, phase: str, source: Source, indices: list[int]
    ) -> Iterator[tuple[int, _Images]]:
        """Read the batches of a phase that this process has to do."""
        chunks = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        missing = set(self.run.missing(phase, len(chunks)))
        # By number, not by turns among the missing: the others may see other ones missing.
        mine = [n for n in sorted(missing) if n % self.processes.count == self.processes.rank]
        done = sum(len(chunk) for n, chunk in enumerate(chunks) if n not in missing)
        self.report(phase, done, len(indices))
        if not mine:
            return
        loader = DataLoader(
            _Prepared(source, self.transform),
            batch_sampler=[chunks[n] for n in mine],
            collate_fn=list,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(0),
        )
        shape: torch.Size | None = None
        for n, items in zip(mine, loader, strict=True):
            good = [item for item in items if item.image is not None]
            images = [item.image for item in good if item.image is not None]
            for image in images:
                shape = shape or image.shape
                if image.shape != shape:
                    raise ValueError(
                        f"`data` must yield images of one shape, got {tuple(shape)} and "
                        f"{tuple(image.shape)}."
                    )
            problems = [
                {"set": phase, "path": source.key(item.number), "reason": item.problem}
                for item in items
                if item.problem is not None
            ]
            if problems and self.strict:
                raise BadImage(f"{problems[0]['path']!r} {problems[0]['reason']}")
            yield n, _Images(good, torch.stack(images) if images else None, problems)
            done += len(items)
            self.report(phase, done, len(indices))

    def count(self, indices: list[int]) -> int:
        """Say how many batches some images make."""
        return -(-len(indices) // self.batch_size)

    def report(self, phase: str, done: int, total: int) -> None:
        """Tell the caller how far a phase is.

        Args:
            phase: Its name.
            done: Images done.
            total: Images of all.
        """
        if self.progress is not None:
            self.progress(phase, done, total)


class Law(NamedTuple):
    """The embeddings that everything is compared with.

    Args:
        base: (M, K), finite, float64.
        law: Fitted to them.
        members: Which images of the data they are of; empty for another data set.
    """

    base: Tensor
    law: Gaussian
    members: frozenset[int]


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
    prepared = _Prepared(source, transform)
    read = (prepared[index].image for index in range(len(source)))
    image = next((image for image in read if image is not None), None)
    if image is not None:
        work = functools.partial(embed, embedder, image[None], device)
        width = embedder.run(work, device).shape[1]
        sketch_matrix(dataclasses.replace(options, method="sketch"), width, None)


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
    members = part.arrays["index"][finite.numpy()].tolist() if own else ()
    return Law(base, Gaussian.fit(base), frozenset(members))


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


def score_images(task: Task, source: Source, indices: list[int], law: Law) -> None:
    """Score the images, by density and by distances.

    Args:
        task: The run.
        source: Where the images are.
        indices: Which ones.
        law: What they are compared with.
    """
    for batch, (items, images, problems) in task.batches("scores", source, indices):
        arrays = {}
        if images is not None:
            found = spectra(task.embedder, images.to(task.device), task.options, law.law)
            terms = density_terms(found, law.law, task.options.eps)
            own = torch.tensor([item.number in law.members for item in items])
            arrays = {
                "index": np.array([item.number for item in items]),
                "note": np.array([item.note for item in items], dtype=np.str_),
                "jepa_score": terms.jepa_score.cpu().numpy(),
                "log_density": terms.log_density.cpu().numpy(),
                "log_prior": terms.log_prior.cpu().numpy(),
                "below_noise_floor": found.under_floor.cpu().numpy(),
                **_baselines(found, law, own),
            }
        task.run.write("scores", batch, Part(arrays, problems))


def _baselines(found: Spectra, law: Law, own: Tensor) -> dict[str, Any]:
    """Score embeddings by distances alone, negative so that higher is denser."""
    embeddings = found.embeddings.double().cpu()
    finite = torch.isfinite(embeddings).all(1)
    filled = torch.where(finite[:, None], embeddings, 0.0)
    knn = torch.full((len(filled),), torch.nan, dtype=torch.float64)
    for some, k in ((own, _NEIGHBOURS + 1), (~own, _NEIGHBOURS)):  # the nearest to a member: itself
        if bool(some.any()) and k <= len(law.base):
            knn[some] = -knn_distance(filled[some], law.base, k)
    mahalanobis = -law.law.mahalanobis_squared(filled)
    both = {"knn": knn, "mahalanobis": mahalanobis}
    return {name: torch.where(finite, v, torch.nan).numpy() for name, v in both.items()}


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
            prepared = _Prepared(source, task.transform)
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


def method_used(task: Task, law: Law) -> str:
    """Say in words how the Jacobians were taken.

    Args:
        task: The run.
        law: Whose embeddings have the width.

    Returns:
        Such as ``sketch, 24 of 384 rows``.
    """
    rows = sketch_matrix(task.options, law.base.shape[1], law.law)
    width = law.base.shape[1]
    return f"exact, {width} rows" if rows is None else f"sketch, {len(rows)} of {width} rows"
