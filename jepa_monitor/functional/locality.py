"""Are neighbouring patch tokens more alike than distant ones?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._tokens import as_tokens, check_grid, unit_tokens

_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class Locality(NamedTuple):
    """Similarity of tokens by distance; every field a 0-dimensional float64 tensor.

    Args:
        near: Mean cosine of tokens next to each other.
        far: Mean cosine of tokens half the longer side of the grid apart, or more.
        locality: Near minus far.
        morans_i: Moran's I of the tokens on their grid.
    """

    near: Tensor
    far: Tensor
    locality: Tensor
    morans_i: Tensor


def locality(tokens: Tensor, grid: tuple[int, int]) -> Locality:
    r"""Similarity of patch tokens of an image by their distance, and Moran's I.

    - ``near``: mean cosine of the pairs one patch apart, along rows or columns; ``far``: of the pairs
      at least half the longer side apart; both −1 to 1. far → near → 1 is a collapse of tokens; both
      about 0 is noise.
    - ``locality`` = near − far, −2 to 2: 0 without any order in space.
    - ``morans_i``:

      .. math:: I = \frac{P}{\sum_{ij} w_{ij}} \frac{\sum_{ij} w_{ij} \langle t_i - \bar t, t_j -
                \bar t \rangle}{\sum_i \lVert t_i - \bar t \rVert^2}

      of each image, w being 1 for the four neighbours, mean over images. Its expectation over all
      arrangements of the same tokens is exactly −1/(P − 1); 1 is smooth, −1 a chessboard.

    Invariant to rotations; the cosines to the scale of every token, Moran's I to one scale for all
    tokens of an image, and to a shift. Time O(B·P²·d).

    Args:
        tokens: Patch tokens, row by row, shape (B, P, d).
        grid: Rows and columns of patches, P = rows · columns, two patches at least.

    Returns:
        The measures. Images whose tokens are all equal have a Moran's I of 0.

    Raises:
        ValueError: If the grid does not have P places.

    Source:
        Moran (Biometrika 37, 1950), for vectors.

    Example:
        >>> import torch
        >>> half = torch.tensor([1.0, 0.0]).repeat(8, 1)  # rows 1 and 2 of 4
        >>> image = torch.cat([half, half.flip(1)])[None]
        >>> found = locality(image, (4, 4))
        >>> round(float(found.near), 3), round(float(found.morans_i), 3)
        (0.833, 0.667)
    """
    t = as_tokens(tokens)
    images, patches, _ = t.shape
    rows, columns = check_grid(grid, patches)
    place = torch.arange(patches, device=t.device)
    places = torch.stack([place // columns, place % columns], dim=1).double()
    distance = torch.cdist(places, places)
    near, far = distance == 1, distance >= max(rows, columns) / 2
    unit, centred = unit_tokens(t), t - t.mean(dim=1, keepdim=True)
    found = []
    for own, moved, image in zip(unit, centred, t, strict=True):  # P² numbers at a time
        cosines, products = own @ own.T, moved @ moved.T
        spread = products.trace()
        floor = (_ROUNDING * torch.finfo(tokens.dtype).eps) ** 2 * image.square().sum()
        i = products[near].mean() * patches / spread if spread > floor else torch.zeros_like(spread)
        found.append(torch.stack([cosines[near].mean(), cosines[far].mean(), i]))
    close, apart, morans_i = torch.stack(found).sum(dim=0) / images
    return Locality(close, apart, close - apart, morans_i)
