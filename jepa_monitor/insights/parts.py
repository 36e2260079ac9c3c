"""What a look may gather beside scored sets of images: each part says how, insights say which.

A part is a small value: two insights that need equal ones share what is gathered. To gather
something new (tokens, layers, augmented views), write a subclass of :class:`Part`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from jepa_monitor.encoders.pretrained import Generalist
from jepa_monitor.functional.contrast import change_contrast
from jepa_monitor.insights._drawing import is_drawable
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = [
    "CONTRASTED",
    "FIRST_EMBEDDINGS",
    "GROUPS",
    "LABELS",
    "OTHER_EMBEDDINGS",
    "OTHER_SETS",
    "PROBE_LABELS",
    "Contrasted",
    "Corrupted",
    "FirstEmbeddings",
    "GroupNumbers",
    "GroupedSets",
    "Labels",
    "OtherEmbedded",
    "OtherEmbeddings",
    "OtherSets",
    "Part",
    "ProbeLabels",
    "are_classes",
    "check_labels",
]

_T = TypeVar("_T")


class Part(ABC, Generic[_T]):
    """Something that insights need; a frozen dataclass, so that equal ones are gathered once.

    Attributes:
        source: What must have been given to the monitor for it, in words.
        of_images: Whether it is made of pixels, so that there is none of texts.
    """

    source: str = ""
    of_images: bool = False

    @abstractmethod
    def gather(self, at: Gatherer) -> _T | None:
        """Gather it; all processes do, at the same time.

        What is done an image at a time goes through :meth:`Gatherer.map`, which shares it among the
        processes and makes a failure in one an error in all.

        Args:
            at: The encoder, and what the monitor has of images.

        Returns:
            The same in all processes; ``None`` if what it is made of was not given.
        """


@dataclass(frozen=True)
class Labels(Part[Tensor]):
    """Classes of the probe images, (N,), int64."""

    source = "`labels` of at least 2 classes, each of at least 2 probe images"

    def gather(self, at: Gatherer) -> Tensor | None:
        """Take the monitor's.

        Args:
            at: What the monitor has.

        Returns:
            (N,), or ``None``, also where an image has none or is the only one of its class.
        """
        labels = at.sources.labels
        return labels if labels is not None and are_classes(labels) else None


@dataclass(frozen=True)
class ProbeLabels(Part[Tensor]):
    """Classes of the probe images as far as they are known, (N,), int64, below 0 where not."""

    source = "`labels`"

    def gather(self, at: Gatherer) -> Tensor | None:
        """Take the monitor's.

        Args:
            at: What the monitor has.

        Returns:
            (N,), or ``None``.
        """
        return at.sources.labels


@dataclass(frozen=True)
class FirstEmbeddings(Part[Tensor]):
    """Embeddings of the probe at the first look, (N, K); at that look itself, its own."""

    def gather(self, at: Gatherer) -> Tensor:
        """Take the monitor's.

        Args:
            at: What the monitor has.

        Returns:
            (N, K).
        """
        first: Tensor = at.sources.memory.setdefault("first_embeddings", at.probe.embeddings)
        return first


@dataclass(frozen=True)
class OtherEmbeddings(Part[Tensor]):
    """Embeddings of the probe by the encoder to compare with, (N, L)."""

    source = "`compare_with`"

    def gather(self, at: Gatherer) -> Tensor | None:
        """Embed the probe.

        Args:
            at: What the monitor has.

        Returns:
            (N, L), or ``None``.
        """
        given = at.sources.compare_with is not None
        return _by_other(at, "probe", at.sources.images) if given else None


class OtherEmbedded(NamedTuple):
    """All sets as the encoder to compare with embeds them.

    Args:
        probe: (N, L).
        reference: (M, L), in the order of the training images; ``None`` where there are none.
        ood: By name, (n, L).
    """

    probe: Tensor
    reference: Tensor | None
    ood: dict[str, Tensor]


@dataclass(frozen=True)
class OtherSets(Part[OtherEmbedded]):
    """Embeddings of every set by the encoder to compare with."""

    source = "`compare_with`"

    def gather(self, at: Gatherer) -> OtherEmbedded | None:
        """Embed the sets.

        Args:
            at: What the monitor has.

        Returns:
            The embeddings, or ``None``.
        """
        probe = at.part(OTHER_EMBEDDINGS)
        if probe is None:
            return None
        training = at.sources.reference
        reference = None if training is None else _by_other(at, "reference", training)
        ood = {name: _by_other(at, f"ood/{name}", data) for name, data in at.sources.ood.items()}
        return OtherEmbedded(probe, reference, ood)


def _by_other(at: Gatherer, name: str, images: Tensor) -> Tensor:
    """Embed a set by the encoder to compare with; by a frozen one only once."""
    other = at.sources.compare_with

    def embed() -> Tensor:
        return at.other(other).embeddings(images)

    if not isinstance(other, Generalist):
        return embed()

    def embed_once() -> Tensor:
        other.to(at.device)
        try:
            return embed()
        finally:
            other.to("cpu")  # its place on the device is training's

    return other.remember(name, embed_once)


class GroupedSets(NamedTuple):
    """Groups of images, by name.

    Args:
        probe: (N,), int64, below 0 where unknown.
        reference: (M,), of those names that training images have.
    """

    probe: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]


@dataclass(frozen=True)
class GroupNumbers(Part[GroupedSets]):
    """What images have in common beside their class."""

    source = "`groups`"

    def gather(self, at: Gatherer) -> GroupedSets | None:
        """Take the monitor's.

        Args:
            at: What the monitor has.

        Returns:
            Them, or ``None``.
        """
        sources = at.sources
        return GroupedSets(sources.groups, sources.reference_groups) if sources.groups else None


@dataclass(frozen=True)
class Corrupted(Part[dict[str, dict[int, Tensor]]]):
    """Scores of the first probe images in worse versions, (n,) by corruption and severity.

    Args:
        samples: How many images, n.
        severities: Which versions; default: the worst alone.
    """

    samples: int
    severities: tuple[int, ...] = (max(SEVERITIES),)

    source = "images (B, C, H, W)"
    of_images = True

    def gather(self, at: Gatherer) -> dict[str, dict[int, Tensor]] | None:
        """Score them.

        Args:
            at: What the monitor has.

        Returns:
            The scores, or ``None`` if the inputs are no images.
        """
        images = at.probe.images[: self.samples]
        if not is_drawable(images):
            return None
        return {
            name: {severity: at.scores(corrupt(images, severity)) for severity in self.severities}
            for name, corrupt in CORRUPTIONS.items()
        }


@dataclass(frozen=True)
class Contrasted(Part[Tensor]):
    """Scores of the first probe images with 5 % more contrast, (n,), by the rows of all scores.

    Args:
        samples: How many images, n.
    """

    samples: int = 8

    source = "images (B, C, H, W)"
    of_images = True

    def gather(self, at: Gatherer) -> Tensor | None:
        """Score them.

        Args:
            at: What the monitor has.

        Returns:
            The scores, or ``None`` if the inputs are no images.
        """
        images = at.probe.images[: self.samples]
        return at.scores(change_contrast(images)) if images.ndim == 4 else None


LABELS = Labels()
CONTRASTED = Contrasted()
FIRST_EMBEDDINGS = FirstEmbeddings()
OTHER_EMBEDDINGS = OtherEmbeddings()
OTHER_SETS = OtherSets()
PROBE_LABELS = ProbeLabels()
GROUPS = GroupNumbers()


def are_classes(labels: Tensor) -> bool:
    """Say whether labels divide images into classes of which every image has companions.

    Args:
        labels: (N,), int64; below 0 where unknown.

    Returns:
        Whether there are 2 classes or more, of 2 images or more, and nothing is unknown.
    """
    counts = torch.unique(labels, return_counts=True)[1]
    return bool((labels >= 0).all()) and len(counts) > 1 and int(counts.min()) > 1


def check_labels(labels: Tensor, count: int) -> Tensor:
    """Check the classes of the probe images.

    Args:
        labels: Of each image, (N,).
        count: Number of probe images that are embedded; labels beyond it are not needed.

    Returns:
        (count,), int64.

    Raises:
        ValueError: If they are too few, not whole numbers, of one class, or of a class with a
            single image.
    """
    if labels.ndim != 1 or len(labels) < count:
        raise ValueError(
            f"`labels` must have shape (N,), one for each of the {count} probe images, got "
            f"{tuple(labels.shape)}."
        )
    whole = labels[:count].cpu().long()
    if not bool((whole == labels[:count].cpu()).all()):
        raise ValueError(f"`labels` must be whole numbers, got {labels.dtype} with fractions.")
    counts = torch.bincount(whole - whole.min())
    counts = counts[counts > 0]
    if len(counts) < 2 or int(counts.min()) < 2:
        raise ValueError(
            "`labels` must name at least 2 classes, each of at least 2 probe images, got "
            f"{len(counts)} classes, the smallest with {int(counts.min())}."
        )
    return whole
