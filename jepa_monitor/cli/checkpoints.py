"""Lightning checkpoints: in goes a path, out comes the encoder in it, prepared as in its run."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from jepa_monitor._extras import missing_of
from jepa_monitor.cli.errors import first_line
from jepa_monitor.cli.loaded import (
    LoadedEncoder,
    channels_of,
    import_from,
    plain_transform,
)
from jepa_monitor.cli.settings import ModelSettings

__all__ = ["from_checkpoint", "read_file"]

_RECIPES = "jepa_monitor.recipes"


def read_file(path: str | Path, trust_pickle: bool = False) -> dict[str, Any]:
    """Read a file of tensors, which are brought into memory when they are used.

    Args:
        path: Of what ``torch.save`` wrote, or of a ``.safetensors`` file.
        trust_pickle: Unpickle whatever is in it, which runs its author's code.

    Returns:
        Its dict.

    Raises:
        ValueError: If it holds none, or is not safe to load; says why, to follow the file's name.
    """
    if not Path(path).is_file():
        raise ValueError("is not there.")
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(
            path,
            map_location="cpu",
            weights_only=not trust_pickle,
            mmap=zipfile.is_zipfile(path),
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            "is no checkpoint, or holds more than tensors and numbers, and "
            "loading that runs code of its author. If you trust the file, set `trust_pickle`. "
            f"({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # of damaged files, each has its own
        raise ValueError(f"cannot be read: {first_line(error)}") from error
    if isinstance(loaded, dict):
        return loaded
    raise ValueError(f"is no checkpoint: it holds a {type(loaded).__name__}, not a dict.")


def _read_checkpoint(path: str, settings: ModelSettings) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"`model`: there is no checkpoint {path!r}.")
    try:
        loaded = read_file(path, settings.trust_pickle)
    except ValueError as error:
        raise ValueError(f"`model`: {path!r} {error}") from error
    if "state_dict" not in loaded:
        raise ValueError(f"`model`: {path!r} is no Lightning checkpoint: it has no `state_dict`.")
    return loaded


def _recipe_classes() -> list[type[Any]]:
    """Find the LightningModules of the recipes; there is no list of them to forget one in."""
    import pkgutil

    import lightning.pytorch as pl

    package = importlib.import_module(_RECIPES)
    classes = []
    for info in pkgutil.iter_modules(package.__path__, f"{_RECIPES}."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # one that needs what is not installed
            continue
        classes += [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, pl.LightningModule)
            and value.__module__ == info.name
        ]
    return classes


def _hyper_parameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Find what the module was built with, without what Lightning and its plug-ins add to it."""
    saved: dict[str, Any] = checkpoint.get("hyper_parameters", {})
    return {k: saved[k] for k in saved if k.isidentifier() and not k.startswith("_")}


def _build(cls: type[Any], checkpoint: dict[str, Any]) -> Any:
    """Rebuild a LightningModule from its checkpoint."""
    with torch.random.fork_rng(devices=[]):
        module = cls(**_hyper_parameters(checkpoint))
    module.load_state_dict(checkpoint["state_dict"])
    return module


def _rebuild(path: str, checkpoint: dict[str, Any], settings: ModelSettings) -> Any:
    if settings.module is not None:
        try:
            return _build(import_from(settings.module, "module"), checkpoint)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"`module`: {settings.module} does not fit the checkpoint: {error}"
            ) from error
    names = set(_hyper_parameters(checkpoint))
    for cls in _recipe_classes():
        if names and names <= set(inspect.signature(cls).parameters):
            try:
                return _build(cls, checkpoint)
            except (TypeError, ValueError, RuntimeError):  # of another recipe
                continue
    if (
        missing := missing_of(f"`model`: {path!r}", "recipes")
    ) is not None:  # so that none could be asked
        raise missing
    raise ValueError(
        f"`module` must be given: {path!r} is of none of the recipes. Name its class, "
        "package.module:Class."
    )


def _normalisation(path: str, checkpoint: dict[str, Any]) -> dict[str, list[float]]:
    """Find mean and std of a recipe's images: in the checkpoint, or else in the run's data."""
    from jepa_monitor.recipes.data import ImageDataModule

    # Lightning keeps it under the name of the class, which may be one that extends ImageDataModule.
    states = [state for name, state in checkpoint.items() if name.endswith("DataModule")]
    stored: dict[str, list[float]] = next((s for s in states if {"mean", "std"} <= s.keys()), {})
    config = Path(path).resolve().parent.parent / "config.yaml"
    if stored or not config.is_file():
        return stored
    import yaml

    settings = yaml.safe_load(config.read_text())  # of a checkpoint that is older than this state
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, dict):
        return {}
    accepted = inspect.signature(ImageDataModule).parameters
    options = {key: value for key, value in data.items() if key in accepted}
    try:
        module = ImageDataModule(**{**options, "download": False})
        module.setup()
    except (OSError, ValueError, RuntimeError):  # the training data are gone
        return {}
    return module.state_dict()


def _recipe_transform(size: int, mean: list[float], std: list[float]) -> Callable[[Any], Tensor]:
    """Do to an RGB image what a recipe does to its held-out ones."""
    from jepa_monitor.recipes.datasets import resize_and_normalise

    if len(mean) not in (1, 3):
        raise ValueError(
            f"`model` was trained on images of {len(mean)} channels, but files of images have 1 or 3."
        )
    grey = [v2.Grayscale(1)] if len(mean) == 1 else []
    numbers = resize_and_normalise(size, mean, std)
    whole: Callable[[Any], Tensor] = v2.Compose(
        [*grey, v2.PILToTensor(), *numbers, v2.ToPureTensor()]
    )
    return whole


def _encoder_of(module: Any, asked: str | None) -> tuple[str, Any]:
    """Find the encoder that was asked for, that the recipe has its monitor watch, or the usual one."""
    from jepa_monitor.callbacks.discovery import find_encoder

    defaults = getattr(sys.modules[type(module).__module__], "DEFAULTS", {})
    watched = (
        defaults.get("monitor.encoder") if type(module).__module__.startswith(_RECIPES) else None
    )
    try:
        return find_encoder(module, asked or watched)
    except ValueError as error:
        if asked or watched:
            raise
        inside = [f"{name} ({type(child).__name__})" for name, child in module.named_children()]
        raise ValueError(
            f"`encoder` must be given: no submodule of {type(module).__name__} has a usual name, but "
            f"{', '.join(inside) or 'it has none'}. A path such as teacher.backbone will do."
        ) from error


def from_checkpoint(path: str, settings: ModelSettings) -> LoadedEncoder:
    """Load the encoder of a Lightning checkpoint.

    Args:
        path: Of the checkpoint.
        settings: How to load it.

    Returns:
        The encoder, and the preprocessing of its run where that is one of a recipe.

    Raises:
        ValueError: If it is no checkpoint, is not safe to load, or is of an unknown class.
    """
    checkpoint = _read_checkpoint(path, settings)
    module = _rebuild(path, checkpoint, settings).eval()
    name, encoder = _encoder_of(module, settings.encoder)
    assumed = [] if settings.encoder else [f"the encoder is the module's `{name}` (`encoder`)"]
    size = int(checkpoint.get("hyper_parameters", {}).get("image_size", 224))
    known = {} if settings.mean else _normalisation(path, checkpoint)
    if known:
        transform = _recipe_transform(settings.image_size or size, known["mean"], known["std"])
    else:
        transform = plain_transform(settings, channels_of(encoder), size, assumed)
    return LoadedEncoder(path, encoder, transform, tuple(assumed))
