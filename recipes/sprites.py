"""An environment of two sprites: in go a count and a seed, out come clips, actions and where everything is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SIDE", "SpriteClips", "draw_sprites", "sprite_clips"]

SIDE = 32  # pixels
_REACH = 0.12  # of the image that the disc moves by an action of 1
_EDGE = 0.02  # width of a sprite's edge, so that a place between two pixels can be seen
_LOW, _HIGH = 0.15, 0.85  # where the middles of sprites are


class SpriteClips(NamedTuple):
    """Clips of the environment.

    Args:
        frames: (N, T, 1, 32, 32), bytes.
        actions: (N, T − 1, 2), from −1 to 1: where the disc goes.
        places: Of the disc and the square, (N, T, 4), x and y of each from 0 to 1.
    """

    frames: Tensor
    actions: Tensor
    places: Tensor


def draw_sprites(places: Tensor) -> Tensor:
    """Draw a bright disc and a dim square.

    Args:
        places: x and y of each, (..., 4), from 0 to 1.

    Returns:
        (..., 1, 32, 32), bytes.
    """
    grid = (torch.arange(SIDE) + 0.5) / SIDE
    x, y, u, v = places[..., None, None, :].unbind(-1)
    disc = ((grid - x).square() + (grid[:, None] - y).square()).sqrt()
    square = torch.maximum((grid - u).abs(), (grid[:, None] - v).abs())
    bright = ((0.11 - disc) / _EDGE).sigmoid()
    dim = 0.5 * ((0.09 - square) / _EDGE).sigmoid()
    return (255 * torch.maximum(bright, dim)).round().byte()[..., None, :, :]


def sprite_clips(count: int, steps: int = 8, seed: int = 0) -> SpriteClips:
    """Let a disc follow actions and a square fly about, which bounces off the walls.

    The disc's next place is in the last frame and the action; the square's takes two frames, for its
    velocity is in none.

    Args:
        count: Clips.
        steps: Frames of each.
        seed: Of everything.

    Returns:
        The clips.

    Raises:
        ValueError: If there are no clips, or fewer than 2 frames.
    """
    if count < 1 or steps < 2:
        raise ValueError(f"`count` must be at least 1 and `steps` 2, got {count} and {steps}.")
    draw = torch.Generator().manual_seed(seed)
    start = _LOW + (_HIGH - _LOW) * torch.rand(count, 4, generator=draw)
    actions = 2 * torch.rand(count, steps - 1, 2, generator=draw) - 1
    angle = 6.283185307179586 * torch.rand(count, generator=draw)
    velocity = 0.07 * torch.stack([angle.cos(), angle.sin()], 1)
    disc, square = start[:, :2], start[:, 2:]
    places = [start]
    for action in actions.unbind(1):
        disc = (disc + _REACH * action).clamp(_LOW, _HIGH)
        square = square + velocity
        over = (square - _HIGH).clamp(min=0) - (_LOW - square).clamp(min=0)
        square = square - 2 * over
        velocity = torch.where(over == 0, velocity, -velocity)
        places.append(torch.cat([disc, square], 1))
    found = torch.stack(places, 1)
    return SpriteClips(draw_sprites(found), actions, found)
