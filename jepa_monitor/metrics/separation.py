"""Separation of classes that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor.functional._checks import require_number
from jepa_monitor.functional.separation import Separation as Separations
from jepa_monitor.functional.separation import separate
from jepa_monitor.metrics._base import KeptEmbeddings, NotComputableError, joined


class Separation(KeptEmbeddings):
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

    classes: list[Tensor]

    def __init__(self, num_features: int, merge_below: float = 0.75, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.merge_below = require_number(merge_below, "merge_below", 0.5, 1)
        self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, classes: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
            classes: Integer class of each, shape (B,).

        Raises:
            ValueError: If the classes are no integers, or not as many.
        """
        if classes.is_floating_point() or classes.shape != embeddings.shape[:1]:
            raise ValueError(
                f"`classes` must be integers of shape ({len(embeddings)},), got {classes.dtype} of shape "
                f"{tuple(classes.shape)}."
            )
        self._keep(embeddings)
        self.classes.append(classes.double())  # exact under 2⁵³

    def compute(self) -> dict[str, Tensor]:
        """Separation of all samples so far.

        Returns:
            The fields of :class:`jepa_monitor.functional.separation.Separation`.

        Raises:
            NotComputableError: If there are too few classes, or samples of one.
        """
        z = self._kept(minimum=4)
        classes = joined(self.classes).long()
        sizes = torch.unique(classes, return_counts=True)[1]
        if len(sizes) < 2 or int(sizes.min()) < 2:
            raise NotComputableError(
                "`Separation` needs at least 2 classes, each of at least 2 samples, to compute, got "
                f"{len(sizes)} classes, the smallest of {int(sizes.min())}."
            )
        return separate(z, classes, self.merge_below, float(self.resolution))._asdict()
