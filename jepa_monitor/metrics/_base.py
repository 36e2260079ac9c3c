"""What all metrics share: the sample count, the running moments and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._spectrum import moment_eigenvalues


class MonitorMetric(Metric):
    """A metric that counts its samples in :attr:`count` and refuses to compute from too few.

    Subclasses write all states out of place, so that a reset in inference mode does no harm, and
    keep list states flat and in float64, so that a process without data can take part in a sync.

    Args:
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several over time.

        Args:
            val: What :meth:`compute` or ``forward`` returned, or a list of such; computed if None.
            ax: Matplotlib axes to draw into; new ones if None.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _samples(self, minimum: int = 1) -> int:
        count = int(self.count)
        if count < minimum:
            raise RuntimeError(
                f"`{type(self).__name__}` needs at least {minimum} sample{'s' * (minimum > 1)} "
                f"to compute, got {count}; call `update` first."
            )
        return count


class EmbeddingMoments(MonitorMetric):
    """Base of the metrics that need no more than the first and second moments of the embeddings.

    The state has K² numbers, whatever the number of embeddings. In a
    :class:`torchmetrics.MetricCollection` these metrics share it.

    Args:
        num_features: Dimension K of the embeddings.
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    total: Tensor
    second: Tensor
    resolution: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        self._add_sum("total", num_features)
        self._add_sum("second", num_features, num_features)
        self.add_state("resolution", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = checked_embeddings(embeddings, self.num_features)
        self._accumulate(z, torch.finfo(embeddings.dtype).eps)

    def _accumulate(self, z: Tensor, eps: float) -> None:
        self.count = self.count + len(z)
        self.total = self.total + z.sum(dim=0)
        self.second = self.second + z.T @ z
        self.resolution = self.resolution.clamp(min=eps)

    def _eigenvalues(self) -> Tensor:
        count = self._samples(minimum=2)
        return moment_eigenvalues(count, self.total, self.second, float(self.resolution))


def checked_embeddings(embeddings: Tensor, num_features: int) -> Tensor:
    """Embeddings of a batch in float64.

    Args:
        embeddings: Embeddings, shape (B, K).
        num_features: The K that the metric was made for.

    Returns:
        The same in float64, cut from any autograd graph.

    Raises:
        ValueError: If the width is another.
    """
    z = as_matrix(embeddings, "embeddings", min_rows=0).detach()
    if z.shape[1] != num_features:
        raise ValueError(
            f"`embeddings` must have shape (B, {num_features}), got {tuple(embeddings.shape)}."
        )
    return z


def joined(values: Tensor | Sequence[Tensor]) -> Tensor:
    """Content of a list state, before or after a sync.

    Args:
        values: The state.

    Returns:
        One vector, empty if the state is.
    """
    if isinstance(values, Tensor):
        return values
    return torch.cat(list(values)) if values else torch.zeros(0, dtype=torch.float64)
