"""Common corruptions of images: in go images and a severity, out come images as bad weather or a sensor has them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_choice, check_images

__all__ = ["CORRUPTIONS", "RANDOM", "corrupt", "parse_corruption"]

# By severity 1 … 5, as CIFAR-10-C has them (arXiv 1903.12261).
_FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
_GAUSSIAN_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
_SHOT_NOISE = (500, 250, 100, 75, 50)
_GAUSSIAN_BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)
_SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 32  # of the images that lengths in pixels are meant for


def _plasma(count: int, side: int, decay: float, generator: torch.Generator) -> Tensor:
    """Draw clouds by the diamond-square algorithm on a torus, from 0 to 1, (N, side, side)."""
    # Midpoints are the mean of four neighbours, and uniform noise that shrinks as their distance does.
    field = torch.zeros(count, side, side, dtype=torch.float64)
    step, width = side, 1e4

    def midpoints(neighbours: Tensor) -> Tensor:
        noise = torch.rand(neighbours.shape, generator=generator, dtype=torch.float64)
        return neighbours / 4 + width * (2 * noise - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = midpoints(pairs + pairs.roll(-1, 2))
        centres = field[:, half::step, half::step]
        right = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = midpoints(right)
        below = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = midpoints(below)
        step, width = half, width / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    strength, decay = _FOG[severity - 1]
    height, width = images.shape[-2:]
    side = max(2 ** math.ceil(math.log2(max(height, width))), 2)
    clouds = _plasma(len(images), side, decay, generator)[:, None, :height, :width].to(images)
    brightest = images.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (images + strength * clouds) * brightest / (brightest + strength)


def _gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return images + _GAUSSIAN_NOISE[severity - 1] * noise.to(images)


def _shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    photons = _SHOT_NOISE[severity - 1]
    return torch.poisson(images.clamp_min(0) * photons, generator=generator) / photons


def _gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    del generator
    sigma = _GAUSSIAN_BLUR[severity - 1] * min(images.shape[-2:]) / _SIDE
    reach = int(4 * sigma + 0.5)  # as SciPy truncates it
    if reach < 1:
        return images
    places = torch.arange(-reach, reach + 1).to(images)
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, :, None], groups=images.shape[1])


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "fog": _fog,
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "gaussian_blur": _gaussian_blur,
}
RANDOM = ("fog", "gaussian_noise", "shot_noise")  # blur does the same to every image


def corrupt(images: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    r"""Corrupt images as CIFAR-10-C does (arXiv 1903.12261), each by a draw of its own.

    | kind | severity 1 … 5 is |
    |---|---|
    | ``fog`` | clouds of .2, .5, .75, 1, 1.5 times the range, then scaled back into it; their detail falls by 3, 3, 2.5, 2, 1.75 |
    | ``gaussian_noise`` | its standard deviation: .04, .06, .08, .09, .10 |
    | ``shot_noise`` | photons of a white pixel: 500, 250, 100, 75, 50 |
    | ``gaussian_blur`` | its standard deviation: .4, .6, .7, .8, 1 pixel of 32 |

    Args:
        images: In [0, 1], (N, C, H, W), any float.
        kind: Which.
        severity: 1 … 5.
        generator: Source of all randomness, on the CPU; blur draws nothing.

    Returns:
        In [0, 1], of the same shape and dtype.

    Raises:
        TypeError: If ``images`` is no floating-point tensor.
        ValueError: If it is not (N, C, H, W), or another argument is out of range.

    Example:
        >>> import torch
        >>> images = torch.full((2, 3, 8, 8), 0.5)
        >>> corrupt(images, "fog", 3, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    check_images(images)
    if images.ndim != 4:
        raise ValueError(f"`images` must be (N, C, H, W), got {tuple(images.shape)}.")
    check_choice(kind, "kind", tuple(CORRUPTIONS))
    if isinstance(severity, bool) or severity not in _SEVERITIES:
        raise ValueError(f"`severity` must be 1, 2, 3, 4 or 5, got {severity!r}.")
    return CORRUPTIONS[kind](images, severity, generator).clamp(0, 1)


def parse_corruption(text: str, name: str) -> tuple[str, int]:
    """Read the words for a corruption, such as ``fog:3``.

    Args:
        text: ``KIND:SEVERITY``, as :func:`corrupt` takes them.
        name: What the argument is called in errors.

    Returns:
        Kind and severity.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> parse_corruption("fog:3", "corruption")
        ('fog', 3)
    """
    kind, _, severity = text.partition(":")
    if kind not in CORRUPTIONS or severity not in map(str, _SEVERITIES):
        raise ValueError(
            f"`{name}` must be KIND:SEVERITY with {', '.join(CORRUPTIONS)} and 1 to 5, got {text!r}."
        )
    return kind, int(severity)
