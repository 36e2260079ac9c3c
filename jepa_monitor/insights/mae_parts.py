"""From how far tokens, and reconstructed pixels, take what they hold: gradients, summed by image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_monitor.encoders.tokens import TokenError, encoder_tokens
from jepa_monitor.functional._tokens import chosen_places
from jepa_monitor.functional.linear_mae import cell_distances
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.parts import Part

__all__ = ["Filled", "Influences", "Reach", "Reconstruction"]

_BATCH = 8  # images whose graph is kept at a time
_PLACES = 64  # tokens of an image of which gradients are taken
_PIXELS = 32  # hidden pixels of it, likewise


@dataclass(frozen=True)
class Reach:
    """Sums of n images over outputs and the pixels that these depend on, float64.

    Args:
        total: Of the sizes of the derivatives, (n,).
        far: Of size times distance, in pixels, (n,).
        own: Of the sizes in the own patch of the output, (n,).
        even: Mean distance if all derivatives were equal.
        patches: How many patches an image has.
    """

    total: Tensor
    far: Tensor
    own: Tensor
    even: float
    patches: int


@dataclass(frozen=True)
class Filled:
    """Images of which patches were hidden and filled in again.

    Args:
        reach: From how far hidden pixels are filled in.
        images: (n, C, H, W).
        made: As they were reconstructed.
        seen: Whether a pixel was seen, (n, H, W).
    """

    reach: Reach
    images: Tensor
    made: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Influences(Part[Reach]):
    """Derivatives of the patch tokens of the first probe images to the pixels.

    Args:
        samples: How many images at most.
    """

    samples: int = 32

    source = "images (B, C, H, W), and an encoder with patch tokens on a grid"
    of_images = True

    def gather(self, at: Gatherer) -> Reach | None:
        """Take gradients, of each image of up to 64 tokens along a random direction each.

        The mean size of a derivative along a direction that is uniform on the sphere is the length of
        the whole derivative, up to a factor that all pixels share.

        Args:
            at: The encoder and the probe.

        Returns:
            The sums, or ``None`` if the inputs are no images.

        Raises:
            TokenError: If the encoder gives no tokens on a grid of equal cells.
        """
        images = at.sources.images[: self.samples]
        if images.ndim != 4:
            return None

        def work(part: Tensor) -> tuple[Tensor, ...]:
            return _in_batches(at, images[part.cpu()], part.tolist(), _of_tokens)

        total, far, own, even, grid = at.map(work, torch.arange(len(images)))
        return Reach(total, far, own, float(even.mean()), int(grid[0].prod()))


@dataclass(frozen=True)
class Reconstruction(Part[Filled]):
    """Derivatives of hidden pixels, as they are reconstructed, to those that are seen.

    Args:
        samples: How many of the first probe images at most.
        mask: Share of the patches that is hidden.
    """

    samples: int = 32
    mask: float = 0.75

    source = "an encoder with a method `reconstruct(images, hidden)`"
    of_images = True

    def gather(self, at: Gatherer) -> Filled | None:
        """Take gradients of up to 32 hidden pixels of each image, under a mask of its own.

        Args:
            at: The encoder and the probe.

        Returns:
            Images and sums, or ``None`` if the encoder reconstructs nothing, or the inputs are no images.

        Raises:
            TokenError: If the encoder gives no tokens on a grid of equal cells.
            ValueError: If what is reconstructed is not of the shape of the images.
        """
        images = at.sources.images[: self.samples]
        if images.ndim != 4 or _reconstruct_of(at.embedder.modules) is None:
            return None

        def find(
            encoder: Callable[[Tensor], Any],
            modules: Sequence[nn.Module],
            part: Tensor,
            numbers: list[int],
        ) -> tuple[Tensor, ...]:
            return _of_hidden(encoder, modules, part, numbers, self.mask)

        def work(part: Tensor) -> tuple[Tensor, ...]:
            return _in_batches(at, images[part.cpu()], part.tolist(), find)

        total, far, own, even, grid, made, seen = at.map(work, torch.arange(len(images)))
        reach = Reach(total, far, own, float(even.mean()), int(grid[0].prod()))
        return Filled(reach, images, made, seen)


def _in_batches(
    at: Gatherer, images: Tensor, numbers: list[int], find: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Look into forward passes of a few images at a time.

    Args:
        at: The encoder.
        images: (b, C, H, W).
        numbers: Of the images in the probe: each draws random numbers of its own.
        find: Takes encoder, modules, images and their numbers.

    Returns:
        What it found, of b entries each.
    """

    def work() -> list[tuple[Tensor, ...]]:
        left = list(numbers)

        def counted(
            encoder: Callable[[Tensor], Any], modules: Sequence[nn.Module], part: Tensor
        ) -> tuple[Tensor, ...]:
            own = [left.pop(0) for _ in range(len(part))]
            return find(encoder, modules, part, own)

        batches = torch.split(images.to(at.device, at.embedder.dtype), _BATCH)
        return [found for batch in batches for found in at.embedder.inside(batch, counted)]

    found = at.embedder.run(work, at.device)
    return tuple(torch.cat([each.cpu() for each in column]) for column in zip(*found, strict=True))


def _of_tokens(
    encoder: Callable[[Tensor], Any],
    modules: Sequence[nn.Module],
    images: Tensor,
    numbers: list[int],
) -> tuple[Tensor, ...]:
    """Sum over tokens; see :class:`Influences`."""
    leaf = images.detach().clone().requires_grad_()
    found = encoder_tokens(encoder, modules, leaf, differentiable=True)
    tokens, sides = found.patches, (images.shape[2], images.shape[3])
    grid, size = _cells(found.grid, sides)
    places = chosen_places(tokens.shape[1], _PLACES, 0)
    corners = torch.stack([places // grid[1] * size[0], places % grid[1] * size[1]], 1)
    apart = cell_distances(sides, size, corners).to(leaf.device)
    draws = [
        torch.randn(len(places), tokens.shape[2], generator=torch.Generator().manual_seed(number))
        for number in numbers
    ]
    directions = F.normalize(torch.stack(draws), dim=2).to(tokens)
    sums = leaf.new_zeros(3, len(images), dtype=torch.float64)
    for n, (top, left) in enumerate(corners.tolist()):
        asked = torch.zeros_like(tokens)
        asked[:, places[n]] = directions[:, n]
        sizes = _sizes(tokens, leaf, asked)
        own = sizes[:, top : top + size[0], left : left + size[1]]
        sums += torch.stack([sizes.sum((1, 2)), (sizes * apart[n]).sum((1, 2)), own.sum((1, 2))])
    return (*sums, apart.mean().expand(len(images)), torch.tensor([grid] * len(images)))


def _of_hidden(
    encoder: Callable[[Tensor], Any],
    modules: Sequence[nn.Module],
    images: Tensor,
    numbers: list[int],
    mask: float,
) -> tuple[Tensor, ...]:
    """Sum over hidden pixels; see :class:`Reconstruction`."""
    sides = (images.shape[2], images.shape[3])
    grid, size = _cells(encoder_tokens(encoder, modules, images).grid, sides)
    patches = grid[0] * grid[1]
    count = min(max(round(mask * patches), 1), patches - 1)
    hidden = torch.zeros(len(images), patches, dtype=torch.bool)
    asked = torch.empty(len(images), _PIXELS, 3, dtype=torch.long)  # channel, row and column
    for n, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(number)
        gone = torch.randperm(patches, generator=generator)[:count]
        hidden[n, gone] = True
        cells = gone[torch.randint(count, (_PIXELS,), generator=generator)]
        channel, row, column = (
            torch.randint(side, (_PIXELS,), generator=generator)
            for side in (images.shape[1], *size)
        )
        row, column = row + cells // grid[1] * size[0], column + cells % grid[1] * size[1]
        asked[n] = torch.stack([channel, row, column], 1)
    leaf = images.detach().clone().requires_grad_()
    reconstruct = _reconstruct_of(modules)
    assert reconstruct is not None
    with torch.enable_grad():
        made = reconstruct(leaf, hidden.to(leaf.device))
    if made.shape != leaf.shape:
        raise ValueError(
            f"`encoder.reconstruct` must return images {tuple(leaf.shape)}, got {tuple(made.shape)}."
        )
    seen = (~hidden).view(-1, *grid).repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)
    sums = leaf.new_zeros(3, len(images), dtype=torch.float64)
    even = torch.zeros(len(images), dtype=torch.float64)
    own = torch.arange(len(images))
    for n in range(_PIXELS):
        channel, row, column = asked[:, n].unbind(1)
        chosen = torch.zeros_like(made)
        chosen[own, channel, row, column] = 1
        sizes = _sizes(made, leaf, chosen)
        apart = cell_distances(sides, (1, 1), asked[:, n, 1:])
        even += (apart * seen).sum((1, 2)) / seen.sum((1, 2)) / _PIXELS
        far = (sizes * apart.to(sizes)).sum((1, 2))
        sums += torch.stack([sizes.sum((1, 2)), far, torch.zeros_like(far)])
    return (*sums, even, torch.tensor([grid] * len(images)), made.detach(), seen)


def _sizes(outputs: Tensor, leaf: Tensor, asked: Tensor) -> Tensor:
    """The size of a derivative to each pixel, over all channels, (b, H, W), float64."""
    (gradient,) = torch.autograd.grad(
        outputs, leaf, asked, retain_graph=True, materialize_grads=True
    )
    return gradient.double().abs().sum(1)


def _cells(
    grid: tuple[int, int] | None, sides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid, and height and width of a patch in pixels."""
    if grid is None or sides[0] % grid[0] or sides[1] % grid[1]:
        raise TokenError(
            f"`encoder` gives no tokens on a grid that divides images of {sides[0]}x{sides[1]} pixels "
            f"into equal patches: its grid is {grid}."
        )
    return grid, (sides[0] // grid[0], sides[1] // grid[1])


def _reconstruct_of(modules: Iterable[nn.Module]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The first method ``reconstruct`` of modules that takes images and what is hidden of them."""
    for root in modules:
        for module in root.modules():
            found = getattr(module, "reconstruct", None)
            if callable(found):
                with suppress(TypeError, ValueError):  # another's, of another meaning
                    inspect.signature(found).bind(None, None)
                    return found  # type: ignore[no-any-return]
    return None
