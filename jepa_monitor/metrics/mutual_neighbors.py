"""Neighbourhoods that two encoders share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import require_same_rows
from jepa_monitor.functional.mutual_neighbors import mutual_knn
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings, joined


class PairedEmbeddings(MonitorMetric):
    """Base of the metrics that compare neighbourhoods of two embeddings of the same samples.

    Args:
        first_features: Dimension K₁.
        second_features: Dimension K₂.
        k: Neighbours of a sample.
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    first: list[Tensor]
    second: list[Tensor]

    def __init__(self, first_features: int, second_features: int, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first_features = check_positive_int(first_features, "first_features")
        self.second_features = check_positive_int(second_features, "second_features")
        self.k = check_positive_int(k, "k")
        self.add_state("first", [], dist_reduce_fx="cat")
        self.add_state("second", [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch.

        Args:
            first: Embeddings of one kind, shape (B, K₁).
            second: Embeddings of the other, shape (B, K₂), row by row the same samples.
        """
        a = checked_embeddings(first, self.first_features, "first")
        b = checked_embeddings(second, self.second_features, "second")
        require_same_rows(a, b, ("first", "second"))
        self.count = self.count + len(a)
        self.first.append(a.flatten())
        self.second.append(b.flatten())

    def _kept(self) -> tuple[Tensor, Tensor]:
        count = self._samples(self.k + 2)
        first = joined(self.first).view(count, self.first_features)
        return first, joined(self.second).view(count, self.second_features)


class MutualKNN(PairedEmbeddings):
    r"""Mutual k-nearest-neighbour alignment of two embeddings of the same samples.

    See :func:`jepa_monitor.functional.mutual_knn`. The metric keeps all embeddings and takes O(N²)
    time.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``first`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K₁)``
    - ``second`` (:class:`~torch.Tensor`): the same samples by another encoder, ``(B, K₂)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``mutual_knn`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor up to 1, 0 is chance

    Args:
        first_features: Dimension K₁.
        second_features: Dimension K₂.
        k: Neighbours of a sample.
        chance_corrected: Whether to give 0 to chance.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MutualKNN(4, 4, k=5)
        >>> z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> metric.update(z, 3 * z)
        >>> metric.compute()
        tensor(1.0000, dtype=torch.float64)
    """

    plot_upper_bound = 1.0

    def __init__(
        self,
        first_features: int,
        second_features: int,
        k: int = 10,
        chance_corrected: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(first_features, second_features, k, **kwargs)
        self.chance_corrected = chance_corrected

    def compute(self) -> Tensor:
        """Alignment over all samples so far.

        Returns:
            0-dimensional float64 tensor.
        """
        return mutual_knn(*self._kept(), self.k, self.chance_corrected)
