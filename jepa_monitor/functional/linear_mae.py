"""The masked autoencoder in closed form: in go second moments and a patch grid, out come linear maps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._spectrum import entropy_rank

__all__ = [
    "Influence",
    "LinearMae",
    "cell_distances",
    "influence",
    "linear_mae",
    "masked_loss",
    "masked_patch_map",
    "patch_grid",
]

_FLOOR = 1e-10  # of the largest eigenvalue; smaller ones are directions in which no image differs


class LinearMae(NamedTuple):
    """The best linear masked autoencoder.

    Args:
        encoder: From inputs to codes, (D, k), float64; up to an invertible (k, k) matrix.
        decoder: From codes to inputs, (k, D), float64.
        explained: Share of the variance of all inputs that it explains where it was fitted.
        rank: Effective rank of what a map of full rank would explain, 0 … D.
    """

    encoder: Tensor
    decoder: Tensor
    explained: Tensor
    rank: Tensor


class Influence(NamedTuple):
    """From how far a map takes what it puts into an output; 0-dimensional, float64.

    Args:
        distance: Mean distance between input and output, weighted by |weight|, in pixels.
        length: ℓ of the fit of exp(−distance/ℓ) to the mean |weight|; infinite if that does not fall.
        in_patch: Share of the sum of |weights| that stays in the patch of the output.
        even: The distance of a map whose weights are all equal.
    """

    distance: Tensor
    length: Tensor
    in_patch: Tensor
    even: Tensor


def patch_grid(side: int, size: int, channels: int = 1) -> Tensor:
    """Number the patch that each input of square images belongs to.

    Args:
        side: Of the images, in pixels.
        size: Of the patches.
        channels: Of the images; a patch holds all of them.

    Returns:
        (channels · side²,), int64, in the order of flattened images (C, H, W).

    Raises:
        ValueError: If patches do not divide images.

    Example:
        >>> patch_grid(4, 2).view(4, 4)
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [2, 2, 3, 3],
                [2, 2, 3, 3]])
    """
    for value, name in ((side, "side"), (size, "size"), (channels, "channels")):
        check_positive_int(value, name)
    if side % size:
        raise ValueError(f"`size` must divide the side of the images, {side}, got {size}.")
    places = torch.arange(side) // size
    grid = places[:, None] * (side // size) + places[None]
    return grid.flatten().repeat(channels)


def _checked(second_moment: Tensor, patches: Tensor, mask: float) -> Tensor:
    if not isinstance(second_moment, Tensor) or not second_moment.is_floating_point():
        raise TypeError("`second_moment` must be a floating-point torch.Tensor.")
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"`second_moment` must be (D, D), got {tuple(second_moment.shape)}.")
    if patches.shape != second_moment.shape[:1] or patches.is_floating_point():
        raise ValueError(
            f"`patches` must hold a whole number for each of {len(second_moment)} inputs, got "
            f"{patches.dtype} of shape {tuple(patches.shape)}."
        )
    if not 0 <= mask < 1:
        raise ValueError(f"`mask` must be from 0 to less than 1, got {mask}.")
    moment = second_moment.double()
    if not bool(torch.isfinite(moment).all()) or float(moment.diagonal().sum()) <= 0:
        raise ValueError("`second_moment` must be finite and not 0: do the images differ at all?")
    return moment


def _seen(moment: Tensor, patches: Tensor, mask: float) -> Tensor:
    """The second moment of what is left of images, over the share of patches that is left."""
    same = patches[:, None] == patches[None]
    return (1 - mask) * moment + mask * moment * same


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse, where the matrix has one."""
    inverse: Tensor = torch.linalg.pinv(matrix, hermitian=True, rtol=_FLOOR)
    return inverse


def linear_mae(second_moment: Tensor, patches: Tensor, mask: float, rank: int) -> LinearMae:
    r"""Solve the linear masked autoencoder whose loss counts all inputs.

    Patches are hidden with probability m, each by itself, and :math:`\mathrm E_R \|x - (R \odot x)^\top A
    B\|^2` is least for :math:`A = V^{-1} S U_k`, :math:`B = U_k^\top`, with the second moment S of centred
    images, :math:`V = (1 - m) S + m \, \mathrm{blockdiag}(S)` and the first k eigenvectors of :math:`S
    V^{-1} S`. Without a mask this is PCA. It knows second moments and the grid, and nothing else of
    images: what it foretells is over what distance a map must look, not how useful its codes are.

    Args:
        second_moment: S, (D, D); its scale does not matter.
        patches: Which patch each input belongs to, (D,); see :func:`patch_grid`.
        mask: m, from 0 to less than 1.
        rank: k, 1 … D.

    Returns:
        The maps.

    Raises:
        TypeError: If ``second_moment`` is no floating-point tensor.
        ValueError: If a shape or a value is not as described.

    Source:
        arXiv 2508.15404.

    Example:
        >>> import torch
        >>> x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).cumsum(1)
        >>> found = linear_mae(x.T @ x, patch_grid(4, 2), mask=0.5, rank=3)
        >>> found.encoder.shape, round(float(found.explained), 2)
        (torch.Size([16, 3]), 0.69)
    """
    moment = _checked(second_moment, patches, mask)
    check_positive_int(rank, "rank")
    if rank > len(moment):
        raise ValueError(f"`rank` must be at most {len(moment)}, got {rank}.")
    whole = _inverse(_seen(moment, patches, mask)) @ moment
    eigenvalues, vectors = torch.linalg.eigh(moment @ whole)
    eigenvalues = eigenvalues.clamp_min(0).flip(0)
    directions = vectors.flip(1)[:, :rank]
    explained = (1 - mask) * eigenvalues[:rank].sum() / moment.trace()
    return LinearMae(whole @ directions, directions.T, explained, entropy_rank(eigenvalues))


def masked_patch_map(second_moment: Tensor, patches: Tensor, mask: float) -> Tensor:
    r"""Solve the linear masked autoencoder whose loss counts hidden patches only, as MAE's does.

    Each patch q is foretold from what is seen of the others, :math:`W_q = V_{-q,-q}^{-1} S_{-q,q}`; the map
    is of full rank, since no codes are shared.

    Args:
        second_moment: See :func:`linear_mae`.
        patches: See :func:`linear_mae`.
        mask: See :func:`linear_mae`.

    Returns:
        From inputs to outputs, (D, D), float64; 0 within each patch.

    Raises:
        TypeError: As :func:`linear_mae`.
        ValueError: As :func:`linear_mae`, and if there is a single patch.
    """
    moment = _checked(second_moment, patches, mask)
    numbers = torch.unique(patches)
    if len(numbers) < 2:
        raise ValueError("`patches` must be two at least: one alone is foretold by nothing.")
    # The inverse without some rows and columns is a Schur complement of the whole inverse.
    whole = _inverse(_seen(moment, patches, mask))
    weights = torch.zeros_like(moment)
    for q in numbers:
        own, rest = (patches == q).nonzero()[:, 0], (patches != q).nonzero()[:, 0]
        across = whole[rest][:, own]
        inner = _inverse(whole[own][:, own])
        target = moment[rest][:, own]
        solved = whole[rest][:, rest] @ target - across @ (inner @ (across.T @ target))
        weights[rest[:, None], own] = solved
    return weights


def masked_loss(
    weights: Tensor,
    second_moment: Tensor,
    patches: Tensor,
    mask: float,
    *,
    hidden_only: bool = False,
) -> Tensor:
    r"""The share of variance that a linear map leaves unexplained under random masks, exactly.

    Args:
        weights: From inputs to outputs, (D, D).
        second_moment: Of the images to judge it by, centred; see :func:`linear_mae`.
        patches: See :func:`linear_mae`.
        mask: See :func:`linear_mae`.
        hidden_only: Whether only hidden patches count; the map must then be 0 within each patch.

    Returns:
        0-dimensional, float64, ≥ 0; above 1 for a map that is worse than the mean.

    Raises:
        TypeError: As :func:`linear_mae`.
        ValueError: As :func:`linear_mae`, and if the map is of another size or not 0 within patches.
    """
    moment = _checked(second_moment, patches, mask)
    if weights.shape != moment.shape:
        raise ValueError(f"`weights` must be {tuple(moment.shape)}, got {tuple(weights.shape)}.")
    weights = weights.double()
    if hidden_only and bool((weights * (patches[:, None] == patches[None])).any()):
        raise ValueError("`weights` must be 0 within each patch, since that patch is hidden.")
    seen = _seen(moment, patches, mask)
    products = weights * (seen @ weights - 2 * moment)
    return 1 + (1 - mask) * products.sum() / moment.trace()


def influence(weights: Tensor, side: int, patches: Tensor) -> Influence:
    """Say from how far a linear map of images takes what it puts into a pixel.

    Args:
        weights: From inputs to outputs, (D, D), of flattened images (C, H, W).
        side: Height and width of the images, in pixels.
        patches: Which patch each input belongs to, (D,).

    Returns:
        Distances in pixels, and shares.

    Raises:
        ValueError: If D is no multiple of side², or all weights are 0.
    """
    check_positive_int(side, "side")
    count = len(weights)
    if weights.shape != (count, count) or count % side**2 or patches.shape != (count,):
        raise ValueError(
            f"`weights` must be (D, D) with D a multiple of {side**2}, and `patches` (D,), got "
            f"{tuple(weights.shape)} and {tuple(patches.shape)}."
        )
    size = weights.double().abs()
    total = size.sum()
    if not float(total) > 0:
        raise ValueError("`weights` must not be all 0.")
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).double()
    places = places.repeat(count // side**2, 1)
    apart = torch.cdist(places, places)
    same = patches[:, None] == patches[None]
    return Influence(
        (size * apart).sum() / total,
        _length(size, apart, side),
        (size * same).sum() / total,
        apart.mean(),
    )


def cell_distances(sides: tuple[int, int], size: tuple[int, int], corners: Tensor) -> Tensor:
    """How far each pixel of an image is from the pixels of a cell, on average over these.

    Args:
        sides: Height and width of the image, in pixels.
        size: Height and width of the cells; 1 × 1 for single pixels.
        corners: Row and column of the upper left pixel of each cell, (S, 2), int64.

    Returns:
        (S, H, W), float64, in pixels.

    Raises:
        ValueError: If a cell does not lie in the image.

    Example:
        >>> cell_distances((1, 4), (1, 2), torch.tensor([[0, 0]])).flatten().tolist()
        [0.5, 0.5, 1.5, 2.5]
    """
    (height, width), (rows, columns) = sides, size
    furthest = corners.new_tensor([height - rows, width - columns])
    if (
        corners.ndim != 2
        or corners.shape[1] != 2
        or bool(((corners < 0) | (corners > furthest)).any())
    ):
        raise ValueError(
            f"`corners` must be (S, 2), of cells of {rows}x{columns} pixels in an image of "
            f"{height}x{width}, got {corners.tolist()}."
        )
    y, x = (torch.arange(1 - side, side, dtype=torch.float64) for side in sides)
    apart = torch.hypot(y[:, None], x[None])
    # By how much a pixel lies below and to the right of a corner: the mean over the pixels of the cell.
    table = F.avg_pool2d(apart[None, None], size, stride=1)[0, 0]
    tops, lefts = (furthest - corners).unbind(1)
    down, right = torch.arange(height), torch.arange(width)
    return table[(tops[:, None] + down)[:, :, None], (lefts[:, None] + right)[:, None]]


def _length(size: Tensor, apart: Tensor, side: int) -> Tensor:
    """Fit an exponential to the mean weight by distance, each whole pixel counting as it has pairs."""
    bins = apart.round().long().flatten()
    pairs = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(
        0, bins, torch.ones_like(bins, dtype=torch.float64)
    )
    sums = torch.zeros_like(pairs).index_add_(0, bins, size.flatten())
    # Beyond half the image only pixels near its borders have pairs.
    chosen = (pairs > 0) & (sums > 0) & (torch.arange(len(pairs)) <= max(side // 2, 2))
    x = torch.arange(len(pairs), dtype=torch.float64)[chosen]
    y, weight = (sums[chosen] / pairs[chosen]).log(), pairs[chosen]
    x_mean, y_mean = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    spread = (weight * (x - x_mean).square()).sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / spread
    falls = math.isfinite(float(slope)) and float(slope) < 0
    return -1 / slope if falls else torch.full_like(slope, torch.inf)
