"""Mahalanobis distance under the law of the reference's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Mahalanobis"]


class Mahalanobis(Detector):
    """Minus the squared Mahalanobis distance under the reference's Gaussian."""

    name = "mahalanobis"
    least_reference = 2
    by_law = True

    def fit(self, reference: Reference) -> Self:
        """Take the law of the reference.

        Args:
            reference: Reference images.

        Returns:
            Itself.
        """
        self._law = reference.law
        return self

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64; NaN for embeddings that are not finite.
        """
        embeddings = data.scored_embeddings
        finite = torch.isfinite(embeddings).all(1)
        filled = torch.where(finite[:, None], embeddings, 0.0)
        return torch.where(finite, -self._law.mahalanobis_squared(filled), torch.nan)
