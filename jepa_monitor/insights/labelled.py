"""Images of which classes are known, in two parts that share no image: one to learn from, one to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.functional import (
    few_shot_accuracy,
    knn_predict,
    ridge_predict,
    wilson_interval,
)
from jepa_monitor.insights._statistics import with_ends
from jepa_monitor.insights.parts import Part

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = [
    "ANSWERS",
    "LABELLED",
    "SHOTS",
    "Answers",
    "Labelled",
    "LabelledSets",
    "Right",
    "accuracies",
    "classify",
    "thumbnails",
]

SHOTS = (1, 5, 10)  # examples of each class
_SIDE = 32  # of what stands for the pixels of larger images


class LabelledSets(NamedTuple):
    """Embeddings and classes; finite, and the same in all processes.

    Args:
        known: Embeddings to learn from, (M, K).
        known_labels: Their classes, (M,), int64, at least two different ones.
        asked: Embeddings to classify, (N, K).
        asked_labels: Their classes, (N,), int64, all among the known ones.
        pixels: Share of the latter that k-NN classifies correctly by the raw pixels; NaN for inputs
            that are no images.
        known_rows: Which images are learned from: rows of the reference, or
        halves: of the probe, if it is halved.
        asked_rows: Which rows of the probe are asked.
    """

    known: Tensor
    known_labels: Tensor
    asked: Tensor
    asked_labels: Tensor
    pixels: float
    known_rows: Tensor
    halves: bool
    asked_rows: Tensor


@dataclass(frozen=True)
class Labelled(Part[LabelledSets]):
    """Images to learn classes from, and others to ask for theirs; no further pass.

    Where a labelled reference was given, it is learned from and the probe is asked. Where there is none, it
    does not have all classes of the probe, its images may be the probe's, or come as training sees them,
    one half of the probe is learned from and the other one asked. Where groups are known, the first of
    them is never on both sides.
    """

    source = "labels"

    def gather(self, at: Gatherer) -> LabelledSets | None:
        """Put embeddings and labels together.

        Args:
            at: What the monitor has.

        Returns:
            Both parts, or ``None`` if too little is labelled.
        """
        sources = at.sources
        if sources.labels is None:
            return None
        groups = next(iter(sources.groups.values()), torch.full_like(sources.labels, -1))
        probe = _Set(
            sources.images,
            at.probe.embeddings,
            sources.labels,
            groups,
            torch.arange(len(sources.labels)),
        )
        apart = _apart(at, probe)
        known, asked = apart or _halves(probe)
        if not len(asked.labels) or len(torch.unique(known.labels)) < 2:
            return None
        if "knn_pixels" not in sources.memory:
            sources.memory["knn_pixels"] = _by_pixels(known, asked)
        pixels: float = sources.memory["knn_pixels"]
        return LabelledSets(
            known.embeddings,
            known.labels,
            asked.embeddings,
            asked.labels,
            pixels,
            known.rows,
            apart is None,
            asked.rows,
        )


LABELLED = Labelled()


class Right(NamedTuple):
    """Which of the asked embeddings are classified correctly, (N,) bool.

    Args:
        knn: By the vote of neighbours.
        linear: By a linear map.
    """

    knn: Tensor
    linear: Tensor


@dataclass(frozen=True)
class Answers(Part[Right]):
    """Which of the images of :data:`LABELLED` that are asked the encoder tells."""

    source = Labelled.source

    def gather(self, at: Gatherer) -> Right | None:
        """Classify them.

        Args:
            at: What the monitor has.

        Returns:
            Which are right, or ``None`` if too little is labelled.
        """
        sets = at.part(LABELLED)
        if sets is None:
            return None
        return classify((sets.known, sets.known_labels), (sets.asked, sets.asked_labels))


ANSWERS = Answers()


def classify(known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> Right:
    """Classify embeddings by neighbours and by a linear map.

    Args:
        known: Embeddings (M, K) and classes (M,) to learn from.
        asked: Embeddings (N, K) and classes (N,) to ask for.

    Returns:
        Which are right.
    """
    return Right(
        *(predict(*known, asked[0]) == asked[1] for predict in (knn_predict, ridge_predict))
    )


def accuracies(
    group: str, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor], right: Right
) -> dict[str, float]:
    """Say how well embeddings are classified by neighbours, by a linear map and from a few examples.

    Args:
        group: What the tags begin with.
        known: Embeddings (M, K) and classes (M,) to learn from.
        asked: Embeddings (N, K) and classes (N,) to ask for.
        right: What :func:`classify` says of them.

    Returns:
        ``<group>/knn``, ``/linear`` and ``/few_shot_<n>`` with the ends of their intervals; ``few_shot_n`` is
        absent where a class has fewer than n examples.
    """
    scalars: dict[str, float] = {}
    for name, told in right._asdict().items():
        hits, total = told.double().sum(), len(told)
        found = (hits / total, *wilson_interval(hits, total))
        scalars |= {t: end.item() for t, end in zip(with_ends(group, name), found, strict=True)}
    smallest = int(torch.unique(known[1], return_counts=True)[1].min())
    for shots in SHOTS:
        if shots <= smallest:
            few = few_shot_accuracy(known, asked, shots)
            tags = with_ends(group, f"few_shot_{shots}")
            scalars |= {tag: end.item() for tag, end in zip(tags, few, strict=True)}
    return scalars


def thumbnails(images: Tensor) -> Tensor | None:
    """Shrink images to at most 32 pixels a side, each the mean of those that it stands for.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, D), D ≤ 1024·C; ``None`` for inputs of another shape.
    """
    if images.ndim != 4:
        return None
    height, width = (min(_SIDE, side) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images, (height, width)).flatten(1)


class _Set(NamedTuple):
    images: Tensor
    embeddings: Tensor
    labels: Tensor
    groups: Tensor  # below 0 where unknown
    rows: Tensor

    def usable(self) -> _Set:
        """What is labelled and finite."""
        return self.take((self.labels >= 0) & torch.isfinite(self.embeddings).all(1))

    def take(self, which: Tensor) -> _Set:
        return _Set(*(part[which] for part in self))


def _apart(at: Gatherer, probe: _Set) -> tuple[_Set, _Set] | None:
    """Training images and the probe, if the ones are labelled with all classes of the other."""
    images, labels = at.sources.reference, at.sources.reference_labels
    if images is None or labels is None or at.reference_embeddings is None:
        return None
    name = next(iter(at.sources.groups), "")
    groups = at.sources.reference_groups.get(name, torch.full_like(labels, -1))
    rows = torch.arange(len(labels))
    known = _Set(images, at.reference_embeddings, labels, groups, rows).usable()
    asked = probe.usable()
    known = known.take(~torch.isin(known.groups, asked.groups[asked.groups >= 0]))
    taught = torch.isin(torch.unique(asked.labels), known.labels)
    return (known, asked) if bool(taught.all()) else None


def _halves(probe: _Set) -> tuple[_Set, _Set]:
    """Divide at random, class by class, so that both halves have all classes of two groups and more."""
    usable = probe.usable()
    count = len(usable.labels)
    alone = usable.groups < 0  # an image of an unknown group is a group of its own
    numbers = torch.where(alone, torch.arange(count) - count, usable.groups)
    names, member = torch.unique(numbers, return_inverse=True)
    # Of a group that has several classes any one stands for it.
    label = usable.labels.new_zeros(len(names)).index_copy_(0, member, usable.labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(names), generator=generator)
    order = order[label[order].argsort(stable=True)]
    second = torch.zeros(len(names), dtype=torch.bool)
    second[order[1::2]] = True
    known, asked = usable.take(~second[member]), usable.take(second[member])
    return known, asked.take(torch.isin(asked.labels, known.labels))


def _by_pixels(known: _Set, asked: _Set) -> float:
    bank, queries = thumbnails(known.images), thumbnails(asked.images)
    if bank is None or queries is None:
        return torch.nan
    return (knn_predict(bank, known.labels, queries) == asked.labels).double().mean().item()
