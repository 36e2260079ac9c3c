"""Separation of classes that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import require_number
from jepa_monitor.functional.separation import Separation as Separations
from jepa_monitor.functional.separation import separate
from jepa_monitor.metrics._base import MonitorMetric, NotComputableError, checked_embeddings, joined


class Separation(MonitorMetric):
    r"""Whether samples of different classes have different embeddings.

    See :func:`jepa_monitor.functional.separation`. It needs all pairs: the metric keeps every
    embedding and takes O(N²) time and memory.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``
    - ``classes`` (:class:`~torch.Tensor`): integer tensor of shape ``(B,)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``accuracy`` of the nearest centroid (high is
      healthy), ``gap_ratio`` (above 1), ``collapse_rate`` (0), ``auroc`` (1) and ``merged`` (0)

    Args:
        num_features: Dimension K of the embeddings.
        merge_below: Accuracy under which two classes count as one.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Separation(num_features=1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()["gap_ratio"]
        tensor(10., dtype=torch.float64)
    """

    value_names = Separations._fields

    embeddings: list[Tensor]
    classes: list[Tensor]
    resolution: Tensor

    def __init__(self, num_features: int, merge_below: float = 0.75, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        self.merge_below = require_number(merge_below, "merge_below", 0.5, 1)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")
        self.add_state("resolution", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, embeddings: Tensor, classes: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
            classes: Integer class of each, shape (B,).

        Raises:
            ValueError: If the classes are no integers, or not as many.
        """
        z = checked_embeddings(embeddings, self.num_features)
        if classes.is_floating_point() or classes.shape != (len(z),):
            raise ValueError(
                f"`classes` must be integers of shape ({len(z)},), got {classes.dtype} of shape "
                f"{tuple(classes.shape)}."
            )
        self.count = self.count + len(z)
        self.embeddings.append(z.flatten())
        self.classes.append(classes.double())  # exact under 2⁵³
        self.resolution = self.resolution.clamp(min=torch.finfo(embeddings.dtype).eps)

    def compute(self) -> dict[str, Tensor]:
        """Separation of all samples so far.

        Returns:
            The fields of :class:`jepa_monitor.functional.separation.Separation`.

        Raises:
            NotComputableError: If there are too few classes, or samples of one.
        """
        count = self._samples(minimum=4)
        z = joined(self.embeddings).view(count, self.num_features)
        classes = joined(self.classes).long()
        sizes = torch.unique(classes, return_counts=True)[1]
        if len(sizes) < 2 or int(sizes.min()) < 2:
            raise NotComputableError(
                "`Separation` needs at least 2 classes, each of at least 2 samples, to compute, got "
                f"{len(sizes)} classes, the smallest of {int(sizes.min())}."
            )
        return separate(z, classes, self.merge_below, float(self.resolution))._asdict()
