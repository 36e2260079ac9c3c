"""What one evaluation found: numbers under the tags of the dashboard, and what lies behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Result of :meth:`DensityMonitor.evaluate`.

    Args:
        scalars: Finite numbers by tag, as TensorBoard shows them.
        scores: JEPA-SCORE of each probe image, (B,), float64, in nats; NaN where not finite.
        singular_values: Of the Jacobian at each probe image, (B, min(K, D)), float64, descending.
        embeddings: Of all images of the probe, the scored ones first, (N, K).
        images: The scored probe images, (B, ...).
    """

    scalars: dict[str, float]
    scores: Tensor = field(repr=False)
    singular_values: Tensor = field(repr=False)
    embeddings: Tensor = field(repr=False)
    images: Tensor = field(repr=False)

    @property
    def histograms(self) -> dict[str, Tensor]:
        """Finite values by tag."""
        return {"jepa_score/scores": self.scores[torch.isfinite(self.scores)]}

    def extremes(self, count: int = 8) -> tuple[Tensor, Tensor]:
        """Find the images with the lowest and with the highest scores.

        Args:
            count: How many of each; fewer where there are fewer.

        Returns:
            Indices of the least likely, lowest first, and of the most likely, highest first.
        """
        order = self.scores.argsort(stable=True)
        order = order[torch.isfinite(self.scores[order])]
        return order[:count], order.flip(0)[:count]

    def figures(self) -> dict[str, Figure]:
        """Draw the pictures of this evaluation.

        Returns:
            Figures by tag; without the sheet of images where the inputs are no images.
        """
        from jepa_monitor import plotting

        drawn = {}
        if plotting.is_drawable(self.images) and len(self.extremes()[0]):
            drawn["jepa_score/least_and_most_likely"] = plotting.plot_extremes(self)
        return drawn
