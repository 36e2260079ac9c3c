"""Cluster learnability of embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional.cluster_learnability import MIN_SAMPLES, learn_clusters
from jepa_monitor.functional.cluster_learnability import ClusterLearnability as Learnability
from jepa_monitor.metrics._base import KeptEmbeddings


class ClusterLearnability(KeptEmbeddings):
    r"""CL, one part of CLID: how well 1-NN learns k-means clusters.

    See :func:`jepa_monitor.functional.cluster_learnability`. The metric keeps all embeddings.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``learnability`` (up to 1, 0 is chance),
      ``accuracy`` and ``chance``

    Args:
        num_features: Dimension K of the embeddings.
        clusters: Number of clusters; default √N.
        restarts: Starts of k-means.
        seed: Of k-means and of the halves.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = ClusterLearnability(num_features=4, clusters=4)
        >>> noise = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> metric.update(9 * torch.eye(4).repeat(25, 1) + noise)
        >>> metric.compute()["learnability"]
        tensor(1.0, dtype=torch.float64)
    """

    value_names = Learnability._fields

    def __init__(
        self,
        num_features: int,
        clusters: int | None = None,
        restarts: int = 3,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, **kwargs)
        self.clusters = None if clusters is None else check_positive_int(clusters, "clusters")
        self.restarts = check_positive_int(restarts, "restarts")
        self.seed = seed

    def compute(self) -> dict[str, Tensor]:
        """Learnability of the clusters of all embeddings so far.

        Returns:
            The fields of
            :class:`~jepa_monitor.functional.cluster_learnability.ClusterLearnability`.
        """
        z = self._kept(max(MIN_SAMPLES, 2 * (self.clusters or 0)))
        resolution = float(self.resolution)
        return learn_clusters(z, self.clusters, self.restarts, self.seed, resolution)._asdict()
