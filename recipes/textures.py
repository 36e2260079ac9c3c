"""Ten kinds of texture, drawn from a seed: in go a count and a size, out come images and their kinds.

Each image shows one kind (stripes, bricks, cells, ...) at a random angle, scale, place and contrast, dark on light
or light on dark, in noise. What tells the kind is how neighbouring places go together, and no pixel by itself: the
mean image of every kind is grey, so that nothing linear in the pixels tells it, and of a few thousand images hardly
two are alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "draw_textures"]

Array = NDArray[np.float64]
Drawn = NDArray[np.bool_]

KINDS = (
    "stripes", "checks", "dots", "bricks", "waves", "zigzags", "grid", "rings", "cells", "blobs"
)  # fmt: skip
_PERIODS = (4.5, 8.0)  # shortest and longest, in pixels
_CONTRAST = (0.5, 0.8)
_BRIGHTNESS, _NOISE = 0.05, 0.06  # half of a range, and a standard deviation, of white
_EDGE = 1.3  # pixels between cells


def _part(x: Array) -> Array:
    return x - np.floor(x)


def _cells(u: Array, v: Array, random: np.random.Generator) -> Drawn:
    """Walls between the regions that are nearest to one place each."""
    # One seed in each square of the lattice, at a random place of it.
    rows, columns = np.floor(v).astype(int), np.floor(u).astype(int)
    low = np.array([rows.min(), columns.min()]) - 1
    shape = np.array([rows.max(), columns.max()]) + 2 - low
    places = random.uniform(0, 1, (*shape, 2))
    distances = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column = rows + down, columns + right
            place = places[row - low[0], column - low[1]]
            distances.append(np.hypot(row + place[..., 0] - v, column + place[..., 1] - u))
    first, second = np.sort(np.stack(distances), 0)[:2]
    walls: Drawn = second - first < _EDGE * np.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0])
    return walls


def _blobs(u: Array, v: Array, random: np.random.Generator) -> Drawn:
    """Where a smooth random field is above its median."""
    period = 1 / np.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0])
    frequencies = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(len(u))]))
    smooth = np.fft.fft2(random.normal(size=u.shape)) * np.exp(-1.6 * (period * frequencies) ** 2)
    level = np.fft.ifft2(smooth).real
    blobs: Drawn = level > np.median(level)
    return blobs


def _drawn(kind: str, u: Array, v: Array, random: np.random.Generator) -> Drawn:
    """Say which pixels are ink; u and v count periods."""
    match kind:
        case "stripes":
            return _part(u) < 0.5
        case "checks":
            return _part(u + 0.5 * (_part(v) < 0.5)) >= 0.5
        case "dots":
            return np.hypot(_part(u) - 0.5, _part(v) - 0.5) < 0.3
        case "bricks":
            return (_part(v) < 0.2) | (_part(u / 1.6 + np.floor(v) % 2 / 2) < 0.14)
        case "waves":
            return _part(v + 0.25 * np.sin(2 * np.pi * u / 1.3)) < 0.5
        case "zigzags":
            return _part(v + 0.5 * np.abs(2 * _part(u / 1.3) - 1)) < 0.5
        case "grid":
            return (_part(u) < 0.22) | (_part(v) < 0.22)
        case "rings":
            return _part(2 * np.hypot(*(x - 2 * np.round(x / 2) for x in (u, v)))) < 0.5
        case "cells":
            return _cells(u, v, random)
        case _:
            return _blobs(u, v, random)


def draw_textures(count: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw textures, as many of each kind as go.

    Args:
        count: Number of images N, at least 1.
        size: Side of the images in pixels, at least 8: about one period of the coarsest.
        seed: Decides on everything.

    Returns:
        Images (N, size, size) and kinds (N,), places in :data:`KINDS`, in random order.

    Raises:
        ValueError: If a number is too small.
    """
    for name, value, least in (("count", count, 1), ("size", size, 8)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    random = np.random.default_rng(seed)
    kinds = random.permutation(np.arange(count) % len(KINDS))
    places = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(places, places, indexing="ij")
    images = np.empty((count, size, size), np.uint8)
    for n, kind in enumerate(kinds):
        angle, period = random.uniform(0, 2 * np.pi), random.uniform(*_PERIODS)
        along, across = random.uniform(0, 2, 2)  # rings and bricks repeat every other period
        u = (np.cos(angle) * x + np.sin(angle) * y) / period + along
        v = (np.cos(angle) * y - np.sin(angle) * x) / period + across
        sign = _drawn(KINDS[kind], u, v, random) - 0.5
        contrast = random.choice((-1, 1)) * random.uniform(*_CONTRAST)
        grey = 0.5 + contrast * sign + random.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        grey += random.normal(0, _NOISE, grey.shape)
        images[n] = np.round(255 * grey.clip(0, 1))
    return images, kinds
