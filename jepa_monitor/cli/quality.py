"""Plain looks at pixels: in goes an image, out come brightness, sharpness and marks that tell copies."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jepa_monitor.functional.outliers import robust_fence

__all__ = ["NUMBERS", "Looks", "looks_of", "quality_flags"]

NUMBERS = ("low", "high", "entropy", "sharpness", "aspect")
_SIDE = 256  # pixels; larger images are looked at reduced to it
_DARK, _BRIGHT = 0.2, 0.95  # of the 99 % and the 5 % quantile of luminance, from 0 to 1
_LEAST_ENTROPY = 0.5  # bits a pixel, of 8
_ODD_SHAPE = 3.0  # longer side by shorter
_FENCE = 5.0  # robust standard deviations of log sharpness under the median
_FEW = 10  # images, of which no median says what is sharp


class Looks(NamedTuple):
    """What an image looks like, apart from any encoder.

    Args:
        low: 5 % quantile of luminance, from 0 to 1.
        high: 99 % quantile.
        entropy: Of the luminance in 256 steps, bits.
        sharpness: Standard deviation of the Laplacian by that of the luminance.
        aspect: Longer side by shorter.
        pixels: Digest of size and pixels: equal for equal images.
        gradients: 64 bits, whether luminance rises from left to right in a grid of 8 x 8: few differ
            between an image and its re-encoded, resized or darkened copy (the difference hash, dHash).
    """

    low: float
    high: float
    entropy: float
    sharpness: float
    aspect: float
    pixels: bytes
    gradients: int


def looks_of(image: Image.Image) -> Looks:
    """Look at an image.

    Args:
        image: Mode RGB.

    Returns:
        What it looks like.
    """
    pixels = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode())
    grid = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes()
    small = image.convert("L")
    small.thumbnail((_SIDE, _SIDE))
    grey = np.asarray(small, dtype=np.float64) / 255
    low, high = np.quantile(grey, (0.05, 0.99))
    share = np.bincount(np.asarray(small).ravel(), minlength=256) / grey.size
    share = share[share > 0]
    spread = float(grey.std())
    edges = 0.0
    if spread > 0 and min(grey.shape) > 2:
        middle = grey[1:-1, 1:-1]
        around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
        edges = float((around - 4 * middle).std()) / spread
    return Looks(
        float(low),
        float(high),
        float(-(share * np.log2(share)).sum()) + 0.0,
        edges,
        max(image.size) / min(image.size),
        pixels.digest(),
        int.from_bytes(bits, "big"),
    )


def quality_flags(numbers: np.ndarray[Any, Any]) -> list[list[str]]:
    """Name what is plainly wrong with images.

    Args:
        numbers: :data:`NUMBERS` of each, (N, 5); NaN where an image was not looked at.

    Returns:
        Of each image: ``dark``, ``bright``, ``low information``, ``odd shape``; and ``blurred``, by
        comparison with the others, since how sharp an image can be depends on what it is of.
    """
    low, high, entropy, sharpness, aspect = numbers.T
    plain = entropy < _LEAST_ENTROPY
    told = {
        "dark": high < _DARK,
        "bright": low > _BRIGHT,
        "low information": plain,
        "odd shape": aspect > _ODD_SHAPE,
        "blurred": _blurred(np.where(plain, np.nan, sharpness)),
    }
    return [[name for name, flags in told.items() if flags[row]] for row in range(len(numbers))]


def _blurred(sharpness: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import torch

    known = np.isfinite(sharpness) & (sharpness > 0)
    if known.sum() < _FEW:
        return np.zeros(len(sharpness), dtype=bool)
    logs = np.log(sharpness, where=known, out=np.full(len(sharpness), np.nan))
    fence = float(robust_fence(torch.from_numpy(logs[known]), _FENCE))
    # Where nearly all are equally sharp the fence is at the median: half of it is blurred, no more.
    return np.asarray(logs < min(fence, float(np.median(logs[known])) - np.log(2)))
