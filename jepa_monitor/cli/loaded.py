"""A loaded encoder: what may be said of how to load it, and what it is prepared with by default."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from jepa_monitor.cli.settings import ModelSettings
from jepa_monitor.encoders.embedder import Embedder

__all__ = ["LoadedEncoder", "channels_of", "import_from", "plain_transform"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready to be scored.

    Args:
        name: What it was asked for as.
        encoder: Maps (B, C, H, W) to embeddings.
        transform: Maps an RGB image to (C, H, W).
        assumed: What was not said by the model or the user, in sentences.
    """

    name: str
    encoder: Any
    transform: Callable[[Any], Tensor] | None
    assumed: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        """Identify the encoder: changed with its name, any of its weights, or its preprocessing.

        Returns:
            Strings by what they tell.
        """
        digest = hashlib.sha256()
        for module in Embedder(self.encoder).modules:
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(content.numpy().data)
        return {
            "name": self.name,
            "weights": digest.hexdigest(),
            "preprocessing": self.preprocessing,
        }

    @property
    def preprocessing(self) -> str:
        """The transform in words, which are the same in every process."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self.transform))


def plain_transform(
    settings: ModelSettings, channels: int, size: int, assumed: list[str]
) -> v2.Compose:
    """Resize, centre-crop and normalise, where a model brings nothing of its own.

    Args:
        settings: What the user said.
        channels: Of the encoder's input, 1 or 3.
        size: The side in pixels, if the user did not say.
        assumed: Takes sentences on what nobody said.

    Returns:
        A transform of RGB images.

    Raises:
        ValueError: If mean and std are not one number a channel.
    """
    if settings.image_size is None:
        assumed.append(f"images are resized to {size}x{size} pixels (`image_size`)")
    mean, std = settings.mean, settings.std
    if mean is None or std is None:
        mean, std = [list(numbers)[:channels] for numbers in _IMAGENET]
        if channels == 1:
            mean, std = [0.5], [0.5]
        assumed.append(f"pixels are normalised with mean {mean} and std {std} (`mean`, `std`)")
    if len(mean) != channels:
        raise ValueError(
            f"`mean` must have one number for each of {channels} channels, got {mean}."
        )
    side = settings.image_size or size
    return v2.Compose(
        [
            *([v2.Grayscale(1)] if channels == 1 else []),
            v2.ToImage(),
            v2.Resize(side, antialias=True),
            v2.CenterCrop(side),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )


def import_from(path: str, argument: str) -> Any:
    """Import what a user named, from the current folder too.

    Args:
        path: ``package.module:name``.
        argument: What to call it in errors.

    Returns:
        What was found.

    Raises:
        ValueError: If it cannot be imported.
    """
    module, _, attribute = path.partition(":")
    if not (module and attribute):
        raise ValueError(f"`{argument}` must be package.module:name, got {path!r}.")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look into the current folder by itself
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`{argument}`: {path!r} cannot be imported: {error}.") from error
    return found


def channels_of(encoder: Any) -> int:
    """Find how many channels an encoder takes: those of its first convolution, if it has any.

    Args:
        encoder: Of images.

    Returns:
        The number of channels, 3 if it cannot be told.
    """
    for module in Embedder(encoder).modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                return int(layer.in_channels)
    return 3
