"""JEPA-SCORE and the full log-density as torchmetrics metrics: in go images, out comes the mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_monitor.encoders import Pool
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.score import density_terms
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.metrics._images import ImageScores

__all__ = ["JepaScore", "LogDensity"]


class JepaScore(ImageScores):
    r"""The mean JEPA-SCORE of images, :math:`\sum_k \log \max(\sigma_k(\partial f / \partial x), \epsilon)`.

    As input to ``forward`` and ``update`` the metric accepts

    - ``images`` (:class:`~torch.Tensor`): floating point, shape ``(B, ...)``, as the encoder takes
      them, on its device.

    As output of ``forward`` and ``compute`` the metric returns

    - ``score`` (:class:`~torch.Tensor`): float64, in nats; a scalar, or all scores ``(N,)`` for
      ``reduction="none"``. Higher means that the encoder holds the images for denser.

    Scores that are not finite are left out of the mean and counted in ``nonfinite``;
    ``reduction="none"`` returns them. Source: arXiv 2510.05949. The encoder is differentiated,
    not owned: it is no submodule of the metric, not in its ``state_dict`` and not copied by
    ``clone``. It is left exactly as it was.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        reduction: ``"mean"`` or ``"none"``.
        reference: Images of the training distribution or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`, which whitens a sketch; images are embedded
            once, at the first update after construction or reset.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        options: How to score.
        kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``encoder`` is not callable.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from jepa_monitor.metrics import JepaScore
        >>> encoder = torch.nn.Linear(3, 2, bias=False)
        >>> _ = encoder.weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
        >>> metric = JepaScore(encoder)
        >>> metric.update(torch.rand(8, 3))
        >>> metric.compute()
        tensor(0.4055, dtype=torch.float64)
    """

    def values(self, found: Spectra, law: Gaussian | None) -> Tensor:
        """Take the log-volume of the Jacobian.

        Args:
            found: Embeddings and singular values.
            law: Not used.

        Returns:
            (B,), float64, in nats.
        """
        return found.scores(self.options.eps)


class LogDensity(ImageScores):
    r"""The mean log-density of images by the full change of variables.

    .. math:: \log p(x) = \text{JEPA-SCORE}(x) + \log N(f(x); \mu, \Sigma)

    As input to ``forward`` and ``update`` the metric accepts

    - ``images`` (:class:`~torch.Tensor`): floating point, shape ``(B, ...)``, as the encoder takes
      them, on its device.

    As output of ``forward`` and ``compute`` the metric returns

    - ``log_density`` (:class:`~torch.Tensor`): float64, in nats; a scalar, or all values ``(N,)``
      for ``reduction="none"``. See :func:`jepa_monitor.log_density` for what it is worth.

    Values that are not finite are left out of the mean and counted in ``nonfinite``;
    ``reduction="none"`` returns them. The encoder is treated as by :class:`JepaScore`.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader) or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`; images are embedded once, at the first update
            after construction or reset.
        reduction: ``"mean"`` or ``"none"``.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        options: How to score.
        kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``encoder`` is not callable.
        ValueError: If an argument is out of range, or ``reference`` is ``None``.

    Example:
        >>> import torch
        >>> from jepa_monitor.functional.gaussian import Gaussian
        >>> from jepa_monitor.metrics import LogDensity
        >>> law = Gaussian(torch.zeros(2).double(), 4 * torch.eye(2).double(), 2, 0.0)
        >>> metric = LogDensity(lambda x: 2 * x, law)
        >>> metric.update(torch.zeros(3, 2))
        >>> metric.compute()  # of N(0, I) at 0: -log(2π)
        tensor(-1.8379, dtype=torch.float64)
    """

    def __init__(
        self,
        encoder: Any,
        reference: Any,
        *,
        reduction: str = "mean",
        pool: Pool = "auto",
        options: ScoreOptions | None = None,
        **kwargs: Any,
    ) -> None:
        if reference is None:
            raise ValueError("`reference` must be images or a fitted Gaussian, got None.")
        super().__init__(
            encoder, reduction=reduction, reference=reference, pool=pool, options=options, **kwargs
        )

    def values(self, found: Spectra, law: Gaussian | None) -> Tensor:
        """Add the log-density of the embedding to the log-volume of the Jacobian.

        Args:
            found: Embeddings and singular values.
            law: Of the reference.

        Returns:
            (B,), float64, in nats.
        """
        assert law is not None
        return density_terms(found, law, self.options.eps).log_density
