"""How contrasted images are: the part of a density that an encoder may not see.

A stem that normalises each image makes f(m + c(x − m)) = f(x), so that its Jacobian has J(cx) = J(x)/c
and JEPA-SCORE falls by K log c: the score follows the contrast of an image, whatever the image shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor._checks import check_images

__all__ = ["log_contrast"]


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
    positions = images.double().flatten(2 if images.ndim > 2 else 1)
    centred = positions - positions.mean(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(centred.flatten(1), dim=1)
    return lengths.log()
