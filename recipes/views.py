"""Random views of an image: what multi-view methods compare. One function per kind of view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Views(NamedTuple):
    """Views of one image, (C, H, W) each, or of a batch, (B, C, H, W) each.

    Attributes:
        global_crops: Large crops at full size.
        local_crops: Small crops at a smaller size; may be empty.
    """

    global_crops: list[Tensor]
    local_crops: list[Tensor]

    @property
    def batch_size(self) -> int:
        """Images B, of views of a batch."""
        return len(self.global_crops[0])


def crop_and_flip(size: int, scale: tuple[float, float], flip: bool) -> list[v2.Transform]:
    """Cut a random part of the image, resize it, and perhaps mirror it.

    Args:
        size: Side of the result in pixels.
        scale: Lowest and highest share of the image's area; (1, 1) only resizes.
        flip: Whether to mirror at random.

    Returns:
        Transforms of an image.
    """
    sides = (size, size)
    cut = (
        v2.RandomResizedCrop(sides, scale=scale, antialias=True)
        if scale[0] < 1
        else v2.Resize(sides, antialias=True)
    )
    return [cut, *([v2.RandomHorizontalFlip()] if flip else [])]


def distort(
    strength: float, channels: int, size: int, blur: float = 0.5, solarize: float = 0.0
) -> list[v2.Transform]:
    """Change colours and sharpness, as DINO and DINOv2 do (arXiv 2104.14294, after BYOL).

    Jitter of brightness, contrast, saturation and hue of 0.4, 0.4, 0.2 and 0.1 times ``strength``
    with probability 0.8; grey with 0.2; blur; solarising.

    Args:
        strength: 0 for nothing at all, 1 for the paper's.
        channels: Colour channels. Colours are changed only where there are 1 or 3 of them.
        size: Side of the view in pixels.
        blur: Probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels at a size
            of 224, as in the papers, and in proportion at others.
        solarize: Probability of inverting the bright half of the range.

    Returns:
        Transforms of an image of bytes.
    """
    if strength == 0:
        return []
    found: list[v2.Transform] = []
    if channels in (1, 3):
        factors = (0.4 * strength, 0.4 * strength, 0.2 * strength, min(0.1 * strength, 0.5))
        found.append(v2.RandomApply([v2.ColorJitter(*factors)], p=0.8))
    if channels == 3:
        found.append(v2.RandomGrayscale(p=0.2))
    sigma = (0.1 * size / 224, 2.0 * size / 224)
    reach = max(round(4 * size / 224), 1)  # a kernel of 9 at 224 pixels
    found.append(v2.RandomApply([v2.GaussianBlur(2 * reach + 1, sigma)], p=blur))
    return [*found, *([v2.RandomSolarize(128, p=solarize)] if solarize else [])]


class MultiCrop:
    """Draw several views of an image, one after the other.

    Args:
        global_transforms: One for each global crop, at least one.
        local_transforms: One for each local crop.
    """

    def __init__(
        self,
        global_transforms: Sequence[Callable[[Any], Tensor]],
        local_transforms: Sequence[Callable[[Any], Tensor]] = (),
    ) -> None:
        self.global_transforms = global_transforms
        self.local_transforms = local_transforms

    def __call__(self, image: Any) -> Views:
        """Draw from PyTorch's global generator.

        Args:
            image: A PIL image or a tensor of bytes (C, H, W).

        Returns:
            The views.
        """

        def drawn(transforms: Sequence[Callable[[Any], Tensor]]) -> list[Tensor]:
            return [transform(image).as_subclass(torch.Tensor) for transform in transforms]

        return Views(drawn(self.global_transforms), drawn(self.local_transforms))
