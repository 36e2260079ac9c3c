"""Metrics of the normalised embeddings: uniformity, alignment and the collapse level."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import require_number
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.hypersphere import alignment_terms, pair_potential
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings, joined


class Uniformity(MonitorMetric):
    r"""Uniformity loss of the normalised embeddings.

    See :func:`jepa_monitor.functional.uniformity`. It needs all pairs: the metric keeps every
    embedding (8·K bytes each) and takes O(N²·K) time, so feed it some thousands, not a data set.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``uniformity`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor from −4t to 0, lower is
      healthier and 0 is collapse

    Args:
        num_features: Dimension K of the embeddings.
        t: Inverse width of the kernel.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Uniformity(num_features=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
        >>> metric.compute()
        tensor(-8., dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = 0.0

    directions: list[Tensor]

    def __init__(self, num_features: int, t: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        self.t = require_number(t, "t", 0, closed=False)
        self.add_state("directions", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = unit_rows(checked_embeddings(embeddings, self.num_features))
        self.count = self.count + len(z)
        self.directions.append(z.flatten())

    def compute(self) -> Tensor:
        """Uniformity of all embeddings so far.

        Returns:
            0-dimensional float64 tensor.
        """
        self._samples(minimum=2)
        return pair_potential(joined(self.directions).view(-1, self.num_features), self.t)


class Alignment(MonitorMetric):
    r"""Alignment loss between two views of the same samples.

    See :func:`jepa_monitor.functional.alignment`. Read it beside :class:`Uniformity`: collapsed
    embeddings are perfectly aligned.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``first`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``, one view
    - ``second`` (:class:`~torch.Tensor`): the same for the other view

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``alignment`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor from 0 to 2^a, lower is
      healthier

    Args:
        exponent: The exponent a of the distance.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Alignment()
        >>> metric.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        >>> metric.compute()
        tensor(2.0000, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    total: Tensor

    def __init__(self, exponent: float = 2.0, **kwargs: Any) -> None:
        super().__init__(own_update=True, **kwargs)
        self.exponent = require_number(exponent, "exponent", 0, closed=False)
        self._add_sum("total")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch.

        Args:
            first: Embeddings of one view, shape (B, K).
            second: Embeddings of the other view, same shape.
        """
        terms = alignment_terms(first, second, self.exponent).detach()
        self.count = self.count + len(terms)
        self.total = self.total + terms.sum()

    def compute(self) -> Tensor:
        """Alignment of all pairs so far.

        Returns:
            0-dimensional float64 tensor.
        """
        return self.total / self._samples()


class CollapseLevel(MonitorMetric):
    r"""Collapse level max(0, 1 − √K·std) of the normalised embeddings.

    See :func:`jepa_monitor.functional.collapse_level`. Blind to dimensional collapse: read it
    beside :class:`ParticipationRatio`.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - ``collapse_level`` (:class:`~torch.Tensor`): 0-dimensional float64 tensor from 0 (healthy) to
      1 (collapse to one point; up to 1e-7 from rounding)

    Args:
        num_features: Dimension K of the embeddings.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = CollapseLevel(num_features=4)
        >>> metric.update(torch.ones(8, 4))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    total: Tensor
    squares: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        self._add_sum("total", num_features)
        self._add_sum("squares", num_features)

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = unit_rows(checked_embeddings(embeddings, self.num_features))
        self.count = self.count + len(z)
        self.total = self.total + z.sum(dim=0)
        self.squares = self.squares + z.square().sum(dim=0)

    def compute(self) -> Tensor:
        """Collapse level of all embeddings so far.

        Returns:
            0-dimensional float64 tensor.
        """
        count = self._samples(minimum=2)
        variance = (self.squares - self.total.square() / count) / (count - 1)
        std = variance.clamp(min=0).sqrt().mean()
        return (1 - std * math.sqrt(self.num_features)).clamp(min=0)
