"""What a detector is: something that is fitted to the usual and scores the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from jepa_monitor.detectors.inputs import Reference, ScoredSet

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Detector"]


class Detector(ABC):
    """Scores images by how usual they are, given reference images.

    A subclass gives ``name`` and :meth:`score`, :meth:`fit` if it learns from the reference, and
    :meth:`fit_and_judge` if it learns from examples.

    Attributes:
        name: Stands in tags (``outliers/<name>``) and columns: letters, digits and underscores.
        least_reference: How many reference embeddings it needs; with fewer it is left out. 0: it
            does without a reference.
        least_examples: How many scored images it needs to learn from, of the reference's
            :attr:`~jepa_monitor.detectors.Reference.examples`; with fewer it is left out. 0: it
            learns from none, so that thresholds may be set on all of them.
        by_law: Whether it judges by the normal law of the reference's embeddings, which no more of
            them than dimensions do not determine.
    """

    name: str
    least_reference: ClassVar[int] = 0
    least_examples: ClassVar[int] = 0
    by_law: ClassVar[bool] = False

    def fit(self, reference: Reference) -> Self:
        """Learn what is usual. A fit replaces the one before.

        Args:
            reference: Reference images, at least :attr:`least_reference`.

        Returns:
            Itself.
        """
        del reference
        return self

    @abstractmethod
    def score(self, data: ScoredSet) -> Tensor:
        """Score the scored images of a set.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64, higher for more usual; NaN where it cannot be told.
        """

    def fit_and_judge(self, reference: Reference) -> Tensor:
        """Fit, and score the examples as new images are scored: none by what was learned from itself.

        Args:
            reference: Reference images with examples.

        Returns:
            (n,), float64; NaN where it cannot be told: throughout if it could not be fitted.

        Raises:
            ValueError: If there are no examples.
        """
        examples = reference.require_examples()
        return self.fit(reference).score(examples)
