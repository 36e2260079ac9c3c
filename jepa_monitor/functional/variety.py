"""Do the training images differ from each other? Asked of pixels, before any encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.functional._checks import as_matrix, require_number, require_same_shape

__all__ = ["SIDE", "ShareInterval", "duplicate_share", "thumbnails", "view_variety"]

SIDE = 8  # pixels of a thumbnail's side
_NORMAL = 1.959964  # 97.5 % quantile
_T = TypeVar("_T")


class ShareInterval(NamedTuple):
    """A share, and between which it lies with a confidence of 95 %.

    Args:
        share: The estimate, 0-dimensional float64.
        low: The lower end.
        high: The upper end.
    """

    share: Tensor
    low: Tensor
    high: Tensor


def thumbnails(images: Tensor) -> Tensor:
    """Shrink images to 8×8 means, which noise and compression leave much as they are.

    Args:
        images: Shape (B, ..., H, W) of any dtype; (B, D), which has no sides, is left as it is.

    Returns:
        Float32 of the same device, shape (B, D).

    Raises:
        ValueError: If there are no images or no pixels.
    """
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"`images` must have shape (B, ..., H, W), got {tuple(images.shape)}.")
    pixels = images.detach().float()
    if pixels.ndim == 2:
        return pixels
    height, width = (min(side, SIDE) for side in pixels.shape[-2:])
    maps = pixels.reshape(len(pixels), -1, *pixels.shape[-2:])
    return F.adaptive_avg_pool2d(maps, (height, width)).flatten(1)


def duplicate_share(batches: Sequence[Tensor], tolerance: float = 0.01) -> ShareInterval:
    r"""Share of the pairs of images of one batch that are nearly the same.

    Two images are, if their mean squared difference is at most ``tolerance`` of what it is for
    unrelated pixels: twice the variance of all pixels about their common mean. That depends on no
    scale, no shift and no other set of images. One over the share is the effective number of
    different images (Simpson's): M equally frequent ones drawn with replacement give 1/M, one image
    gives 1. Images are not compared across batches, as epochs repeat them.

    Range 0 to 1; healthy is near 0. Copies that random augmentation has changed are not the same
    here: see :func:`view_variety`. The interval is that of a U-statistic, the standard error twice
    the standard deviation of the images' own shares over √n, cut at 0 and 1.

    Args:
        batches: Pixels of the images of each batch, shape (B, D), B ≥ 2, all of one D.
        tolerance: Share of the squared difference of unrelated pixels, at most 1.

    Returns:
        The share. Images of one colour all over, all alike, have a share of 1.

    Raises:
        ValueError: If there are no batches, or fewer than two images in one.

    Source:
        Simpson, Measurement of diversity (Nature 163, 1949); Hoeffding, A class of statistics with
        asymptotically normal distribution (Annals of Mathematical Statistics 19, 1948).

    Example:
        >>> import torch
        >>> pictures = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
        >>> duplicate_share([pictures]).share, duplicate_share([pictures[:1].expand(8, -1)]).share
        (tensor(0., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    require_number(tolerance, "tolerance", 0, 1, closed=False)
    pixels = [as_matrix(batch, "batches", min_rows=2) for batch in _given(batches)]
    scale = 2 * torch.cat([batch.flatten() for batch in pixels]).var(correction=0)
    own, weights = [], []
    for batch in pixels:
        # Distances one by one: in the form of a product, copies would differ by rounding.
        apart = torch.cdist(batch, batch, compute_mode="donot_use_mm_for_euclid_dist").square()
        same = (apart <= tolerance * scale * batch.shape[1]).double()
        own.append((same.sum(1) - 1) / (len(batch) - 1))
        weights.append(torch.full_like(own[-1], len(batch) - 1.0))
    shares, weight = torch.cat(own), torch.cat(weights)
    weight = weight / weight.sum()
    share = weight @ shares
    error = 2 * (weight.square() @ (shares - share).square()).sqrt()
    ends = (share + sign * _NORMAL * error for sign in (-1, 1))
    low, high = (end.clamp(0, 1) for end in ends)
    return ShareInterval(share, low, high)


def view_variety(batches: Sequence[tuple[Tensor, Tensor]]) -> ShareInterval:
    r"""Share of the variance of augmented pixels that is between images, and not between their views.

    .. math::
        1 - \frac{\operatorname{mean}_i \lVert a_i - b_i \rVert^2}
                 {\operatorname{mean}_{i \ne j} \lVert a_i - b_j \rVert^2}

    with the two views a and b of each image i of a batch: the intraclass correlation of the pixels.
    It is 0 where views of two images are no more different than two views of one: the data repeat one
    image, or augmentation leaves nothing of it. Range 0 to 1, but for noise, which can push the
    estimate below 0. The interval is the jackknife's, over images.

    Args:
        batches: Pixels of both views of each batch, two tensors of shape (B, D), B ≥ 3.

    Returns:
        The share; not a number where no two views differ.

    Raises:
        ValueError: If there are no batches, fewer than three images in one, or the views differ in
            shape.

    Source:
        Fisher, Statistical methods for research workers (1925), §38: the intraclass correlation.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> image, first, second = (torch.randn(64, 192, generator=g) for _ in range(3))
        >>> round(view_variety([(image + first, image + second)]).share.item(), 2)
        0.5
        >>> round(view_variety([(first, second)]).high.item(), 2)
        0.02
    """
    within, between, without = [], [], []
    for first, second in _given(batches):
        a, b = as_matrix(first, "batches", min_rows=3), as_matrix(second, "batches", min_rows=3)
        require_same_shape(a, b, ("first view", "second view"))
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        own, count = apart.diagonal(), len(a)
        others = apart.sum() - own.sum()
        # Without one image: its row and its column are gone.
        fewer = others - apart.sum(0) - apart.sum(1) + 2 * own
        within.append(own)
        between.append(others / (count - 1))
        without.append(fewer / (count - 2) - between[-1])
    inside, outside = torch.cat(within), torch.stack(between).sum()
    share = 1 - inside.sum() / outside
    left_out = 1 - (inside.sum() - inside) / (outside + torch.cat(without))
    count = len(left_out)
    error = ((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt()
    if not math.isfinite(share):
        return ShareInterval(*(torch.full_like(share, math.nan) for _ in range(3)))
    return ShareInterval(share, share - _NORMAL * error, share + _NORMAL * error)


def _given(batches: Sequence[_T]) -> Sequence[_T]:
    if not len(batches):
        raise ValueError("`batches` must hold at least one batch, got none.")
    return batches
