"""Images from the batches that training draws for itself: in go batches as they pass, out come images.

For data that cannot be read beside training without moving it: a loader on a GPU, a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jepa_monitor.encoders.texts import is_texts, join_texts

__all__ = ["PassingImages"]


class PassingImages:
    """Keeps the images of the batches that pass, until there are enough of them.

    Args:
        stage: The loop whose batches count: ``train`` or ``validate``.
        count: Images to keep.
        skip: Images to let pass before, which serve as another set.
        find: Finds the images in a batch, (B, ...), on the CPU.
    """

    def __init__(
        self, stage: str, count: int, find: Callable[[Any], Tensor], *, skip: int = 0
    ) -> None:
        self.stage = stage
        self._find = find
        self._count, self._skip = count, skip
        self._taken: list[Tensor] = []
        self._ended = False
        self.failure: Exception | None = None  # no images were found in a batch

    @property
    def images(self) -> Tensor | None:
        """The images, (N, ...), once they are complete: enough of them, or all of one pass."""
        if not self._taken or (self._missing > 0 and not self._ended):
            return None
        joined = join_texts if is_texts(self._taken[0]) else torch.cat
        return joined(self._taken)

    @property
    def _missing(self) -> int:
        return self._count - sum(map(len, self._taken))

    def see(self, stage: str, batch: Any, *, first: bool, last: bool) -> bool:
        """Take what is needed of a batch.

        Args:
            stage: The loop that has drawn it.
            batch: As the step gets it, of the first of several loaders.
            first: Whether it is the first one of a pass over the data.
            last: Whether it is the last one.

        Returns:
            Whether the images are complete now and were not before.
        """
        if stage != self.stage or self.failure is not None or self.images is not None:
            return False
        if first and stage == "validate":  # the same ones come again
            self._taken = []
        try:
            images = self._find(batch)
        except (TypeError, ValueError) as error:
            self.failure = error
            return False
        passed = min(self._skip, len(images))
        self._skip -= passed
        images = images[passed:]
        if len(images):
            self._taken.append(images[: self._missing])
        self._ended = last
        return self.images is not None
