"""Views of images: in go images and random numbers, out come the images as SSL training distorts them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_choice

__all__ = ["PARTS", "augment", "draw_distortions", "only"]

_SMALLEST = 0.2  # share of an image's area that a crop keeps at least
_RATIO = 4 / 3  # of its sides, at most
_JITTER, _JITTERED, _GREY = 0.4, 0.8, 0.2  # strength, and shares of the images
_NUMBERS = 10
_NEUTRAL = (1.0, 0.5, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0)  # these numbers change nothing
PARTS = {"crop": (0, 1, 2, 3), "flip": (4,), "colour": (5, 6, 7, 8, 9)}


def draw_distortions(count: int, seed: int) -> Tensor:
    """Draw what :func:`augment` does to each image.

    Args:
        count: Number of images, N.
        seed: Of a generator of its own.

    Returns:
        Uniform random numbers, (N, 10), float32.
    """
    return torch.rand(count, _NUMBERS, generator=torch.Generator().manual_seed(seed))


def only(distortions: Tensor, parts: tuple[str, ...]) -> Tensor:
    """Leave some of what :func:`augment` does undone.

    Args:
        distortions: From :func:`draw_distortions`, (N, 10).
        parts: What is done: ``crop``, ``flip``, ``colour``.

    Returns:
        (N, 10).

    Raises:
        ValueError: If a part is none of these.
    """
    kept = torch.tensor(_NEUTRAL).to(distortions).repeat(len(distortions), 1)
    for part in parts:
        check_choice(part, "parts", tuple(PARTS))
        columns = list(PARTS[part])
        kept[:, columns] = distortions[:, columns]
    return kept


def augment(images: Tensor, distortions: Tensor) -> Tensor:
    r"""Crop, flip and recolour images, as most methods that compare views do.

    A crop of 0.2 to 1 of the area and a ratio of sides of 3/4 to 4/3, enlarged to the whole; a mirror
    for half of the images; for 80 % of them brightness, contrast and saturation by up to 40 %, and
    grey for 20 %. These are the strengths of MoCo v2 (arXiv 2003.04297) without hue and blur. The
    images' scale may be any: brightness is shifted by a share of the image's own standard deviation,
    contrast and saturation are scaled about the image's mean and about grey.

    Args:
        images: (N, C, H, W); colours only where C is 3.
        distortions: From :func:`draw_distortions`, (N, 10).

    Returns:
        (N, C, H, W); the same for an image, whatever others come with it.
    """
    u = distortions.to(images)
    area = _SMALLEST + (1 - _SMALLEST) * u[:, 0]
    ratio = ((2 * u[:, 1] - 1) * math.log(_RATIO)).exp()
    width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    theta = u.new_zeros(len(u), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2], theta[:, 1, 2] = (
        (1 - width) * (2 * u[:, 2] - 1),
        (1 - height) * (2 * u[:, 3] - 1),
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    jittered = (u[:, 5] < _JITTERED).to(u)
    shift, contrast, saturation = (
        (_JITTER * jittered * (2 * u[:, i] - 1)).view(-1, 1, 1, 1) for i in (6, 7, 8)
    )
    flat = views.flatten(1)
    deviation = flat.std(1, correction=0).view(-1, 1, 1, 1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    views = mean + (1 + contrast) * (views - mean) + shift * deviation
    if images.shape[1] != 3:
        return views
    grey = views.mean(1, keepdim=True)
    colour = torch.where(u[:, 9] < _GREY, 0.0, 1.0).view(-1, 1, 1, 1) * (1 + saturation)
    return grey + colour * (views - grey)
