"""The environment of the counting recipe: images of objects that actions add and remove."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SIDE, CELL, OBJECT = 64, 8, 7  # pixels of the image, of a place for an object, of an object


def _shapes() -> Tensor:
    """Masks of a circle, a square, a triangle and a line, (4, 7, 7)."""
    radius = OBJECT // 2
    y, x = torch.meshgrid(
        torch.arange(-radius, radius + 1), torch.arange(-radius, radius + 1), indexing="ij"
    )
    circle = y.square() + x.square() <= radius**2 + 1
    triangle = 2 * x.abs() <= y + radius
    return torch.stack([circle, torch.ones_like(circle), triangle, y == 0]).float()


class CountingEnv:
    """Environments in which an action adds an object, removes one, or does nothing.

    An observation is a black image of 64×64 pixels, RGB in [0, 1], with 0 to ``most`` objects of one
    shape (circle, square, triangle, line) and one colour, which stay for an episode. Whenever the
    number changes all objects are put elsewhere; they never overlap, so the number can be seen.
    Actions in [-1, 1]: below -1/3 removes, above 1/3 adds, otherwise the image stays. The reward is 1
    where there are ``goal`` objects, which ends the episode. The environment of arXiv 2509.12249,
    written anew; several at a time, without a display, the same for the same seed.

    Args:
        count: Environments.
        most: Largest number of objects, at most 64.
        goal: Rewarded number of objects.
        seed: Of everything.
    """

    def __init__(self, count: int, most: int = 8, goal: int = 4, seed: int = 0) -> None:
        if not 0 <= goal <= most <= (SIDE // CELL) ** 2:
            raise ValueError(
                f"`goal` and `most` must satisfy 0 ≤ goal ≤ most ≤ 64, got {goal}, {most}."
            )
        self.count, self.most, self.goal = count, most, goal
        self.generator = torch.Generator().manual_seed(seed)
        self.masks = _shapes()
        self.numbers = torch.zeros(count, dtype=torch.long)
        self.shapes = torch.zeros(count, dtype=torch.long)
        self.colours = torch.zeros(count, 3)
        self.images = torch.zeros(count, 3, SIDE, SIDE)
        self.reset()

    def reset(self, which: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        """Begin new episodes.

        Args:
            which: Mask of the environments, (B,); all by default.
            numbers: Objects to begin with in all environments, (B,); drawn by default.

        Returns:
            Images of all environments, (B, 3, 64, 64).
        """
        which = torch.ones(self.count, dtype=torch.bool) if which is None else which
        size, generator = (self.count,), self.generator
        drawn = torch.randint(self.most + 1, size, generator=generator)
        shapes = torch.randint(len(self.masks), size, generator=generator)
        colours = torch.randint(30, 226, (self.count, 3), generator=generator) / 255
        self.numbers = torch.where(which, drawn if numbers is None else numbers, self.numbers)
        self.shapes = torch.where(which, shapes, self.shapes)
        self.colours = torch.where(which[:, None], colours, self.colours)
        return self._draw(which)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act once.

        Args:
            actions: (B,), from -1 to 1.

        Returns:
            Images (B, 3, 64, 64), rewards (B,) and whether the episode has ended, (B,).
        """
        change = (actions > 1 / 3).long() - (actions < -1 / 3).long()
        numbers = (self.numbers + change).clamp(0, self.most)
        changed = numbers != self.numbers
        self.numbers = numbers
        images = self._draw(changed)
        return images, self.rewards(), self.numbers == self.goal

    def rewards(self) -> Tensor:
        """Say where the goal is reached.

        Returns:
            1 there and 0 elsewhere, (B,).
        """
        return (self.numbers == self.goal).float()

    def _draw(self, which: Tensor) -> Tensor:
        places = torch.rand(self.count, (SIDE // CELL) ** 2, generator=self.generator)
        cells = places.topk(max(self.most, 1)).indices  # distinct: nothing overlaps
        shift = torch.randint(CELL - OBJECT + 1, (2, *cells.shape), generator=self.generator)
        top = cells // (SIDE // CELL) * CELL + shift[0]
        left = cells % (SIDE // CELL) * CELL + shift[1]
        inside = torch.arange(OBJECT)
        rows, columns = top[..., None, None] + inside[:, None], left[..., None, None] + inside
        there = torch.arange(cells.shape[1]) < self.numbers[:, None]
        stamps = self.masks[self.shapes][:, None] * there[..., None, None]
        flat = torch.zeros(self.count, SIDE * SIDE)
        flat.scatter_add_(1, (rows * SIDE + columns).flatten(1), stamps.flatten(1))
        images = flat.view(-1, 1, SIDE, SIDE) * self.colours[..., None, None]
        self.images = torch.where(which[:, None, None, None], images, self.images)
        return self.images


# ----------------------------------------------------------------------------------------- method


class Observations(NamedTuple):
    """Fixed observations to look at, equally many of each number of objects."""

    images: Tensor
    numbers: Tensor


def observations(each: int = 40, most: int = 8, seed: int = 10_000) -> Observations:
    """Draw observations that no training run sees.

    Args:
        each: Of each number of objects.
        most: Largest number of objects.
        seed: Of their environment.

    Returns:
        Images and numbers of objects.
    """
    numbers = torch.arange(most + 1).repeat(each)
    env = CountingEnv(len(numbers), most, goal=0, seed=seed)
    return Observations(env.reset(numbers=numbers), numbers)
