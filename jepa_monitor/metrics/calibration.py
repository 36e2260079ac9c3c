"""Calibration of the embeddings' normal law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix
from jepa_monitor.functional.calibration import calibration_error, coverage_gap, kolmogorov_smirnov
from jepa_monitor.functional.sequential import LEAST_REFERENCE, predictive_pit
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings, joined


class DensityCalibration(MonitorMetric):
    r"""Whether probe embeddings follow the normal law of the reference embeddings.

    The levels of :func:`jepa_monitor.functional.predictive_pit`, which know how few embeddings the law
    was estimated from, are uniform if they do: the numbers of ``density/*`` that the callback logs.
    Each embedding is judged by those before it too, in an order that is drawn from a hash of their
    numbers and does not depend on batches or processes. The metric keeps all embeddings.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``, of
      other images than the reference

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``calibration_error`` (0 to ½, lower is
      healthier, about 0.31/√N if calibrated, whatever K), ``coverage_gap`` (−½ to ½, 0 is healthy,
      negative is a law too narrow), ``ks_distance`` and ``ks_p_value``

    Args:
        reference: Embeddings of the reference, shape (M, K), M ≥ 4.
        num_levels: Number of levels of the calibration error.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``reference`` is no floating-point tensor; a fitted law does not tell how its
            embeddings lay.
        ValueError: If it has another shape, or is not finite.

    Example:
        >>> import torch
        >>> z = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
        >>> metric = DensityCalibration(z[:150])
        >>> metric.update(z[150:])
        >>> value = metric.compute()
        >>> value["calibration_error"] < 0.05, value["ks_p_value"] > 0.05
        (tensor(True), tensor(True))
    """

    value_names = ("calibration_error", "coverage_gap", "ks_distance", "ks_p_value")

    embeddings: list[Tensor]

    def __init__(self, reference: Tensor, num_levels: int = 19, **kwargs: Any) -> None:
        super().__init__(own_update=True, **kwargs)
        if not isinstance(reference, Tensor):
            raise TypeError(
                "`reference` must be embeddings of the reference, a tensor of shape (M, K), got "
                f"{type(reference).__name__}."
            )
        as_matrix(reference, "reference", min_rows=LEAST_REFERENCE)
        self.reference = reference.detach()  # in its own type, whose rounding is no variance
        self.num_levels = check_positive_int(num_levels, "num_levels")
        self.add_state("embeddings", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = checked_embeddings(embeddings, self.reference.shape[1])
        if not len(z):
            return
        self.count = self.count + len(z)
        self.embeddings.append(z.flatten())

    def compute(self) -> dict[str, Tensor]:
        """Calibration of all embeddings so far.

        Returns:
            Calibration error, coverage gap, and the Kolmogorov-Smirnov distance with its p-value.
        """
        self._samples()
        z = joined(self.embeddings).view(-1, self.reference.shape[1])
        z = z[_hashed(z).argsort(stable=True)]
        u = predictive_pit(z, self.reference.to(z.device)).levels
        test = kolmogorov_smirnov(u)
        found = (calibration_error(u, self.num_levels), coverage_gap(u), *test)
        return dict(zip(self.value_names, found, strict=True))


def _hashed(z: Tensor) -> Tensor:
    """Give each row a number that says nothing of where it lies, the same wherever it comes from."""
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(2**62, (z.shape[1],), generator=generator) + 1
    return (z.contiguous().view(torch.int64) * odd.to(z.device)).sum(1)
