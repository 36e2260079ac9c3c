"""Self-clustering of embeddings, from running moments of their directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.self_clustering import crowding
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings


class SelfClustering(MonitorMetric):
    r"""Self-clustering: how far the directions of the embeddings crowd together.

    See :func:`jepa_monitor.functional.self_clustering`. The state has K² numbers.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``self_clustering`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor from about 0
      (uniform) to 1 (one direction)

    Args:
        num_features: Dimension K of the embeddings, at least 2.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If there is one feature only.

    Example:
        >>> import torch
        >>> metric = SelfClustering(num_features=4)
        >>> metric.update(torch.ones(8, 4))
        >>> metric.compute()
        tensor(1.0000, dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = 1.0

    second: Tensor
    directed: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if check_positive_int(num_features, "num_features") < 2:
            raise ValueError(f"`num_features` must be at least 2, got {num_features}.")
        self.num_features = num_features
        self._add_sum("second", num_features, num_features)
        self.add_state("directed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = unit_rows(checked_embeddings(embeddings, self.num_features))
        self.count = self.count + len(z)
        self.second = self.second + z.T @ z
        self.directed = self.directed + (z != 0).any(dim=1).sum()

    def compute(self) -> Tensor:
        """Self-clustering of all embeddings so far.

        Returns:
            0-dimensional float64 tensor.
        """
        return crowding(self.second, self._samples(minimum=2), int(self.directed))
