"""Gaussianity of embeddings from running characteristic functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._null_laws import KNOWN, moment_weights
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.gaussianity import (
    SlicedEppsPulley,
    characteristic_sums,
    slice_directions,
    statistic_from_sums,
    summarize_slices,
)
from jepa_monitor.metrics._base import MonitorMetric, checked_embeddings


class Gaussianity(MonitorMetric):
    r"""Sliced Epps-Pulley test of the embeddings against a normal law.

    See :func:`jepa_monitor.functional.sliced_epps_pulley`. The state is the sum of 17 values of
    each slice's characteristic function, so that memory does not grow with N and the result does
    not depend on batches or processes. Give one view for each image.

    The test is against N(0, I), or, with a law, of the embeddings whitened by it. The null law
    knows how many embeddings that law was fitted to, M > K + 2: its mean rises by about 0.72·N/M.
    It holds for laws without shrinkage, ``Gaussian.fit(z, shrinkage=0.0)``, of M ≥ N/4 embeddings and
    M ≥ 15 K (the mean z-score of 40 draws was within 0.7 for N, M, K = 500, 500, 16; 300, 900, 32 and
    1000, 250, 16). Shrunk laws are refused. With few embeddings behind the law normal ones look otherwise:
    of K = 64, N = 2000 single draws read 16 for M = 80 and 13 for M = 320, shrunk as by default 73 and 27.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``embeddings`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, K)``

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: ``statistic``, ``null_mean``, ``null_sd``,
      ``z_score`` (0 is normal, above 3 is not), ``effect_size`` (does not grow with N),
      ``max_statistic`` and ``max_p_value`` (of the worst slice, Bonferroni-corrected)

    Args:
        num_features: Dimension K of the embeddings.
        num_slices: Number of random directions.
        seed: Seed of the directions; the same on all processes.
        gaussian: Law of reference embeddings to whiten by, fitted without shrinkage; none if None.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the law has another dimension, is shrunk, or was fitted to too few embeddings.

    Example:
        >>> import torch
        >>> z = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
        >>> metric = Gaussianity(num_features=64)
        >>> metric.update(z[:500])
        >>> metric.update(z[500:])
        >>> abs(metric.compute()["z_score"]) < 3
        tensor(True)
    """

    value_names = SlicedEppsPulley._fields

    sums: Tensor

    def __init__(
        self,
        num_features: int,
        num_slices: int = 256,
        seed: int = 0,
        gaussian: Gaussian | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(own_update=True, **kwargs)
        self.num_features = check_positive_int(num_features, "num_features")
        if gaussian is not None and gaussian.width != num_features:
            raise ValueError(
                f"`gaussian` must have `num_features` {num_features}, got {gaussian.width}."
            )
        if gaussian is not None and gaussian.count <= num_features + 2:
            raise ValueError(
                f"`gaussian` must be fitted to more than {num_features + 2} embeddings of "
                f"{num_features} numbers to be tested against, got {gaussian.count}."
            )
        if gaussian is not None and gaussian.shrinkage != 0:
            raise ValueError(
                "`gaussian` must be a law without shrinkage, Gaussian.fit(z, shrinkage=0.0), of which "
                f"the null law is known, got one of {gaussian.shrinkage:.3g}."
            )
        self.num_slices = check_positive_int(num_slices, "num_slices")
        self.seed = seed
        self.gaussian = gaussian
        self.directions = slice_directions(num_features, num_slices, seed)
        self._add_sum("sums", 17, num_slices, 2)

    def update(self, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            embeddings: Embeddings, shape (B, K).
        """
        z = checked_embeddings(embeddings, self.num_features)
        self.directions = self.directions.to(z.device)
        if self.gaussian is not None:
            if self.gaussian.mean.device != z.device:
                self.gaussian = self.gaussian.to(z.device)
            fitted = self.gaussian.count
            # The mean variance of a whitened direction of fresh embeddings is M/(M − K − 2).
            z = self.gaussian.whiten(z) * ((fitted - self.num_features - 2) / fitted) ** 0.5
        self.count = self.count + len(z)
        self.sums = self.sums + characteristic_sums(z @ self.directions)

    def compute(self) -> dict[str, Tensor]:
        """The test on all embeddings so far.

        Returns:
            The fields of :class:`~jepa_monitor.functional.gaussianity.SlicedEppsPulley`.
        """
        count = self._samples(minimum=2)
        statistics = statistic_from_sums(self.sums, count)
        moments = KNOWN
        if self.gaussian is not None:
            moments = moment_weights(count, self.gaussian.count, self.num_features)
        return summarize_slices(
            statistics, count, self.num_features, whitened=False, moments=moments
        )._asdict()
