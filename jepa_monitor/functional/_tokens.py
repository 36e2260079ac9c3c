"""What all functions of tokens share: checks, directions, and shares of tokens with an interval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_views
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._intervals import wilson_interval


class TokenShare(NamedTuple):
    """A share of the tokens of several images, 0-dimensional float64 tensors.

    Args:
        share: The share.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
    """

    share: Tensor
    lower: Tensor
    upper: Tensor


def as_tokens(value: Tensor, name: str = "tokens", images: int = 1, patches: int = 2) -> Tensor:
    """Return ``value`` in float64 if it is finite and of shape (B, P, d).

    Args:
        value: What the caller passed.
        name: Its name in the caller's signature.
        images: Smallest B that the caller can work with.
        patches: Smallest P.

    Returns:
        (B, P, d), float64.
    """
    return as_views(value, name, min_samples=images, min_views=patches)


def unit_tokens(tokens: Tensor) -> Tensor:
    """Scale tokens to unit length.

    Args:
        tokens: (B, P, d), float64.

    Returns:
        The same shape; tokens of zeros stay zero.
    """
    return unit_rows(tokens.flatten(0, 1)).view_as(tokens)


def check_grid(grid: tuple[int, int], patches: int) -> tuple[int, int]:
    """Return ``grid`` if it has as many places as there are patches.

    Args:
        grid: Rows and columns.
        patches: P.

    Returns:
        The grid.

    Raises:
        ValueError: If it has not.
    """
    rows, columns = (check_positive_int(side, "grid") for side in grid)
    if rows * columns != patches:
        raise ValueError(f"`grid` must have {patches} places, one a patch, got {rows} x {columns}.")
    return rows, columns


def share_of_tokens(by_image: Tensor, tokens: int) -> TokenShare:
    """Average the shares of images, with Wilson's interval for as many tokens as they are worth.

    Tokens of one image are alike, so B images of P tokens are worth fewer than B·P: as many as have a
    binomial variance of that which the shares of images show, and B where they show none.

    Args:
        by_image: Share of each image, (B,), float64.
        tokens: Tokens P of an image.

    Returns:
        The share and its interval.

    Source:
        Kish, Survey Sampling (1965), for the effective sample size; Wilson (1927).
    """
    images = len(by_image)
    share = by_image.mean()
    worth = float(images)
    if images > 1 and float(variance := by_image.var() / images) > 0:
        worth = min(max(float(share * (1 - share) / variance), 1.0), float(images * tokens))
    interval = wilson_interval(share * worth, worth)
    return TokenShare(share, interval.lower, interval.upper)


def chosen_places(count: int, places: int, seed: int) -> Tensor:
    """Draw places without replacement; torch's global generator is neither read nor seeded.

    Args:
        count: How many there are.
        places: How many to draw; all, in their order, if there are no more.
        seed: Of the draw.

    Returns:
        Indices, ascending.
    """
    if count <= places:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:places].sort().values
