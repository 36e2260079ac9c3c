"""What one evaluation found: numbers under the tags of the dashboard, and what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from jepa_monitor._warnings import warn
from jepa_monitor.detectors import ScoredSet
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights import Insight, Look
from jepa_monitor.insights._drawing import as_html
from jepa_monitor.insights.score import extremes
from jepa_monitor.monitor.alarm import MIN_SAMPLES, collapse_state
from jepa_monitor.monitor.verdict import Verdict, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Result of :meth:`DensityMonitor.evaluate`.

    Args:
        scalars: Finite numbers by tag, as TensorBoard shows them.
        look: What was gathered of the encoder.
        insights: Who was asked.
        failed: Insights (and detectors) that could not say anything, with the reason.
    """

    scalars: dict[str, float]
    look: Look = field(repr=False)
    insights: tuple[Insight, ...] = field(default=(), repr=False)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """How the scores were made, such as ``"sketch, 12 of 192 rows, whitened"``."""
        return self.look.method

    @property
    def probe(self) -> ScoredSet:
        """Held-out images."""
        return self.look.probe

    @property
    def reference(self) -> ScoredSet | None:
        """Training images; ``None`` where none were given."""
        return None if self.look.reference is None else self.look.reference.scored

    @property
    def ood(self) -> Mapping[str, ScoredSet]:
        """Out-of-distribution images by name."""
        return self.look.ood

    @property
    def law(self) -> Gaussian | None:
        """Of the embeddings of those reference images that are not scored."""
        return None if self.look.reference is None else self.look.reference.law

    @property
    def histograms(self) -> dict[str, Tensor]:
        """Finite values by tag, such as the scores of every set."""
        drawn: dict[str, Tensor] = {}
        for insight in self._heard():
            drawn |= insight.histograms(self.look)
        return drawn

    def extremes(self, count: int = 8) -> tuple[Tensor, Tensor]:
        """Find the probe images with the lowest and with the highest scores.

        Args:
            count: How many of each; fewer where there are fewer.

        Returns:
            Indices of the least likely, lowest first, and of the most likely, highest first.
        """
        return extremes(self.probe.scores, count)

    def figures(self) -> dict[str, Figure]:
        """Draw the pictures of this evaluation.

        Returns:
            Figures by tag: the sheet of images where the inputs are images, and with a reference
            the reliability diagram and score against Mahalanobis distance; and those of insights
            that have any. A picture that cannot be drawn is left out, with a warning.
        """
        drawn: dict[str, Figure] = {}
        for insight in self._heard():
            try:
                drawn |= insight.figures(self.look)
            except Exception as error:  # noqa: BLE001, PERF203 - maybe somebody else's code
                warn(
                    f"the insight {insight.name!r} could not draw its figures: "
                    f"{type(error).__name__}: {error}"
                )
        return drawn

    @property
    def verdict(self) -> Verdict:
        """What this look says, in words; of a collapse, as far as one look tells."""
        return self.judge()

    def judge(self, step: float | None = None) -> Verdict:
        """Say what this look says, and since when.

        Args:
            step: Training steps done, where the scalars hold the steps that the state has lasted.

        Returns:
            The verdict.
        """
        scalars = dict(self.scalars)
        if len(self.probe.embeddings) >= MIN_SAMPLES:
            scalars.setdefault("collapse/state", float(collapse_state(self.probe.embeddings)))
        return judge(scalars, self._heard(), step)

    def overview(self) -> Figure:
        """Draw this look in one picture: what it says, its numbers and its images.

        Returns:
            The figure.
        """
        from jepa_monitor.monitor.overview import plot_overview

        looks = [{"step": 0.0, **self.scalars}]
        return plot_overview(self.look, self._heard(), self.verdict, looks)

    def _repr_html_(self) -> str:
        """Show verdict and overview in a notebook."""
        picture = as_html("monitor/overview", self.overview(), str(self.verdict))
        return f"{picture}<p>{self.method}</p>"

    def _heard(self) -> list[Insight]:
        return [insight for insight in self.insights if insight.name not in self.failed]
