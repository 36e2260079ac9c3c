"""Random views of an image: what multi-view methods compare. One function per kind of view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from jepa_monitor.probes.common_corruptions import corrupt, parse_corruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Views(NamedTuple):
    """Views of one image, (C, H, W) each, or of a batch, (B, C, H, W) each.

    Attributes:
        global_crops: Large crops at full size.
        local_crops: Small crops at a smaller size; may be empty.
        clean_crops: The global crops of the denoised copy, pixel for pixel the same cut; mostly empty.
    """

    global_crops: list[Tensor]
    local_crops: list[Tensor]
    clean_crops: list[Tensor] = []  # noqa: RUF012, nobody adds to it

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
            of 224, as in the papers, and in proportion at others; none below 34 pixels, where it
            would change nothing that can be seen.
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
    if sigma[1] > 0.3:  # below, a neighbour weighs less than 0.4 % of a pixel
        reach = max(round(4 * size / 224), 1)  # a kernel of 9 at 224 pixels
        found.append(v2.RandomApply([v2.GaussianBlur(2 * reach + 1, sigma)], p=blur))
    return [*found, *([v2.RandomSolarize(128, p=solarize)] if solarize else [])]


def _for_pillow(image: Any) -> Any:
    """Hand bytes to Pillow, which cuts small images and changes their colours in less time.

    Args:
        image: A PIL image, or a tensor (C, H, W), or (2, C, H, W) of a pair.

    Returns:
        A PIL image, or a list of two, of bytes with one or three channels; others as they are.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape[-3] not in (1, 3):
        return image
    if image.ndim == 4:
        return [v2.functional.to_pil_image(one) for one in image]
    return v2.functional.to_pil_image(image)


def _bytes_of(inpt: Any) -> Tensor:
    """Refuse what is no image of bytes.

    Args:
        inpt: What a transform was given.

    Returns:
        The same.

    Raises:
        TypeError: If it is no tensor of bytes.
    """
    if not isinstance(inpt, Tensor) or inpt.dtype != torch.uint8:
        raise TypeError(f"`inpt` must be a tensor of bytes, got {getattr(inpt, 'dtype', inpt)}.")
    return inpt


class GaussianNoisePatch(v2.Transform):  # type: ignore[misc]
    """Add Gaussian noise to a random square of an image (FastDINOv2, arXiv 2507.03779).

    The side is uniform from 1 pixel to the shorter side of the image, the place uniform, the standard
    deviation uniform from 0 to ``max_std``; the sum is clipped and rounded.

    Args:
        max_std: Largest standard deviation, of pixels in [0, 1].

    Raises:
        ValueError: If it is not in (0, 1].
    """

    def __init__(self, max_std: float = 0.5) -> None:
        super().__init__()
        if not 0 < max_std <= 1:
            raise ValueError(f"`max_std` must be in (0, 1], got {max_std}.")
        self.max_std = max_std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw side, place and strength from PyTorch's global generator.

        Args:
            flat_inputs: Images; those of one sample share the draw.

        Returns:
            ``side``, ``top``, ``left`` and ``std``.
        """
        height, width = v2.query_size(flat_inputs)
        side = int(torch.randint(1, min(height, width) + 1, ()))
        return {
            "side": side,
            "top": int(torch.randint(height - side + 1, ())),
            "left": int(torch.randint(width - side + 1, ())),
            "std": self.max_std * float(torch.rand(())),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Add the noise to an image.

        Args:
            inpt: Bytes, shape (..., H, W).
            params: What :meth:`make_params` drew.

        Returns:
            Bytes of the same shape.

        Raises:
            TypeError: If it is no image of bytes.
        """
        noisy = _bytes_of(inpt).clone()
        rows = slice(params["top"], params["top"] + params["side"])
        columns = slice(params["left"], params["left"] + params["side"])
        square = noisy[..., rows, columns].float()
        square += 255 * params["std"] * torch.randn_like(square)
        noisy[..., rows, columns] = square.round().clamp(0, 255).to(torch.uint8)
        return noisy


class Inject(v2.Transform):  # type: ignore[misc]
    """Corrupt an image as CIFAR-10-C does, so that views redraw the nuisance (arXiv 2505.12477).

    Args:
        corruption: ``KIND:SEVERITY``, see :func:`~jepa_monitor.probes.common_corruptions.parse_corruption`.

    Raises:
        ValueError: If it is something else.
    """

    def __init__(self, corruption: str) -> None:
        super().__init__()
        self.kind, self.severity = parse_corruption(corruption, "inject")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw from PyTorch's global generator.

        Args:
            flat_inputs: Images; those of one sample share the draw.

        Returns:
            ``seed``.
        """
        del flat_inputs
        return {"seed": int(torch.randint(2**62, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Corrupt an image.

        Args:
            inpt: Bytes, shape (C, H, W), or (N, C, H, W) of images that share the draw.
            params: What :meth:`make_params` drew.

        Returns:
            Bytes of the same shape.

        Raises:
            TypeError: If it is no image of bytes.
        """
        found = _bytes_of(inpt).clone()
        images = found if found.ndim == 4 else found[None]
        for image in images:
            generator = torch.Generator().manual_seed(params["seed"])
            worse = corrupt(image[None].float() / 255, self.kind, self.severity, generator)
            image.copy_((255 * worse[0]).round().to(torch.uint8))
        return found


class MultiCrop:
    """Draw several views of an image, one after the other.

    Args:
        global_transforms: One for each global crop, at least one.
        local_transforms: One for each local crop.
        whole: What is done to the whole image, once, before it is cropped; nothing if None.
        pillow: Whether tensors of one or three channels become PIL images for the transforms, which cuts
            and changes colours of small ones in less time; if there is nothing of that, it costs time.
    """

    def __init__(
        self,
        global_transforms: Sequence[Callable[[Any], Tensor]],
        local_transforms: Sequence[Callable[[Any], Tensor]] = (),
        whole: Callable[[Any], Any] | None = None,
        pillow: bool = True,
    ) -> None:
        self.global_transforms = global_transforms
        self.local_transforms = local_transforms
        self.whole = whole
        self.pillow = pillow

    def __call__(self, image: Any) -> Views:
        """Draw from PyTorch's global generator.

        Args:
            image: A PIL image, a tensor of bytes (C, H, W), or an image and its denoised copy
                (2, C, H, W). Of the copy there are global crops only, drawn with the same numbers.

        Returns:
            The views.
        """
        if self.whole is not None:
            image = self.whole(image)
        paired = isinstance(image, Tensor) and image.ndim == 4
        image = _for_pillow(image) if self.pillow else image

        def plain(crops: Iterable[Tensor]) -> list[Tensor]:
            return [crop.as_subclass(torch.Tensor) for crop in crops]

        large = [transform(image) for transform in self.global_transforms]
        alone = image[0] if paired else image
        small = plain(transform(alone) for transform in self.local_transforms)
        if not paired:
            return Views(plain(large), small)
        return Views(plain(crop[0] for crop in large), small, plain(crop[1] for crop in large))
