"""How much of the tokens is their place, whatever the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._tokens import as_tokens

_ROUNDING = 4  # a spread of so many roundings of the input's dtype is no spread


class PositionShare(NamedTuple):
    """Share of the tokens' variance that their place explains; 0-dimensional float64 tensors.

    Args:
        share: Of the variance in this sample of images.
        null: What it is on average for tokens that do not know their place.
        excess: (share − null)/(1 − null).
    """

    share: Tensor
    null: Tensor
    excess: Tensor


def position_share(tokens: Tensor) -> PositionShare:
    r"""R² of the mean token at each place: how far tokens code place instead of content.

    .. math:: R^2 = \frac{B \sum_p \lVert \bar t_p - \bar t \rVert^2}{\sum_{b,p} \lVert t_{bp} - \bar t
              \rVert^2}, \qquad E_0[R^2] = \frac{P - 1}{BP - 1}

    Range 0 to 1. The expectation holds exactly over all arrangements of the tokens, and ``excess``
    takes it off: 0 for tokens that do not know their place, 1 for tokens that are the same in every
    image. Towards 1 in a ViT at initialisation whose positions outweigh its patches, and where a
    position code is broken. Invariant to rotations, one scale and a shift. Time O(B·P·d).

    Args:
        tokens: Patch tokens of B ≥ 2 images, shape (B, P, d), P ≥ 2.

    Returns:
        Share, null and excess. Equal tokens have a share of the null: an excess of 0.

    Raises:
        ValueError: If there are fewer than two images or patches.

    Source:
        Analysis of variance with one factor; Fisher, Statistical Methods for Research Workers (1925).

    Example:
        >>> import torch
        >>> places = torch.eye(4)[None].expand(3, 4, 4)  # the same in each of three images
        >>> position_share(places).excess
        tensor(1., dtype=torch.float64)
    """
    t = as_tokens(tokens, images=2)
    images, patches, _ = t.shape
    null = t.new_tensor((patches - 1) / (images * patches - 1))
    size = t.abs().amax().clamp(min=torch.finfo(t.dtype).tiny)
    t = t / size
    centred = t - t.mean(dim=(0, 1))
    total = centred.square().sum()
    floor = (_ROUNDING * torch.finfo(tokens.dtype).eps) ** 2 * t.square().sum()
    share = null
    if total > floor:
        share = images * centred.mean(dim=0).square().sum() / total
    return PositionShare(share, null, (share - null) / (1 - null))
