"""What training sees between two looks: in go its batches as they pass, out comes how varied they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.functional.variety import duplicate_share, thumbnails, view_variety
from jepa_monitor.probes.finding import batch_images, batch_views
from jepa_monitor.probes.images import BatchToImages

__all__ = ["TrainingImages"]

_PER_BATCH = 64  # images of a batch
_ENOUGH = 256  # images between two looks
_MOST_BATCHES = 16
_LEAST_PAIRS = 28  # of eight images: fewer do not tell whether data repeat


class TrainingImages:
    """Keeps thumbnails of a few batches, and asks at a look whether their images differ.

    It reads up to 64 images of each of the first batches since the last look, 256 in all, and writes
    nothing: no random number is drawn and nothing is copied off the device before the look. Where a
    batch holds nothing that it knows for images it says nothing.

    Args:
        batch_to_images: Finds the images in a batch of the reference; ``None`` for the usual places.
    """

    def __init__(self, batch_to_images: BatchToImages = None) -> None:
        if isinstance(batch_to_images, Mapping):
            batch_to_images = batch_to_images.get("reference")
        self._find = batch_to_images
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a look."""
        self._singles: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._batches = self._images = 0

    @torch.no_grad()
    def see(self, batch: Any) -> None:
        """Take thumbnails of a batch, unless there are enough of them.

        Args:
            batch: As the training step gets it, or a tensor of images.
        """
        if self._images >= _ENOUGH or self._batches >= _MOST_BATCHES:
            return
        self._batches += 1
        views = None
        if self._find is not None:
            with undisturbed((), torch.device("cpu")):
                images = self._find(batch)
        else:
            views = batch_views(batch)
            try:
                images = batch_images(batch) if views is None else views[0]
            except TypeError:
                return
        if images.ndim < 3 or len(images) < 2:  # a vector may be a token, a label, a coordinate
            return
        seen = thumbnails(images[:_PER_BATCH])
        self._images += len(seen)
        self._singles.append(seen)
        if views is not None and len(seen) >= 3:
            self._pairs.append((seen, thumbnails(views[1][:_PER_BATCH])))

    def scalars(self) -> dict[str, float]:
        """Say how varied the images since the last look were.

        Returns:
            ``data/duplicates`` and ``data/variety`` with the ends of their intervals; absent where
            too few images, or views, have passed or are not finite.
        """
        found: dict[str, float] = {}
        singles = [batch.cpu() for batch in self._singles if bool(torch.isfinite(batch).all())]
        singles = [batch for batch in singles if batch.shape[1] == singles[0].shape[1]]
        if sum(math.comb(len(batch), 2) for batch in singles) >= _LEAST_PAIRS:
            found |= _named("data/duplicates", duplicate_share(singles))
        pairs = [
            (a.cpu(), b.cpu())
            for a, b in self._pairs
            if bool(torch.isfinite(a).all() and torch.isfinite(b).all())
        ]
        if sum(len(first) for first, _ in pairs) >= _PER_BATCH // 2:
            found |= _named("data/variety", view_variety(pairs))
        return {tag: value for tag, value in found.items() if math.isfinite(value)}


def _named(tag: str, ends: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    values = (value.item() for value in ends)
    return dict(zip((tag, f"{tag}_low", f"{tag}_high"), values, strict=True))
