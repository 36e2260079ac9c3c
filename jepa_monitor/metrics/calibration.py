"""Calibration of the embeddings' normal law."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional.calibration import (
    calibration_error,
    coverage_gap,
    hdr_pit,
    kolmogorov_smirnov,
)
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings, joined


class DensityCalibration(MonitorMetric):
    r"""Whether probe embeddings follow the normal law of the reference embeddings.

    The level u of the smallest highest-density region that holds an embedding
    (:func:`jepa_monitor.functional.hdr_pit`) is uniform if they do. The metric keeps one number
    for each embedding.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``,
      held out from the fit of the law

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``calibration_error`` (0 to ½, lower is
      healthier, about 0.31/√N if calibrated), ``coverage_gap`` (−½ to ½, 0 is healthy, negative is
      a law too narrow), ``ks_distance`` and ``ks_p_value``

    Args:
        gaussian: Law of the reference embeddings.
        num_levels: Number of levels of the calibration error.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``gaussian`` is no :class:`~jepa_monitor.functional.gaussian.Gaussian`.

    Example:
        >>> import torch
        >>> from jepa_monitor.functional.gaussian import Gaussian
        >>> z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
        >>> metric = DensityCalibration(Gaussian.fit(z[:1000]))
        >>> metric.update(z[1000:])
        >>> value = metric.compute()
        >>> value["calibration_error"] < 0.02, value["ks_p_value"] > 0.05
        (tensor(True), tensor(True))
    """

    value_names = ("calibration_error", "coverage_gap", "ks_distance", "ks_p_value")

    levels: list[Tensor]

    def __init__(self, gaussian: Gaussian, num_levels: int = 19, **kwargs: Any) -> None:
        super().__init__(own_update=True, **kwargs)
        if not isinstance(gaussian, Gaussian):
            raise TypeError(f"`gaussian` must be a Gaussian, got {type(gaussian).__name__}.")
        self.gaussian = gaussian
        self.num_levels = check_positive_int(num_levels, "num_levels")
        self.add_state("levels", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        if self.gaussian.mean.device != embeddings.device:
            self.gaussian = self.gaussian.to(embeddings.device)
        z = checked_embeddings(embeddings, self.gaussian.width)
        if not len(z):
            return
        u = hdr_pit(z, self.gaussian)
        self.count = self.count + len(u)
        self.levels.append(u)

    def compute(self) -> dict[str, Tensor]:
        """Calibration of all embeddings so far.

        Returns:
            Calibration error, coverage gap, and the Kolmogorov-Smirnov distance with its p-value.
        """
        self._samples()
        u = joined(self.levels)
        test = kolmogorov_smirnov(u)
        found = (calibration_error(u, self.num_levels), coverage_gap(u), *test)
        return dict(zip(self.value_names, found, strict=True))
