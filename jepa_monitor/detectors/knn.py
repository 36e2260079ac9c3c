"""Distance to the nearest reference embeddings: the baseline that a density score must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.functional.neighbors import knn_distance

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KNN"]

_NEIGHBOURS = 10


class KNN(Detector):
    """Minus the Euclidean distance to the 10th nearest reference embedding."""

    name = "knn"
    least_reference = _NEIGHBOURS

    def fit(self, reference: Reference) -> Self:
        """Keep the reference's embeddings.

        Args:
            reference: Reference images, at least 10.

        Returns:
            Itself.
        """
        self._base = reference.embeddings
        return self

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances; an image of the reference is not its own neighbour.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64; NaN for embeddings that are not finite.
        """
        embeddings = data.scored_embeddings
        own = data.in_reference
        if own is None:
            own = torch.zeros(len(embeddings), dtype=torch.bool)
        finite = torch.isfinite(embeddings).all(1)
        scores = embeddings.new_full((len(embeddings),), torch.nan)
        for some, k in ((own & finite, _NEIGHBOURS + 1), (~own & finite, _NEIGHBOURS)):
            if bool(some.any()) and k <= len(self._base):
                scores[some] = -knn_distance(embeddings[some], self._base, k)
        return scores
