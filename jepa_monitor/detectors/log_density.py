"""The full change of variables as a detector: the Jacobian and the law of the embeddings."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import ScoredSet

__all__ = ["LogDensity"]


class LogDensity(Detector):
    """JEPA-SCORE and the log-density of the embedding under the reference's law."""

    name = "log_density"
    least_reference = 2
    by_law = True

    def score(self, data: ScoredSet) -> Tensor:
        """Take the densities that the set has, which come of the same reference.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64, nats.
        """
        return data.log_density
