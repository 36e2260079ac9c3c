"""Outliers by construction: in go images and a severity, out come worse ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CORRUPTIONS", "SEVERITIES"]

SEVERITIES = (1, 2, 3)


def _noise(images: Tensor, severity: int) -> Tensor:
    """Add noise of a quarter to three quarters of each image's own standard deviation."""
    generator = torch.Generator().manual_seed(severity)
    noise = torch.randn(images.shape, generator=generator)
    return images + 0.25 * severity * images.flatten(1).std(1).view(-1, 1, 1, 1) * noise


def _blur(images: Tensor, severity: int) -> Tensor:
    """Shrink by 2, 4 or 8 and enlarge again."""
    height, width = images.shape[-2:]
    small = F.interpolate(
        images,
        size=(max(1, height >> severity), max(1, width >> severity)),
        mode="bilinear",
        antialias=True,
    )
    return F.interpolate(small, size=(height, width), mode="bilinear")


def _shuffle(images: Tensor, severity: int) -> Tensor:
    """Permute the tiles of a 2 × 2, 4 × 4 or 8 × 8 grid, the same way in all images."""
    parts = 2**severity
    generator = torch.Generator().manual_seed(severity)
    rows = torch.tensor_split(torch.arange(images.shape[-2]), parts)
    columns = torch.tensor_split(torch.arange(images.shape[-1]), parts)
    row_order = torch.randperm(parts, generator=generator).tolist()
    column_order = torch.randperm(parts, generator=generator).tolist()
    permuted = images[..., torch.cat([rows[i] for i in row_order]), :]
    return permuted[..., torch.cat([columns[i] for i in column_order])]


# Each must look odd in its own way: one alone does not tell whether a score is inverted.
CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "shuffle": _shuffle,
}
