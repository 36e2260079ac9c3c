"""Alignment of an encoder's Jacobian with its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional.jacobian_alignment import (
    centroid_alignment,
    jacobian_alignment,
    rank_one_share,
)
from jepa_monitor.jacobian.spectrum import decompose
from jepa_monitor.metrics._base import MonitorMetric


class JacobianAlignment(MonitorMetric):
    r"""Centroid alignment, Jacobian alignment and rank-one share, averaged over samples.

    See :func:`jepa_monitor.functional.centroid_alignment`, its neighbour ``jacobian_alignment``
    and :func:`jepa_monitor.functional.rank_one_share`. The state is five sums. The centroid is the
    sum of the rows given, so give all K rows, not a sketch.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``jacobians`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K, D)``
    - ``inputs`` (:class:`~torch.Tensor`): the inputs at which they were taken, ``(B, D)`` or
      ``(B, ...)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``centroid`` (−1 to 1), ``jacobian`` (0 to 1)
      and ``rank_one_share`` (0 to 1), and ``centroid_shuffled`` and ``jacobian_shuffled``, the
      same with ``others`` in the place of the inputs: the level of no alignment

    Args:
        others: Inputs to compare with, shape (M, ...), none of which should come up in ``update``.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = JacobianAlignment(others=torch.tensor([[0.0, 1.0]]))
        >>> metric.update(torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]), torch.tensor([[1.0, 0.0]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'centroid': 1.0, 'centroid_shuffled': 0.0,
         'jacobian': 1.0, 'jacobian_shuffled': 0.0, 'rank_one_share': 1.0}
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    others: Tensor
    sums: Tensor

    value_names = (
        "centroid",
        "centroid_shuffled",
        "jacobian",
        "jacobian_shuffled",
        "rank_one_share",
    )

    def __init__(self, others: Tensor, **kwargs: Any) -> None:
        super().__init__(own_update=True, **kwargs)
        flat = others.flatten(1) if isinstance(others, Tensor) and others.ndim > 2 else others
        self.register_buffer("others", as_matrix(flat, "others").detach(), persistent=False)
        self._add_sum("sums", len(self.value_names))

    def update(self, jacobians: Tensor, inputs: Tensor) -> None:
        """Add a batch.

        Args:
            jacobians: Rows of each Jacobian, shape (B, K, D).
            inputs: Where they were taken, shape (B, D) or (B, ...).
        """
        if len(inputs) == 0:
            return
        jacobians, inputs = jacobians.detach(), inputs.detach()
        # The checks of `jacobian_alignment` come first: the others take any shape.
        jacobian = jacobian_alignment(jacobians, inputs, self.others)
        centroid = centroid_alignment(jacobians.double().sum(1), inputs, self.others)
        share = rank_one_share(decompose(jacobians.double()).values)
        self.count = self.count + len(inputs)
        self.sums = self.sums + torch.stack([*centroid, *jacobian, share]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Means over all samples so far.

        Returns:
            The five means, by name.
        """
        return dict(zip(self.value_names, self.sums / self._samples(), strict=True))
