"""Outlier fraction and OOD detection from scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_number
from jepa_monitor.functional.detection import auroc, average_precision, fpr_at_tpr
from jepa_monitor.functional.outliers import OutlierFraction as OutlierShare
from jepa_monitor.functional.outliers import reference_threshold, summarize_outliers
from jepa_monitor.metrics._base import MonitorMetric, NotComputableError, joined


class OutlierFraction(MonitorMetric):
    r"""Share of scores under the α-quantile of the reference scores.

    See :func:`jepa_monitor.functional.outlier_fraction`. The state is two counts.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``scores`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B,)``, higher
      is denser

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``fraction``, ``lower`` and ``upper`` (between
      which it lies if scores and reference have one law), ``expected`` (on average then),
      ``threshold`` and ``p_value``

    Args:
        reference_scores: Scores of the reference set, shape (M,), M ≥ 1/α − 1.
        alpha: Share to expect.
        confidence: Level of the interval.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = OutlierFraction(torch.arange(99.0), alpha=0.05)
        >>> metric.update(torch.arange(100.0) - 5)
        >>> metric.compute()["fraction"]
        tensor(0.0900, dtype=torch.float64)
    """

    below: Tensor
    value_names = OutlierShare._fields

    def __init__(
        self,
        reference_scores: Tensor,
        alpha: float = 0.05,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(own_update=True, **kwargs)
        threshold, self.order = reference_threshold(reference_scores, alpha)
        self.threshold, self.size = float(threshold), len(reference_scores)
        self.confidence = require_number(confidence, "confidence", 0, 1, closed=False)
        self.add_state("below", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Add a batch.

        Args:
            scores: Scores, shape (B,).
        """
        values = as_vector(scores, "scores", min_size=0).detach()
        self.count = self.count + len(values)
        self.below = self.below + (values < self.threshold).sum()

    def compute(self) -> dict[str, Tensor]:
        """Share of outliers among all scores so far.

        Returns:
            The fields of :class:`jepa_monitor.functional.outliers.OutlierFraction`.
        """
        count = self._samples()
        threshold = torch.tensor(self.threshold, dtype=torch.float64, device=self.below.device)
        below = int(self.below)
        return summarize_outliers(
            below, count, threshold, self.order, self.size, self.confidence
        )._asdict()


class OODDetection(MonitorMetric):
    r"""How well a density score tells out-of-distribution samples from in-distribution ones.

    See :func:`jepa_monitor.functional.auroc` and its neighbours. The metric keeps all scores.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``scores`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B,)``, higher
      is denser
    - ``in_distribution`` (:class:`~torch.Tensor`): tensor of shape ``(B,)``, true (or 1) for
      in-distribution samples

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors from 0 to 1: ``auroc`` (higher is better, under
      ½ the score is inverted), ``fpr_at_tpr`` (lower is better) and ``average_precision`` (higher
      is better, in-distribution samples are the positives)

    Args:
        tpr: Share of in-distribution samples that must pass for the false-positive rate.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = OODDetection()
        >>> metric.update(torch.tensor([-310.0, -320.0, -400.0]), torch.tensor([1, 1, 0]))
        >>> metric.compute()["auroc"]
        tensor(1., dtype=torch.float64)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    value_names = ("auroc", "fpr_at_tpr", "average_precision")

    inside: list[Tensor]
    outside: list[Tensor]

    def __init__(self, tpr: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tpr = require_number(tpr, "tpr", 0, 1)
        self.add_state("inside", [], dist_reduce_fx="cat")
        self.add_state("outside", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, in_distribution: Tensor) -> None:
        """Add a batch.

        Args:
            scores: Scores, shape (B,).
            in_distribution: Labels, shape (B,), true for in-distribution samples.

        Raises:
            ValueError: If the shapes differ or the labels are more than two.
        """
        values = as_vector(scores, "scores", min_size=0).detach()
        if in_distribution.shape != values.shape:
            raise ValueError(
                "`scores` and `in_distribution` must have the same shape, "
                f"got {tuple(values.shape)} and {tuple(in_distribution.shape)}."
            )
        if not ((in_distribution == 0) | (in_distribution == 1)).all():
            raise ValueError("`in_distribution` must hold 0 and 1 only.")
        mask = in_distribution.bool()
        self.count = self.count + len(values)
        self.inside.append(values[mask])
        self.outside.append(values[~mask])

    def compute(self) -> dict[str, Tensor]:
        """Separation of all scores so far.

        Returns:
            AUROC, false-positive rate and average precision.

        Raises:
            NotComputableError: If either kind of sample is missing.
        """
        self._samples()
        inside, outside = joined(self.inside), joined(self.outside)
        if len(inside) == 0 or len(outside) == 0:
            raise NotComputableError(
                "`OODDetection` needs samples of both kinds to compute, got "
                f"{len(inside)} in-distribution and {len(outside)} out-of-distribution ones."
            )
        found = (
            auroc(inside, outside),
            fpr_at_tpr(inside, outside, self.tpr),
            average_precision(inside, outside),
        )
        return dict(zip(self.value_names, found, strict=True))
