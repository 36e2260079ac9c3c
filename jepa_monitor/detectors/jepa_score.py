"""JEPA-SCORE itself as a detector: no reference, one Jacobian an image."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import ScoredSet

__all__ = ["JepaScore"]


class JepaScore(Detector):
    """Σ log σ of the encoder's Jacobian (arXiv 2510.05949)."""

    name = "jepa_score"

    def score(self, data: ScoredSet) -> Tensor:
        """Take the scores that the set has.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64, nats.
        """
        return data.scores
