"""Does a patch find the same place of its image in another view?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import require_number, require_same_rows, require_same_width
from jepa_monitor.functional._tokens import (
    TokenShare,
    as_tokens,
    check_grid,
    share_of_tokens,
    unit_tokens,
)
from jepa_monitor.functional.mutual_neighbors import TIE


class PatchNeighbors(NamedTuple):
    """Share of patches whose nearest neighbour shows the same place.

    Args:
        share: Corrected for chance: 0 is chance, 1 all; with its 95 % interval.
        chance: The share of patches that a neighbour drawn at random would hit.
    """

    share: TokenShare
    chance: Tensor


def crop_places(
    grid: tuple[int, int], top: float, left: float, side: float, mirrored: bool
) -> Tensor:
    """Say which patches of an image show what each patch of a crop of it shows.

    Args:
        grid: Rows and columns of patches, of the image and of the crop alike: the crop is enlarged to
            the size of the image.
        top: Upper edge of the crop, 0 to 1 of the image's height.
        left: Left edge, of its width.
        side: Height and width of the crop, of those of the image.
        mirrored: Whether the crop is mirrored, left to right.

    Returns:
        (P, P), bool: for each patch of the crop the patches of the image whose centres lie within one
        patch of its centre, along rows and along columns.

    Raises:
        ValueError: If the crop does not lie in the image.

    Example:
        >>> crop_places((1, 3), 0.0, 0.0, 1.0, mirrored=True)
        tensor([[False,  True,  True],
                [ True,  True,  True],
                [ True,  True, False]])
    """
    rows, columns = check_grid(grid, grid[0] * grid[1])
    require_number(side, "side", 0, 1)
    for value, name in ((top, "top"), (left, "left")):
        if require_number(value, name, 0, 1) + side > 1 + 1e-9:
            raise ValueError(f"`{name}` + `side` must be at most 1, got {value} + {side}.")

    def overlaps(count: int, start: float, flip: bool) -> Tensor:
        centres = torch.arange(count, dtype=torch.float64) + 0.5
        shown = centres.flip(0) if flip else centres
        shown = start * count + side * shown
        return (shown[:, None] - centres).abs() <= 1 + 1e-9

    vertical, horizontal = overlaps(rows, top, False), overlaps(columns, left, mirrored)
    return torch.kron(vertical.int(), horizontal.int()).bool()


def patch_neighbors(tokens: Tensor, others: Tensor, same_place: Tensor) -> PatchNeighbors:
    r"""Share of patches whose nearest neighbour in another view of the image shows the same place.

    Neighbours are nearest by cosine among the Q patches of the same image. The share of hits is
    corrected for chance, :math:`(v - c)/(1 - c)`, c being the mean share of patches that show the
    same place: 0 for tokens without content, 1 for all. Neighbours that tie count in proportion, so
    that equal tokens read chance. Tokens that code their place in the *grid* find that place, not
    that of the image: choose views that move it, such as a mirrored crop. Invariant to rotations of
    both and to the scale of every token. Time O(B·P·Q·d).

    Args:
        tokens: Patch tokens of a view, shape (B, P, d).
        others: Patch tokens of another view of the same images, shape (B, Q, d).
        same_place: Whether a patch of the one shows what a patch of the other does, shape (P, Q),
            bool; see :func:`crop_places`.

    Returns:
        The share, its interval and the chance.

    Raises:
        ValueError: If the shapes do not match, or all pairs or none show the same place.

    Source:
        The signal that NeCo trains on (arXiv 2408.11054): patch neighbours across views.

    Example:
        >>> import torch
        >>> tokens = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(0))
        >>> mirror = torch.arange(9).view(3, 3).flip(1).flatten()
        >>> places = crop_places((3, 3), 0.0, 0.0, 1.0, mirrored=True)
        >>> patch_neighbors(tokens, tokens[:, mirror], places).share.share
        tensor(1., dtype=torch.float64)
    """
    t, other = as_tokens(tokens), as_tokens(others, "others")
    require_same_rows(t, other, ("tokens", "others"))
    require_same_width(t, other, ("tokens", "others"))
    expected = (t.shape[1], other.shape[1])
    if same_place.dtype != torch.bool or tuple(same_place.shape) != expected:
        raise ValueError(
            f"`same_place` must be bool of shape {expected}, got {same_place.dtype} of shape "
            f"{tuple(same_place.shape)}."
        )
    same = same_place.to(t.device).double()
    chance = same.mean()
    if not 0 < float(chance) < 1:
        raise ValueError(
            f"`same_place` must hold for some pairs and not for others, got a share of {chance:g}."
        )
    hits = []
    for own, theirs in zip(unit_tokens(t), unit_tokens(other), strict=True):  # P·Q at a time
        cosines = own @ theirs.T
        nearest = (cosines >= cosines.amax(dim=1, keepdim=True) - TIE).double()
        hits.append(((nearest * same).sum(dim=1) / nearest.sum(dim=1)).mean())
    found = share_of_tokens(torch.stack(hits), t.shape[1])
    corrected = [(value - chance) / (1 - chance) for value in found]
    return PatchNeighbors(TokenShare(*corrected), chance)
