"""How contrasted images are: the part of a density that an encoder may not see.

A stem that normalises each image makes f(m + c(x − m)) = f(x), so that its Jacobian has J(cx) = J(x)/c
and JEPA-SCORE falls by K log c: the score follows the contrast of an image, whatever the image shows.
How much of that a given encoder does is its slope κ, which two evaluations measure.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_images, check_positive
from jepa_monitor.functional._checks import require_number, require_same_shape

__all__ = [
    "CONTRAST_STEP",
    "ContrastSlope",
    "change_contrast",
    "contrast_free",
    "contrast_slope",
    "log_contrast",
]

CONTRAST_STEP = 1.05  # far above rounding, and near enough for a derivative


def _positions(images: Tensor) -> Tensor:
    """Flatten what the mean is over: the positions of each channel, or all numbers of (B, D)."""
    return images.flatten(2 if images.ndim > 2 else 1)


def log_contrast(images: Tensor) -> Tensor:
    r"""Logarithm of an image's contrast, :math:`\log \|x - \bar x\|`.

    The mean is over the positions of each channel, of inputs that are no images (B, C, ...) over all
    numbers. Twice the contrast adds log 2.

    Args:
        images: (B, ...), finite.

    Returns:
        (B,), float64, nats; −inf for constant images.

    Raises:
        TypeError: If the images are not floating-point numbers.
        ValueError: If there are none, or they are not finite.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
        >>> log_contrast(torch.cat([image, 3 * image + 7])).exp()
        tensor([2., 6.], dtype=torch.float64)
    """
    check_images(images)
    positions = _positions(images.double())
    centred = positions - positions.mean(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(centred.flatten(1), dim=1)
    return lengths.log()


def change_contrast(images: Tensor, factor: float = CONTRAST_STEP) -> Tensor:
    r"""Change the contrast of images, :math:`\bar x + c (x - \bar x)`, and nothing else.

    The mean is that of :func:`log_contrast`, to which this adds :math:`\log c`. Nothing is clipped to
    a range of pixels: the encoder takes what is beyond it as it takes any input.

    Args:
        images: (B, ...), finite.
        factor: c.

    Returns:
        The images, of the same shape and type.

    Raises:
        TypeError: If the images are not floating-point numbers, or the factor is no number.
        ValueError: If the images are not finite, or the factor is not above 0.

    Example:
        >>> import torch
        >>> change_contrast(torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]]), 1.5)
        tensor([[[[-0.5000,  2.5000],
                  [-0.5000,  2.5000]]]])
    """
    check_images(images)
    check_positive(factor, "factor")
    positions = _positions(images.double())
    mean = positions.mean(-1, keepdim=True)
    return (mean + factor * (positions - mean)).view(images.shape).to(images.dtype)


class ContrastSlope(NamedTuple):
    """By how much JEPA-SCORE falls when the logarithm of the contrast grows by 1.

    Args:
        mean: κ̄ over the images of which it can be told; NaN without any.
        error: Its standard error; NaN for less than two.
        each: κ of each image, (B,), float64; NaN where it cannot be told.
    """

    mean: float
    error: float
    each: Tensor


def contrast_slope(
    scores: Tensor, changed: Tensor, images: Tensor, factor: float = CONTRAST_STEP
) -> ContrastSlope:
    r"""Measure :math:`\kappa = -\partial S / \partial \log c`, the score's slope against contrast.

    From two evaluations, as :math:`(S(x) - S(\bar x + c(x - \bar x))) / \log c`. Where each image is
    normalised before anything else is done to it, κ is the number of rows behind the score: all K, or
    the R of a sketch. It is 0 for a linear encoder, and for one that is piecewise linear it is what
    changes of piece make of it. Both scores must be of the same rows.

    Args:
        scores: JEPA-SCORE of some images, (B,).
        changed: The same of :func:`change_contrast` of them, (B,).
        images: The images, (B, ...); constant ones have no contrast to change, and do not count.
        factor: c.

    Returns:
        κ of each image, their mean and its standard error.

    Raises:
        TypeError: If the images are not floating-point numbers, or the factor is no number.
        ValueError: If the images are not finite, there is not one of each for every image, or the
            factor is 1 or not above 0.

    Example:
        >>> import torch
        >>> images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> scores = torch.tensor([5.0, 3.0, 1.0])
        >>> found = contrast_slope(scores, scores - 7 * torch.tensor(1.05).log(), images)
        >>> round(found.mean, 3)
        7.0
    """
    require_same_shape(scores, changed, ("scores", "changed"))
    step = math.log(check_positive(factor, "factor"))
    if step == 0:
        raise ValueError("`factor` must not be 1: at the same contrast there is no slope.")
    known = torch.isfinite(log_contrast(images)).to(scores.device)
    if scores.shape != known.shape:
        raise ValueError(
            f"`scores` must have shape (B,), one for each of the {len(known)} images, got "
            f"{tuple(scores.shape)}."
        )
    each = (scores.double() - changed.double()) / step
    each = torch.where(known & torch.isfinite(each), each, torch.nan)
    found = each[torch.isfinite(each)]
    mean = float(found.mean()) if len(found) else math.nan
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return ContrastSlope(mean, error, each)


def contrast_free(scores: Tensor, images: Tensor, slope: float) -> Tensor:
    r"""The score without contrast, :math:`S(x) + \kappa \log \|x - \bar x\|`.

    With :math:`\kappa = K` it is the log-volume on the sphere of contrast-normalised images, which a
    change of contrast leaves exactly as it is if the encoder does so, too. It is no density of
    pixels: in that, dull images truly are likelier (``docs/theory.md``).

    Args:
        scores: JEPA-SCORE, (B,).
        images: (B, ...).
        slope: κ, of :func:`contrast_slope`, or K.

    Returns:
        (B,), float64, nats; NaN for constant images.

    Raises:
        TypeError: If the images are not floating-point numbers, or the slope is no number.
        ValueError: If the images or the slope are not finite, or there is not one score an image.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])  # log ‖x − mean‖ is log 2
        >>> contrast_free(torch.tensor([1.0]), image, 3.0)
        tensor([3.0794], dtype=torch.float64)
    """
    require_number(slope, "slope", -math.inf)
    contrast = log_contrast(images).to(scores.device)
    if scores.shape != contrast.shape:
        raise ValueError(
            f"`scores` must have shape (B,), one for each of the {len(contrast)} images, got "
            f"{tuple(scores.shape)}."
        )
    free = scores.double() + slope * contrast
    return torch.where(torch.isfinite(contrast), free, torch.nan)
