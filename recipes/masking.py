"""Which patches of an image are hidden: blocks to predict (I-JEPA), to fill in (DINOv2), or any (MAE)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[float, float]


def patch_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Count the patches of images.

    Args:
        images: Shape (..., H, W).
        patch_size: Side of a patch.

    Returns:
        Rows and columns.

    Raises:
        ValueError: If the patches do not cover the images: a ViT would drop the rest.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`patch_size` {patch_size} must divide the sides of all crops, got {height}x{width}."
        )
    return height // patch_size, width // patch_size


@dataclass(frozen=True)
class Masks:
    """Which patches are seen and which are predicted, as indices into the row-major patch grid.

    Attributes:
        context: Visible patches, shape (B, N_context).
        targets: Patches of the M target blocks, shape (B, M, N_target).
    """

    context: Tensor
    targets: Tensor


def block_shapes(grid: tuple[int, int], scale: Range, aspect: Range) -> list[tuple[int, int]]:
    """List the blocks of whole patches whose area and aspect ratio lie in the given ranges.

    Args:
        grid: Rows and columns of patches in the image.
        scale: Lowest and highest share of the image's area, in (0, 1].
        aspect: Lowest and highest ratio of height to width, in patches.

    Returns:
        Pairs of (height, width) in patches.

    Raises:
        ValueError: If there is none.
    """
    rows, columns = grid
    shapes = [
        (height, width)
        for height in range(1, rows + 1)
        for width in range(1, columns + 1)
        if scale[0] <= height * width / (rows * columns) <= scale[1]
        and aspect[0] <= height / width <= aspect[1]
    ]
    if not shapes:
        raise ValueError(
            f"No block of whole patches on a grid of {rows}x{columns} has scale={scale} and "
            f"aspect={aspect}; widen a range or use smaller patches."
        )
    return shapes


def sample_masks(
    batch_size: int,
    grid: tuple[int, int],
    generator: torch.Generator,
    target_blocks: int = 4,
    target_scale: Range = (0.15, 0.2),
    target_aspect: Range = (0.75, 1.5),
    context_scale: Range = (0.85, 1.0),
    min_context: int = 8,
) -> Masks:
    """Draw multi-block masks (§3 of arXiv 2301.08243): target blocks, and a context without them.

    The size of the blocks is drawn once per batch and their places once per image, so that all
    images have equally many tokens. Sizes are drawn among the blocks of whole patches that satisfy
    the ranges exactly. Where the contexts' sizes differ, random patches are left out of the larger.

    Args:
        batch_size: Images B in the batch.
        grid: Rows and columns of patches in the image.
        generator: Source of all randomness, on the CPU.
        target_blocks: Number M of target blocks; they may overlap.
        target_scale: Range of the area of a target block, as a share of the image.
        target_aspect: Range of its height over its width.
        context_scale: Range of the area of the square context block before the targets are removed.
        min_context: Visible patches that every image has at least; images with fewer are redrawn.

    Returns:
        The masks, on the CPU.

    Raises:
        ValueError: If no block fits the ranges, or none leaves ``min_context`` patches.
    """
    rows, columns = grid

    def draw_shape(scale: Range, aspect: Range) -> tuple[int, int]:
        shapes = block_shapes(grid, scale, aspect)
        return shapes[int(torch.randint(len(shapes), (1,), generator=generator))]

    def place(shape: tuple[int, int], images: int, blocks: int) -> Tensor:
        (height, width), size = shape, (images, blocks, 1)
        top = torch.randint(rows - height + 1, size, generator=generator)
        left = torch.randint(columns - width + 1, size, generator=generator)
        row, column = torch.arange(rows) - top, torch.arange(columns) - left
        in_rows, in_columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
        return (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)

    target_shape = draw_shape(target_scale, target_aspect)
    context_shape = draw_shape(context_scale, (rows / columns, rows / columns))
    targets = torch.zeros(batch_size, target_blocks, rows * columns, dtype=torch.bool)
    context = torch.zeros(batch_size, rows * columns, dtype=torch.bool)
    todo = torch.arange(batch_size)
    for _ in range(100):
        targets[todo] = place(target_shape, len(todo), target_blocks)
        context[todo] = place(context_shape, len(todo), 1)[:, 0] & ~targets[todo].any(1)
        todo = (context.sum(1) < min_context).nonzero()[:, 0]
        if len(todo) == 0:
            break
    else:
        raise ValueError(
            f"{target_blocks} targets of {target_shape} patches on a grid of {rows}x{columns} do "
            f"not leave min_context={min_context} visible patches; lower it or target_scale."
        )
    keep = int(context.sum(1).min())
    order = torch.rand(context.shape, generator=generator).masked_fill(~context, 2.0)
    return Masks(
        context=order.argsort(1)[:, :keep].sort(1).values,
        targets=targets.nonzero()[:, 2].view(batch_size, target_blocks, -1),
    )


def sample_patch_masks(
    images: int,
    grid: tuple[int, int],
    generator: torch.Generator,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Hide blocks of patches, as iBOT and BEiT do (arXiv 2111.07832, 2106.08254).

    ``probability`` of the images are masked. Their shares of hidden patches are spread evenly over
    ``ratio``, so that every batch has easy and hard ones. An image gets rectangles of random area,
    aspect and place until its share is reached, and never more than its share.

    Args:
        images: Number of images B.
        grid: Rows and columns of patches.
        generator: Source of all randomness, on the CPU.
        probability: Share of the images that are masked, in [0, 1].
        ratio: Lowest and highest share of hidden patches in a masked image.
        aspect: Lowest and highest ratio of a rectangle's height to its width.

    Returns:
        True where a patch is hidden, shape (B, rows · columns), on the CPU.
    """
    rows, columns = grid
    masked = int(images * probability)
    masks = torch.zeros(images, rows, columns, dtype=torch.bool)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for image, place in enumerate(torch.randperm(images, generator=generator)[:masked].tolist()):
        step = (ratio[1] - ratio[0]) / masked
        share = draw(ratio[0] + image * step, ratio[0] + (image + 1) * step)
        goal = max(int(rows * columns * share), 1)
        mask = masks[place]
        for _ in range(10 * goal):
            left = goal - int(mask.sum())
            if left == 0:
                break
            area = draw(min(4, left), left)
            ratio_of_sides = math.exp(draw(math.log(aspect[0]), math.log(aspect[1])))
            height = min(max(round(math.sqrt(area * ratio_of_sides)), 1), rows)
            width = min(max(round(math.sqrt(area / ratio_of_sides)), 1), columns)
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            side = int(torch.randint(columns - width + 1, (), generator=generator))
            block = mask[top : top + height, side : side + width]
            if block.numel() - int(block.sum()) <= left:
                block.fill_(True)
    return masks.flatten(1)


def sample_random_masks(
    images: int, patches: int, generator: torch.Generator, hidden: float = 0.75
) -> Masks:
    """Hide patches at random, equally many of each image, as MAE does (arXiv 2111.06377).

    Args:
        images: Number of images B.
        patches: Patches of an image.
        generator: Source of all randomness, on the CPU.
        hidden: Share of the patches that is hidden; the number of those that are seen is rounded.

    Returns:
        One target "block", of all hidden patches; places rise. On the CPU.

    Raises:
        ValueError: If none would be hidden, or none seen.
    """
    seen = round(patches * (1 - hidden))
    if not 0 < seen < patches:
        raise ValueError(
            f"hidden={hidden} must leave some of {patches} patches to see and some to predict; it "
            f"leaves {seen}."
        )
    order = torch.rand(images, patches, generator=generator).argsort(1)
    return Masks(order[:, :seen].sort(1).values, order[:, None, seen:].sort(2).values)
