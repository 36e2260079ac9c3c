"""Next-token perception."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.functional.next_token import (
    TokenMoments,
    check_context,
    perception_of,
    token_moments,
)
from jepa_monitor.metrics._base import MonitorMetric, NotComputableError, joined

_VALUES = ("value", "chance", "excess", "null", "null_std")


class NextTokenPerception(MonitorMetric):
    r"""Overlap of the directions that predict a layer's next state with those that tell the class.

    See :func:`jepa_monitor.functional.next_token_perception`. The state has 2·d² numbers, and d + 1 for
    each text.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``hidden`` (:class:`~torch.Tensor`): finite floating-point states of one layer, ``(B, T, d)``; T may differ
      from batch to batch
    - ``mask`` (:class:`~torch.Tensor`): which tokens are real, ``(B, T)``; not zero is real
    - ``labels`` (:class:`~torch.Tensor`): integer classes, ``(B,)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``value``, ``chance`` (k/d), ``excess`` over it, and of shuffled
      classes ``null`` and ``null_std``, which is what to compare with

    Args:
        num_features: Dimension d of a state.
        k: How many directions.
        context: ``"sum"``, ``"mean"`` or ``"last"``.
        order: ``"descending"`` or ``"published"``.
        orthonormal: Published: not.
        centred: Published: not.
        shuffles: For the null.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> hidden, mask = torch.randn(40, 6, 8, generator=draw), torch.ones(40, 6)
        >>> metric = NextTokenPerception(num_features=8, k=2)
        >>> metric.update(hidden, mask, torch.arange(40) % 2)
        >>> metric.compute()["chance"]
        tensor(0.2500, dtype=torch.float64)
    """

    value_names = _VALUES

    second: Tensor
    cross: Tensor
    pairs: Tensor
    means: list[Tensor]
    classes: list[Tensor]

    def __init__(
        self,
        num_features: int,
        k: int = 16,
        *,
        context: str = "sum",
        order: str = "descending",
        orthonormal: bool = True,
        centred: bool = True,
        shuffles: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(own_update=True, **kwargs)  # which depends on the context
        self.num_features = check_positive_int(num_features, "num_features")
        self.context = check_context(context)
        self.options: dict[str, Any] = {
            "k": check_positive_int(k, "k"),
            "order": check_choice(order, "order", ("descending", "published")),
            "orthonormal": orthonormal,
            "centred": centred,
            "shuffles": shuffles,
        }
        self._add_sum("second", num_features, num_features)
        self._add_sum("cross", num_features, num_features)
        self._add_sum("pairs")
        self.add_state("means", [], dist_reduce_fx="cat")
        self.add_state("classes", [], dist_reduce_fx="cat")

    def update(self, hidden: Tensor, mask: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            hidden: States, (B, T, d).
            mask: Which tokens are real, (B, T).
            labels: Integer class of each text, (B,).

        Raises:
            ValueError: If a state has another width, or there are not as many integer labels as texts.
        """
        if labels.is_floating_point() or labels.shape != hidden.shape[:1]:
            raise ValueError(
                f"`labels` must be integers of shape ({len(hidden)},), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if hidden.shape[-1] != self.num_features:
            raise ValueError(
                f"`hidden` must have shape (B, T, {self.num_features}), got {tuple(hidden.shape)}."
            )
        found = token_moments(hidden, mask != 0, self.context)
        self.second = self.second + found.second
        self.cross = self.cross + found.cross
        self.pairs = self.pairs + found.pairs
        self.count = self.count + len(hidden)
        self.means.append(found.means.flatten())
        self.classes.append(labels.double())  # exact under 2⁵³

    def compute(self) -> dict[str, Tensor]:
        """Compare the directions of all texts so far.

        Returns:
            ``value``, ``chance``, ``excess``, ``null`` and ``null_std``.

        Raises:
            NotComputableError: If there are too few texts or classes, or no text of two tokens.
        """
        self._samples(minimum=2)
        classes = joined(self.classes).long()
        if not int(self.pairs) or len(torch.unique(classes)) < 2:
            raise NotComputableError(
                "`NextTokenPerception` needs a text of at least 2 tokens, and 2 classes, to compute, got "
                f"{int(self.pairs)} next tokens and {len(torch.unique(classes))} classes."
            )
        means = joined(self.means).view(-1, self.num_features)
        # Shuffles of classes are of texts in an order that does not depend on who saw which.
        order = means[:, 0].argsort(stable=True)
        moments = TokenMoments(self.second, self.cross, means[order], int(self.pairs))
        found = perception_of(moments, classes[order], **self.options)
        values = (found.value, means.new_tensor(found.chance), *found[2:5])
        return dict(zip(_VALUES, values, strict=True))
