"""Intrinsic dimension of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._dimension import IntrinsicDimension
from jepa_monitor.functional.mst_dimension import MIN_SAMPLES as MIN_TREE
from jepa_monitor.functional.mst_dimension import tree_growth
from jepa_monitor.functional.two_nn import MIN_SAMPLES as MIN_NEIGHBORS
from jepa_monitor.functional.two_nn import nearest_two
from jepa_monitor.metrics._base import KeptEmbeddings


class TwoNN(KeptEmbeddings):
    r"""TwoNN estimate of the intrinsic dimension.

    See :func:`jepa_monitor.functional.two_nn`, in particular for when not to read it. The metric
    keeps all embeddings and takes O(N²·K) time.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``dimension``, its standard ``error``, and the
      number of ``duplicates`` that were left out; inf and inf if none can be told

    Args:
        num_features: Dimension K of the embeddings.
        normalized: Whether to scale them to unit length first.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TwoNN(num_features=3)
        >>> metric.update(torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(3))
        >>> metric.compute()["dimension"]
        tensor(1.0, dtype=torch.float64)
    """

    value_names = IntrinsicDimension._fields

    def __init__(self, num_features: int, normalized: bool = False, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.normalized = normalized

    def compute(self) -> dict[str, Tensor]:
        """Dimension of all embeddings so far.

        Returns:
            The fields of :class:`~jepa_monitor.functional._dimension.IntrinsicDimension`.
        """
        z = self._kept(MIN_NEIGHBORS)
        return nearest_two(z, self.normalized, float(self.resolution))._asdict()


class MSTDimension(KeptEmbeddings):
    r"""IdEst, the intrinsic dimension from how fast the minimum spanning tree grows.

    See :func:`jepa_monitor.functional.mst_dimension`, in particular for when not to read it. The
    metric keeps all embeddings and takes O(N²) memory.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``dimension``, its standard ``error``, and the
      number of ``duplicates`` that were left out; inf and inf if none can be told

    Args:
        num_features: Dimension K of the embeddings.
        normalized: Whether to scale them to unit length first.
        sizes: Sizes of the subsets; default: shares of N.
        draws: Subsets of each size.
        seed: Of the subsets.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MSTDimension(num_features=3, normalized=False)
        >>> metric.update(torch.linspace(0, 1, 500)[:, None] * torch.ones(3))
        >>> metric.compute()["dimension"]
        tensor(1.0, dtype=torch.float64)
    """

    value_names = IntrinsicDimension._fields

    def __init__(
        self,
        num_features: int,
        normalized: bool = True,
        sizes: Sequence[int] | None = None,
        draws: int = 5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, **kwargs)
        self.normalized = normalized
        self.sizes = None if sizes is None else [check_positive_int(n, "sizes") for n in sizes]
        self.draws = check_positive_int(draws, "draws")
        self.seed = seed

    def compute(self) -> dict[str, Tensor]:
        """Dimension of all embeddings so far.

        Returns:
            The fields of :class:`~jepa_monitor.functional._dimension.IntrinsicDimension`.
        """
        z = self._kept(max(MIN_TREE, *(self.sizes or [0])))
        resolution = float(self.resolution)
        return tree_growth(
            z, self.normalized, self.sizes, self.draws, self.seed, resolution
        )._asdict()
