"""Encoders by name: in goes a name, out come an encoder and what turns an image into its input."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from jepa_monitor.cli.checkpoints import from_checkpoint
from jepa_monitor.cli.hubs import HUBS
from jepa_monitor.cli.loaded import (
    LoadedEncoder,
    channels_of,
    import_from,
    plain_transform,
)
from jepa_monitor.cli.settings import ModelSettings

__all__ = ["load_encoder"]

_HUB_NAMES = "timm/NAME, hf/ORG/NAME, open_clip/NAME/TAG"


def load_encoder(name: str, settings: ModelSettings | None = None) -> LoadedEncoder:
    """Load an encoder and its preprocessing by name.

    Args:
        name: ``timm/NAME``, ``hf/ORG/NAME`` (or ``hf/PATH`` of a folder), ``open_clip/NAME/TAG``, a
            Lightning checkpoint (``PATH.ckpt``), or ``package.module:function``, where the function
            takes no arguments and returns an encoder, or an encoder and a transform of RGB Pillow
            images.
        settings: How to load it.

    Returns:
        The encoder.

    Raises:
        ValueError: If there is no such model, or it needs to be told more.
    """
    settings = settings or ModelSettings()
    for prefix, from_hub in HUBS.items():
        if name.startswith(prefix):
            return from_hub(name, settings)
    if settings.random_weights:
        raise ValueError(f"`random_weights` is for {_HUB_NAMES} models, got {name!r}.")
    if name.endswith((".ckpt", ".pt", ".pth")) or Path(name).is_file():
        return from_checkpoint(name, settings)
    if ":" in name:
        return _from_function(name, settings)
    raise ValueError(
        f"`model` must be {_HUB_NAMES}, a checkpoint's path or package.module:function, got {name!r}."
    )


def _from_function(name: str, settings: ModelSettings) -> LoadedEncoder:
    found = import_from(name, "model")
    made = found if isinstance(found, nn.Module) else found()
    encoder, transform = made if isinstance(made, tuple) else (made, None)
    assumed: list[str] = []
    if transform is None:
        transform = plain_transform(settings, channels_of(encoder), 224, assumed)
    return LoadedEncoder(name, encoder, transform, tuple(assumed))
