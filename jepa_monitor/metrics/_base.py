"""What all metrics share: the sample count, the running moments and the plot."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from jepa_monitor._checks import check_positive_int
from jepa_monitor._warnings import warn
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional._spectrum import moment_eigenvalues


class NotComputableError(RuntimeError):
    """The samples seen so far do not determine the value."""


class MonitorMetric(Metric):
    """A metric that counts its samples in :attr:`count` and refuses to compute from too few.

    Of a single batch it does not refuse: what ``forward`` cannot compute of its batch is NaN, with
    one warning, and the samples count all the same.

    States keep their dtype whatever is cast (``module.to(torch.bfloat16)``, as Lightning's
    ``bf16-true`` does; ``set_dtype`` too): counts and sums of thousands do not fit into 8 bits, and
    processes that sync must agree.

    Subclasses write all states out of place, so that a reset in inference mode does no harm, and
    keep list states flat and in float64, so that a process without data can take part in a sync.
    They raise :class:`NotComputableError` for want of samples.

    Args:
        own_update: Whether ``update`` depends on more than its arguments: on an encoder, a law, a
            threshold. A :class:`torchmetrics.MetricCollection` takes metrics whose states agree after
            one batch for the same ever after; such a metric has a state of a name of its own and is
            never taken for another.
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    count: Tensor
    value_names: tuple[str, ...] = ()  # of what `compute` returns; none for a single number

    def __init__(self, *, own_update: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._in_forward = self._warned = False
        self._dtype = torch.float64
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        if own_update:
            name = f"own_{uuid.uuid4().hex}"
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and compute of it alone.

        Args:
            args: As for ``update``.
            kwargs: As for ``update``.

        Returns:
            As ``compute``, of the batch; NaN where the batch does not determine the value.
        """
        self._in_forward = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._in_forward = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several over time.

        Args:
            val: What :meth:`compute` or ``forward`` returned, or a list of such; computed if None.
            ax: Matplotlib axes to draw into; new ones if None.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute)
        def of_a_batch_too(*args: Any, **kwargs: Any) -> Any:
            try:
                return compute(*args, **kwargs)
            except NotComputableError as error:
                if not self._in_forward:
                    raise
                if not self._warned:
                    self._warned = True
                    warn(
                        f"{error} The value of this batch is NaN; its samples count. This is said "
                        "once."
                    )
                nan = torch.full((), torch.nan, dtype=torch.float64, device=self.device)
                return dict.fromkeys(self.value_names, nan) if self.value_names else nan

        return super()._wrap_compute(of_a_batch_too)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        dtype = self._dtype
        found = super()._apply(keeping_dtype, exclude_state)
        self._dtype = dtype  # of the empty state that a process without data sends
        return found

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _samples(self, minimum: int = 1) -> int:
        count = int(self.count)
        if count < minimum:
            raise NotComputableError(
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


class KeptEmbeddings(MonitorMetric):
    """Base of the metrics that need all embeddings at once: they keep them, 8·K bytes each.

    In a :class:`torchmetrics.MetricCollection` these metrics share them.

    Args:
        num_features: Dimension K of the embeddings.
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    embeddings: list[Tensor]
    resolution: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("resolution", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        self._keep(embeddings)

    def _keep(self, embeddings: Tensor) -> Tensor:
        z = checked_embeddings(embeddings, self.num_features)
        self.count = self.count + len(z)
        self.embeddings.append(z.flatten())
        self.resolution = self.resolution.clamp(min=torch.finfo(embeddings.dtype).eps)
        return z

    def _kept(self, minimum: int) -> Tensor:
        count = self._samples(minimum)
        return joined(self.embeddings).view(count, self.num_features)


def checked_embeddings(embeddings: Tensor, num_features: int, name: str = "embeddings") -> Tensor:
    """Embeddings of a batch in float64.

    Args:
        embeddings: Embeddings, shape (B, K).
        num_features: The K that the metric was made for.
        name: Its name in the caller's signature.

    Returns:
        The same in float64, cut from any autograd graph.

    Raises:
        ValueError: If the width is another.
    """
    z = as_matrix(embeddings, name, min_rows=0).detach()
    if z.shape[1] != num_features:
        raise ValueError(
            f"`{name}` must have shape (B, {num_features}), got {tuple(embeddings.shape)}."
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
