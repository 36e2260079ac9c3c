"""Performance of embeddings over all tasks that a prior holds for likely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, require_number
from jepa_monitor.functional.task_priors import (
    MIN_SAMPLES,
    TaskPriorPerformance,
    feature_kernel,
    performance,
    prior_kernel,
)
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings, joined


class TaskPriors(MonitorMetric):
    r"""Mean and variance of performance over tasks drawn from a prior kernel.

    See :func:`jepa_monitor.functional.task_prior_performance`. It needs all pairs: the metric keeps
    the embeddings and what the prior is made of, and takes O(N²) time and memory, so feed it some
    thousands, not a data set.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``
    - ``prior`` (:class:`~torch.Tensor`): integer labels ``(B,)``, or with ``prior_features`` finite
      floating-point features ``(B, ...)``: pixels, or embeddings of another encoder

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``mean`` (−1 to 1, higher is better, 0 is
      chance), ``variance``, and ``best``, the highest mean that the prior allows

    Args:
        num_features: Dimension K of the embeddings.
        prior_features: Number of features of the prior, flattened; ``None`` for labels.
        temperature: T, in units of the prior kernel's root mean square.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TaskPriors(num_features=3)
        >>> labels = torch.arange(12) % 3
        >>> metric.update(torch.nn.functional.one_hot(labels).float(), labels)
        >>> found = metric.compute()
        >>> torch.allclose(found["mean"], found["best"])
        True
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    value_names = TaskPriorPerformance._fields

    embeddings: list[Tensor]
    features: list[Tensor]
    resolution: Tensor

    def __init__(
        self,
        num_features: int,
        prior_features: int | None = None,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        if prior_features is not None:
            check_positive_int(prior_features, "prior_features")
        self.prior_features = prior_features
        self.temperature = require_number(temperature, "temperature", 0, closed=False)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("resolution", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, embeddings: Tensor, prior: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
            prior: Labels, shape (B,), or features, shape (B, ...).

        Raises:
            ValueError: If the prior is not of the kind or shape that the metric was made for.
        """
        z = checked_embeddings(embeddings, self.num_features)
        if self.prior_features is None:
            if prior.is_floating_point() or prior.shape != (len(z),):
                raise ValueError(
                    f"`prior` must be integer labels of shape ({len(z)},), got {prior.dtype} of "
                    f"shape {tuple(prior.shape)}; for features give `prior_features`."
                )
            features, eps = prior.double(), 0.0  # exact for labels under 2⁵³
        else:
            flat = prior.flatten(1) if prior.ndim > 2 else prior
            features = as_matrix(flat, "prior", min_rows=0).detach()
            if features.shape != (len(z), self.prior_features):
                raise ValueError(
                    f"`prior` must hold ({len(z)}, {self.prior_features}) numbers, got shape "
                    f"{tuple(prior.shape)}."
                )
            eps = torch.finfo(prior.dtype).eps
        found = self.resolution.new_tensor([torch.finfo(embeddings.dtype).eps, eps])
        self.resolution = self.resolution.maximum(found)
        self.count = self.count + len(z)
        self.embeddings.append(z.flatten())
        self.features.append(features.flatten())

    def compute(self) -> dict[str, Tensor]:
        """Mean and variance over the tasks on all samples so far.

        Returns:
            ``mean``, ``variance`` and ``best``.
        """
        count = self._samples(MIN_SAMPLES)
        z = joined(self.embeddings).view(count, self.num_features)
        features = joined(self.features)
        if self.prior_features is None:
            kernel = prior_kernel(features.long())
        else:
            kernel = feature_kernel(features.view(count, -1), float(self.resolution[1]))
        model = feature_kernel(z, float(self.resolution[0]))
        return performance(model, kernel, self.temperature)._asdict()
