"""What metrics of images share: in go images, out come one number an image and their mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from jepa_monitor._checks import check_choice
from jepa_monitor.encoders import Embedder, Pool, check_pool
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.score import plot_histogram
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import REFERENCE_IMAGES, check_inputs, fit_reference
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.metrics._base import MonitorMetric, NotComputableError, joined
from jepa_monitor.probes.images import collect_images

__all__ = ["ImageScores"]


class _Reference:
    """Keeps the encoder and its data out of the metric's submodules and of its copies."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return self


class ImageScores(MonitorMetric):
    """Score images by the Jacobian of an encoder; a subclass says how.

    The encoder is differentiated, not owned: it is no submodule of the metric, not in its
    ``state_dict`` and not copied by ``clone``. It is left exactly as it was.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        reduction: ``"mean"`` or ``"none"``.
        reference: Images of the training distribution or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`; images are embedded once, at the first update
            after construction or reset. Of an iterator, which can be read once, up to 4096 images
            are kept for the next.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        options: How to score.
        kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``encoder`` is not callable.
        ValueError: If an argument is out of range.
    """

    # Neither: the score of held-out images rises and falls while a model improves.
    higher_is_better: bool | None = None

    total: Tensor
    nonfinite: Tensor
    scores: list[Tensor]

    def __init__(
        self,
        encoder: Any,
        *,
        reduction: str = "mean",
        reference: Any = None,
        pool: Pool = "auto",
        options: ScoreOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(own_update=True, **kwargs)
        Embedder(encoder, pool)  # an encoder that cannot work is an error here, not in update
        self._reference = _Reference((encoder, reference))
        self._law: Gaussian | None = None
        self.reduction = check_choice(reduction, "reduction", ("mean", "none"))
        self.pool = check_pool(pool)
        self.options = options or ScoreOptions()
        if self.options.demanding:
            raise ValueError(
                "`options` must say how to score, got a `tolerance` or `correlation` to be met: a metric "
                "sees its images batch by batch. `jepa_score` and `estimate_scores` tell what it takes."
            )
        self.add_state("nonfinite", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        if self.reduction == "none":
            self.add_state("scores", [], dist_reduce_fx="cat")
        else:
            self._add_sum("total")

    def update(self, images: Tensor) -> None:
        """Score images.

        Args:
            images: (B, ...), or texts for a :class:`~jepa_monitor.encoders.TokenEncoder`.
        """
        encoder, reference = self._reference.target
        embedder = Embedder(encoder, self.pool, self.options.dtype)
        images = check_inputs(encoder, images)
        if reference is not None and self._law is None:
            if isinstance(reference, Iterator):  # it can be read once; each reset needs it again
                reference = collect_images(reference, REFERENCE_IMAGES, name="reference")
                self._reference.target = (encoder, reference)
            deep = self.options.may_be_deep
            self._law = fit_reference(embedder, reference, images.device, deep)
        found = spectra(embedder, images, self.options, self._law)
        scores = self.values(found, self._law)
        finite = torch.isfinite(scores)
        # Out of place: a reset in inference mode makes the states inference tensors.
        self.nonfinite = self.nonfinite + (~finite).sum()
        self.count = self.count + finite.sum()
        if self.reduction == "none":
            self.scores.append(scores)
        else:
            self.total = self.total + scores[finite].sum()

    @abstractmethod
    def values(self, found: Spectra, law: Gaussian | None) -> Tensor:
        """Turn spectra into one number an image.

        Args:
            found: Embeddings and singular values.
            law: Of the reference.

        Returns:
            (B,), float64, in nats.
        """

    def reset(self) -> None:
        """Forget all scores, and the law of the reference, which is another once the encoder is."""
        super().reset()
        if not self._in_forward:  # which resets in order to see its batch alone
            self._law = None

    def compute(self) -> Tensor:
        """Reduce the scores.

        Returns:
            Their mean, or all of them.

        Raises:
            NotComputableError: If there are none to reduce.
        """
        if self.reduction == "none":
            scores = joined(self.scores)
            if not len(scores):
                raise NotComputableError(
                    f"{type(self).__name__} has seen no images: call `update` first."
                )
            return scores
        if not self.count:
            raise NotComputableError(
                f"{type(self).__name__} has no finite score to average: "
                f"{int(self.nonfinite)} of the images that it has seen have none."
            )
        return self.total / self.count

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, values over time, or for ``reduction="none"`` the distribution.

        Args:
            val: What ``compute`` or ``forward`` returned, or a list of it; default: ``compute()``.
            ax: Axes to draw into; default: a new figure.

        Returns:
            The figure and its axes.
        """
        if self.reduction == "none":
            scores = self.compute() if val is None else dim_zero_cat(val)
            return plot_histogram(scores[torch.isfinite(scores)], ax)
        return super().plot(val, ax)
