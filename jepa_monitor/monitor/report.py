"""What one evaluation found: numbers under the tags of the dashboard, and what lies behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.summary import ScoredSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Result of :meth:`DensityMonitor.evaluate`.

    Args:
        scalars: Finite numbers by tag, as TensorBoard shows them.
        method: How the scores were made, such as ``"sketch, 12 of 192 rows, whitened"``.
        probe: Held-out images.
        reference: Training images; ``None`` where none were given.
        ood: Out-of-distribution images by name.
        law: Of the embeddings of those reference images that are not scored.
    """

    scalars: dict[str, float]
    method: str
    probe: ScoredSet
    reference: ScoredSet | None = None
    ood: dict[str, ScoredSet] = field(default_factory=dict)
    law: Gaussian | None = field(default=None, repr=False)

    @property
    def histograms(self) -> dict[str, Tensor]:
        """Finite scores by tag, of every set."""
        sets = {"jepa_score/scores": self.probe}
        if self.reference is not None:
            sets["jepa_score/scores_reference"] = self.reference
        sets |= {f"ood/{name}/scores": data for name, data in self.ood.items()}
        return {tag: data.scores[torch.isfinite(data.scores)] for tag, data in sets.items()}

    def extremes(self, count: int = 8) -> tuple[Tensor, Tensor]:
        """Find the probe images with the lowest and with the highest scores.

        Args:
            count: How many of each; fewer where there are fewer.

        Returns:
            Indices of the least likely, lowest first, and of the most likely, highest first.
        """
        order = self.probe.scores.argsort(stable=True)
        order = order[torch.isfinite(self.probe.scores[order])]
        return order[:count], order.flip(0)[:count]

    def figures(self) -> dict[str, Figure]:
        """Draw the pictures of this evaluation.

        Returns:
            Figures by tag: the sheet of images where the inputs are images, and with a reference
            the reliability diagram and score against Mahalanobis distance.
        """
        from jepa_monitor.monitor import pictures

        drawn = {}
        if pictures.is_drawable(self.probe.images) and len(self.extremes()[0]):
            drawn["jepa_score/least_and_most_likely"] = pictures.plot_extremes(self)
        if self.law is not None:
            drawn["density/reliability"] = pictures.plot_reliability(self)
            drawn["density/score_and_distance"] = pictures.plot_score_and_distance(self)
        return drawn
