"""The score without the contrast of the image: in go an encoder and images, out comes one number each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor._settings import takes
from jepa_monitor.encoders import Pool
from jepa_monitor.functional.contrast import (
    ContrastSlope,
    change_contrast,
    contrast_free,
    contrast_slope,
)
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.estimate import spectra_within
from jepa_monitor.jacobian.options import ScoreArguments, ScoreOptions
from jepa_monitor.jacobian.prepared import prepared

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ContrastFree", "contrast_free_score"]


class ContrastFree(NamedTuple):
    """JEPA-SCORE with and without contrast, in nats.

    Args:
        score: S + κ̄ log r, (B,), float64; NaN for constant images.
        jepa_score: S, (B,), float64.
        slope: κ̄, its standard error, and κ of each image that it was measured on.
    """

    score: Tensor
    jepa_score: Tensor
    slope: ContrastSlope


@takes(ScoreOptions)
def contrast_free_score(
    encoder: Any,
    images: Tensor,
    *,
    slope_samples: int = 8,
    reference: Any = None,
    pool: Pool = "auto",
    **options: Unpack[ScoreArguments],
) -> ContrastFree:
    r"""JEPA-SCORE without the contrast of the image, :math:`S(x) + \bar\kappa \log \|x - \bar x\|`.

    An encoder whose stem normalises each image (GroupNorm, LayerNorm) gives dull images high scores:
    its Jacobian at :math:`\bar x + c(x - \bar x)` is that at x divided by c, and its score less by
    K log c. How far an encoder does so is measured, on a few images with 5 % more contrast.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them.
        slope_samples: How many images, the first ones, to score twice for :math:`\bar\kappa`.
        reference: As for :func:`~jepa_monitor.jepa_score`.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        **options: See :class:`~jepa_monitor.ScoreOptions`. Of a sketch, κ is at most about R.

    Returns:
        ``(score, jepa_score, slope)``; ``slope.mean`` is :math:`\bar\kappa`, ``slope.error`` its
        standard error.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, as for :func:`~jepa_monitor.jepa_score`, or none
            of the first images has a contrast and a finite score.

    Example:
        >>> import torch
        >>> from jepa_monitor.jacobian.contrast import contrast_free_score
        >>> images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> scale = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1, 1)
        >>> encoder = torch.nn.Sequential(
        ...     torch.nn.LayerNorm((1, 4, 4), eps=0), torch.nn.Flatten(), torch.nn.Linear(16, 3)
        ... ).double()
        >>> found = contrast_free_score(encoder, images[:1] * scale)
        >>> found.jepa_score - found.jepa_score[0]  # −3 log c
        tensor([ 0.0000, -2.0794, -4.1589, -6.2383], dtype=torch.float64)
        >>> found.score.std() < 1e-9, round(found.slope.mean, 6)
        (tensor(True), 3.0)
    """
    how = ScoreOptions(**options)
    check_positive_int(slope_samples, "slope_samples")
    embedder, images, law = prepared(encoder, images, how, reference, pool)
    few = images[:slope_samples]
    found, how, _ = spectra_within(embedder, images, how, law)
    scores = found.scores(how.eps)
    changed = spectra(embedder, change_contrast(few), how, law).scores(how.eps)
    slope = contrast_slope(scores[: len(few)], changed, few)
    if slope.mean != slope.mean:
        raise ValueError(
            f"`images` must have a contrast and a finite score to measure a slope of, got none among "
            f"the first {len(few)}."
        )
    return ContrastFree(contrast_free(scores, images, slope.mean), scores, slope)
