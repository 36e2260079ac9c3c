"""JEPA-SCORE, taken from both sides: too likely is as unusual as too unlikely."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.detectors._normal import NormalFeatures
from jepa_monitor.detectors.inputs import ScoredSet

__all__ = ["TwoSidedJepaScore"]


class TwoSidedJepaScore(NormalFeatures):
    """Minus the squared distance of JEPA-SCORE from the mean of the examples, in their variance."""

    name = "jepa_score_two_sided"

    def features(self, data: ScoredSet) -> Tensor:
        """Take the scores.

        Args:
            data: The images and what is known of them.

        Returns:
            (B, 1), float64.
        """
        return data.scores[:, None]
