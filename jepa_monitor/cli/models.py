"""Encoders by name: in goes a name, out come an encoder and what turns an image into its input."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders import Embedder

__all__ = ["LoadedEncoder", "ModelSettings", "load_encoder"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RECIPES = "jepa_monitor.recipes"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """How to load an encoder.

    Args:
        encoder: Of a Lightning checkpoint, the dotted path of the encoder in the module, such as
            ``teacher.backbone``; by default found by its usual names, EMA targets first.
        module: Of a Lightning checkpoint, the module's class as ``package.module:Class``; not needed
            for the recipes' own checkpoints.
        image_size: Side in pixels to which images are resized, where the model does not say.
        mean: Mean of each channel in [0, 1] to normalise with, where the model does not say.
        std: Standard deviation of each channel, likewise.
        random_weights: Do not load the weights of a ``timm/`` model: how much of a score is the
            architecture's own?
        trust_pickle: Load a checkpoint by unpickling it, which runs whatever code is in it.

    Raises:
        TypeError: If ``image_size`` is no integer.
        ValueError: If a value is out of range, or only one of mean and std is given.
    """

    encoder: str | None = None
    module: str | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    random_weights: bool = False
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_positive_int(self.image_size, "image_size")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be given together.")
        if self.mean and self.std:
            if len(self.mean) != len(self.std):
                raise ValueError(
                    f"`mean` and `std` must have one number a channel, got {self.mean} and {self.std}."
                )
            if min(self.std) <= 0:
                raise ValueError(f"`std` must be above 0, got {self.std}.")


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
            "preprocessing": re.sub(r" at 0x[0-9a-f]+", "", repr(self.transform)),
        }


def load_encoder(name: str, settings: ModelSettings | None = None) -> LoadedEncoder:
    """Load an encoder and its preprocessing by name.

    Args:
        name: ``timm/NAME``, a Lightning checkpoint (``PATH.ckpt``), or ``package.module:function``,
            where the function takes no arguments and returns an encoder, or an encoder and a
            transform of RGB Pillow images.
        settings: How to load it.

    Returns:
        The encoder.

    Raises:
        ValueError: If there is no such model, or it needs to be told more.
    """
    settings = settings or ModelSettings()
    if name.startswith("timm/"):
        return _from_timm(name, settings)
    if settings.random_weights:
        raise ValueError(f"`random_weights` is for timm/NAME models, got {name!r}.")
    if name.endswith((".ckpt", ".pt", ".pth")) or Path(name).is_file():
        return _from_checkpoint(name, settings)
    if ":" in name:
        return _from_function(name, settings)
    raise ValueError(
        f"`model` must be timm/NAME, a checkpoint's path or package.module:function, got {name!r}."
    )


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
        assumed.append(f"images are resized to {size}x{size} pixels (--image-size)")
    mean, std = settings.mean, settings.std
    if mean is None or std is None:
        mean, std = [list(numbers)[:channels] for numbers in _IMAGENET]
        if channels == 1:
            mean, std = [0.5], [0.5]
        assumed.append(f"pixels are normalised with mean {mean} and std {std} (--mean, --std)")
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


def _import(path: str, argument: str) -> Any:
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


def _from_function(name: str, settings: ModelSettings) -> LoadedEncoder:
    found = _import(name, "model")
    made = found if isinstance(found, nn.Module) else found()
    encoder, transform = made if isinstance(made, tuple) else (made, None)
    assumed: list[str] = []
    if transform is None:
        transform = plain_transform(settings, _channels(encoder), 224, assumed)
    return LoadedEncoder(name, encoder, transform, tuple(assumed))


def _channels(encoder: Any) -> int:
    """Find how many channels an encoder takes: those of its first convolution, if it has any."""
    for module in Embedder(encoder).modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                return int(layer.in_channels)
    return 3


def _from_timm(name: str, settings: ModelSettings) -> LoadedEncoder:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model = name.removeprefix("timm/")
    if not timm.is_model(model.split(".")[0]):
        close = timm.list_models(f"*{model.split('.')[0][:12]}*")[:5]
        hint = f" Did you mean one of {', '.join(close)}?" if close else ""
        raise ValueError(f"`model`: timm has no model {model!r}.{hint}")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": not settings.random_weights}
    if settings.image_size is not None:
        options["img_size"] = settings.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of random weights
        try:
            encoder = timm.create_model(model, **options)
        except TypeError as error:  # a convolutional network takes any size
            if "img_size" not in str(error):
                raise
            del options["img_size"]
            torch.manual_seed(0)
            encoder = timm.create_model(model, **options)
    config = resolve_model_data_config(encoder)  # type: ignore[no-untyped-call]
    if settings.image_size is not None:
        config["input_size"] = (config["input_size"][0], settings.image_size, settings.image_size)
    if settings.mean is not None and settings.std is not None:
        config |= {"mean": tuple(settings.mean), "std": tuple(settings.std)}
    assumed = ("the weights are random (--random-weights)",) if settings.random_weights else ()
    return LoadedEncoder(name, encoder.eval(), create_transform(**config), assumed)


def _read_checkpoint(path: str, settings: ModelSettings) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"`model`: there is no checkpoint {path!r}.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=not settings.trust_pickle)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`model`: {path!r} is no checkpoint, or holds more than tensors and numbers, and "
            "loading that runs code of its author. If you trust the file, add --trust-pickle. "
            f"({str(error).splitlines()[0]})"
        ) from error
    if not (isinstance(loaded, dict) and "state_dict" in loaded):
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


def _build(cls: type[Any], checkpoint: dict[str, Any]) -> Any:
    """Rebuild a LightningModule from its checkpoint."""
    hyper = {
        key: value
        for key, value in checkpoint.get("hyper_parameters", {}).items()
        if key not in ("_instantiator", "_class_path")
    }
    with torch.random.fork_rng(devices=[]):
        module = cls(**hyper)
    module.load_state_dict(checkpoint["state_dict"])
    return module


def _rebuild(path: str, checkpoint: dict[str, Any], settings: ModelSettings) -> Any:
    if settings.module is not None:
        try:
            return _build(_import(settings.module, "module"), checkpoint)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"`module`: {settings.module} does not fit the checkpoint: {error}"
            ) from error
    names = set(checkpoint.get("hyper_parameters", {}))
    for cls in _recipe_classes():
        if names and names <= set(inspect.signature(cls).parameters):
            try:
                return _build(cls, checkpoint)
            except (TypeError, ValueError, RuntimeError):  # of another recipe
                continue
    raise ValueError(
        f"`model`: {path!r} is of none of the recipes. Name its class with --module "
        "package.module:Class."
    )


def _recipe_transform(path: str) -> Callable[[Any], Tensor] | None:
    """Rebuild what a recipe did to held-out images from the run's ``config.yaml``."""
    config = Path(path).resolve().parent.parent / "config.yaml"
    if not config.is_file():
        return None
    import yaml

    from jepa_monitor.recipes.data import ImageDataModule

    data = yaml.safe_load(config.read_text())
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict):
        return None
    accepted = inspect.signature(ImageDataModule).parameters
    options = {key: value for key, value in data["data"].items() if key in accepted}
    try:
        module = ImageDataModule(**{**options, "download": False})
        module.setup("fit")
    except (OSError, ValueError, RuntimeError):  # the training data are gone
        return None
    transform = getattr(module.val_set, "transform", None)
    if transform is None:
        return None
    grey = [v2.Grayscale(1)] if module.channels == 1 else []
    whole: Callable[[Any], Tensor] = v2.Compose(
        [*grey, v2.PILToTensor(), transform, v2.ToPureTensor()]
    )
    return whole


def _from_checkpoint(path: str, settings: ModelSettings) -> LoadedEncoder:
    from jepa_monitor.callbacks.discovery import find_encoder

    checkpoint = _read_checkpoint(path, settings)
    module = _rebuild(path, checkpoint, settings).eval()
    name, encoder = find_encoder(module, settings.encoder)
    assumed = [] if settings.encoder else [f"the encoder is the module's `{name}` (--encoder)"]
    transform: Any = None
    if settings.image_size is None and settings.mean is None:
        transform = _recipe_transform(path)
    if transform is None:
        size = int(checkpoint.get("hyper_parameters", {}).get("image_size", 224))
        transform = plain_transform(settings, _channels(encoder), size, assumed)
    else:
        assumed.append("images are prepared as for the run's own held-out data (its config.yaml)")
    return LoadedEncoder(path, encoder, transform, tuple(assumed))
