"""Angle to the nearest reference embeddings: neighbours whatever the embeddings' lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.detectors.knn import KNN
from jepa_monitor.functional._directions import unit_rows

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

__all__ = ["NormalizedKNN"]


class NormalizedKNN(KNN):
    """Minus the distance to the 10th nearest reference embedding, all scaled to unit length.

    Sun et al., Out-of-distribution detection with deep nearest neighbors (arXiv 2204.06507). Networks
    with ReLUs give embeddings whose length follows the contrast of an image, so that blurred images may
    lie closest to all others (``docs/detectors.md``).
    """

    name = "knn_normalized"

    def fit(self, reference: Reference) -> Self:
        """Keep the directions of the reference's embeddings.

        Args:
            reference: Reference images, at least 10.

        Returns:
            Itself.
        """
        return super().fit(replace(reference, embeddings=unit_rows(reference.embeddings)))

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances; an image of the reference is not its own neighbour.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64; NaN for embeddings that are not finite.
        """
        embeddings = data.scored_embeddings
        finite = torch.isfinite(embeddings).all(1, keepdim=True)
        unit = unit_rows(torch.where(finite, embeddings, 0.0))
        return super().score(replace(data, embeddings=torch.where(finite, unit, torch.nan)))
