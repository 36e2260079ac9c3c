"""Neighbourhoods that survive augmentation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor.functional.neighbor_consistency import NeighborConsistency as Consistency
from jepa_monitor.functional.neighbor_consistency import neighbor_consistency
from jepa_monitor.metrics.mutual_neighbors import PairedEmbeddings


class NeighborConsistency(PairedEmbeddings):
    r"""Whether two views of a sample find each other, and the same neighbours.

    See :func:`jepa_monitor.functional.neighbor_consistency`. The metric keeps all embeddings and
    takes O(N²) time.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``first`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``, one view
    - ``second`` (:class:`~torch.Tensor`): the same for another view

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``retrieval`` and ``overlap``, up to 1, 0 is
      chance

    Args:
        num_features: Dimension K of the embeddings.
        k: Neighbours of a sample.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = NeighborConsistency(4, k=5)
        >>> z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> metric.update(z, 3 * z)
        >>> metric.compute()["retrieval"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    value_names = Consistency._fields

    def __init__(self, num_features: int, k: int = 10, **kwargs: Any) -> None:
        super().__init__(num_features, num_features, k, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Consistency over all samples so far.

        Returns:
            ``retrieval`` and ``overlap``.
        """
        return neighbor_consistency(*self._kept(), self.k)._asdict()
