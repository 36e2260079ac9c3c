"""What the phases of a run share: in go images by number, out come batches that are still to be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor.cli.errors import BadImage
from jepa_monitor.cli.images import Source
from jepa_monitor.cli.quality import Looks, looks_of
from jepa_monitor.cli.runs import Run
from jepa_monitor.detectors import Detector
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.processes import Processes
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["Prepared", "Progress", "Task"]

Progress = Callable[[str, int, int], None]


class _Item(NamedTuple):
    number: int
    image: Tensor | None
    note: str
    problem: str | None
    looks: Looks | None = None


class Prepared(Dataset[_Item]):
    """Images of a source as the encoder takes them, or why not."""

    def __init__(self, source: Source, transform: Callable[[Any], Tensor] | None) -> None:
        self._source, self._transform = source, transform

    def __getitem__(self, index: int) -> _Item:
        try:
            image, note = self._source.load(index)
        except BadImage as error:
            return _Item(index, None, "", str(error))
        looks = None
        if not isinstance(image, Tensor):
            looks = looks_of(image)
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
        return _Item(index, None if problem else image, note, problem, looks)


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
    detectors: tuple[Detector, ...]
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
            Prepared(source, self.transform),
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
