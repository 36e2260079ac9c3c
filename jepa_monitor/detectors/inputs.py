"""What detectors work on: images with everything that one look has found out about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jepa_monitor.functional.gaussian import Gaussian

__all__ = ["Reference", "ScoredSet", "most_scored"]


@dataclass(frozen=True)
class ScoredSet:
    """What one look knows of a set of images, the scored ones first.

    Args:
        images: The scored images, (B, ...).
        embeddings: Of all images, (N, K), N ≥ B.
        scores: JEPA-SCORE, (B,), float64; NaN where not finite.
        log_density: The full log-density, (B,), float64; NaN throughout without a reference.
        singular_values: Of the Jacobian's rows, (B, r), float64, descending; (B, 0) where scores are
            estimates (``method="lanczos"``).
        noise_floors: Size below which they are rounding error, (B,), float64; NaN of estimates.
        in_reference: Which scored images are among those that a :class:`Reference` is of, (B,),
            bool; ``None`` for none of them.
    """

    images: Tensor = field(repr=False)
    embeddings: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    log_density: Tensor = field(repr=False)
    singular_values: Tensor = field(repr=False)
    noise_floors: Tensor = field(repr=False)
    in_reference: Tensor | None = field(default=None, repr=False)

    @property
    def finite_embeddings(self) -> Tensor:
        """The embeddings that are finite, (n, K)."""
        return self.embeddings[torch.isfinite(self.embeddings).all(1)]

    @property
    def scored_embeddings(self) -> Tensor:
        """The embeddings of the scored images, (B, K), float64, finite or not."""
        return self.embeddings[: len(self.scores)].double()

    def take(self, which: Tensor | slice) -> ScoredSet:
        """Keep some of the scored images, and nothing of the others.

        Args:
            which: Their indices, (b,), int64, or a slice, of which nothing is copied.

        Returns:
            The smaller set.
        """
        own = self.in_reference
        return ScoredSet(
            self.images[which],
            self.embeddings[which],
            self.scores[which],
            self.log_density[which],
            self.singular_values[which],
            self.noise_floors[which],
            None if own is None else own[which],
        )


@dataclass(frozen=True)
class Reference:
    """The usual: what a detector is fitted to.

    Args:
        embeddings: Of reference images that are not among the scored ones, (M, K), M ≥ 2, finite,
            float64.
        law: Fitted to them.
        scored: Reference images that are scored, which serve as examples of normal scores; ``None``
            where there are none.
    """

    embeddings: Tensor = field(repr=False)
    law: Gaussian = field(repr=False)
    scored: ScoredSet | None = field(default=None, repr=False)

    @property
    def examples(self) -> ScoredSet | None:
        """The first half of the scored images, of which a detector may learn usual scores.

        What it says of them is no measure of others: thresholds are set on the second half.
        """
        if self.scored is None:
            return None
        return self.scored.take(slice(len(self.scored.scores) // 2))

    def require_examples(self) -> ScoredSet:
        """Give the examples to a detector that cannot do without.

        Returns:
            :attr:`examples`.

        Raises:
            ValueError: If no image of the reference is scored.
        """
        if (examples := self.examples) is None:
            raise ValueError("`reference` must have scored images, got none.")
        return examples

    @property
    def swapped(self) -> Reference:
        """The same, of which detectors learn from the second half and say nothing of it."""
        if self.scored is None:
            return self
        count = len(self.scored.scores)
        # Of an odd number the second half is the larger one, of which as many are taken.
        return replace(self, scored=self.scored.take(torch.arange(count).roll(count // 2)))


def most_scored(count: int, asked: int, fitted: int) -> int:
    """Say how many images of a reference may be scored; the law is fitted to the others.

    Args:
        count: How many there are.
        asked: How many to score at most.
        fitted: How many the law must keep.

    Returns:
        At most half of them, at least 0.
    """
    return max(0, min(asked, count // 2, count - fitted))
