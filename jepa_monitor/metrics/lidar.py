"""LiDAR from running moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_views, require_number
from jepa_monitor.functional._spectrum import lost_share
from jepa_monitor.functional.lidar import scatter_rank
from jepa_monitor.metrics._base import EmbeddingMoments


class LiDAR(EmbeddingMoments):
    r"""LiDAR, the rank of what separates samples beyond what separates views of one sample.

    See :func:`jepa_monitor.functional.lidar`, in particular for the false healthy readings of the
    literal formula, which the default corrects: for numbers to compare with stable-pretraining's or
    the paper's, give ``correct_noise=False``.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, q, K)``,
      the q views of each of B samples

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``lidar`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor from 1 to min(n − 1, K),
      higher is healthier; 0 if no direction separates the samples

    Args:
        num_features: Dimension K of the embeddings.
        num_views: Number q of views of a sample, at least 2.
        delta: Ridge on the within-sample covariance.
        eps: Added to the eigenvalues in the literal formula.
        correct_noise: Whether to leave out what within-sample noise alone can produce.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If there are fewer than 2 views.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> signal = torch.randn(256, 1, 8, generator=generator)
        >>> metric = LiDAR(num_features=8, num_views=4)
        >>> metric.update(signal + 0.1 * torch.randn(256, 4, 8, generator=generator))
        >>> metric.compute()
        tensor(7.9, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    within: Tensor

    def __init__(
        self,
        num_features: int,
        num_views: int,
        delta: float = 1e-4,
        eps: float = 1e-8,
        correct_noise: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, **kwargs)
        if check_positive_int(num_views, "num_views") < 2:
            raise ValueError(f"`num_views` must be at least 2, got {num_views}.")
        self.num_views = num_views
        self.delta = require_number(delta, "delta", 0, closed=False)
        self.eps = require_number(eps, "eps", 0)
        self.correct_noise = correct_noise
        self._add_sum("within", num_features, num_features)

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings of q views of each of B samples, shape (B, q, K).

        Raises:
            ValueError: If the number of views or the width is another.
        """
        z = as_views(embeddings, "embeddings", min_samples=0, min_views=2).detach()
        if z.shape[1:] != (self.num_views, self.num_features):
            raise ValueError(
                f"`embeddings` must have shape (B, {self.num_views}, {self.num_features}), "
                f"got {tuple(embeddings.shape)}."
            )
        means = z.mean(dim=1)
        residuals = (z - means[:, None]).flatten(0, 1)
        self.within = self.within + residuals.T @ residuals
        self._accumulate(means, torch.finfo(embeddings.dtype).eps)

    def compute(self) -> Tensor:
        """LiDAR of all samples so far.

        Returns:
            0-dimensional float64 tensor.
        """
        # n·(q − 1) must be above K to know the noise.
        known = self.num_features // (self.num_views - 1) + 1 if self.correct_noise else 2
        samples = self._samples(minimum=max(2, known))
        between = self.second - torch.outer(self.total, self.total) / samples
        negligible = lost_share(samples, float(self.resolution)) * float(self.second.trace())
        if float(between.trace()) <= negligible:
            between = torch.zeros_like(between)
        return scatter_rank(
            between,
            self.within,
            samples,
            self.num_views,
            delta=self.delta,
            eps=self.eps,
            correct_noise=self.correct_noise,
        )
