"""Encoders of other libraries: in goes a name of theirs, out come its encoder and its preprocessing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from jepa_monitor._extras import explained
from jepa_monitor.cli.errors import UnreachableError, first_line, is_of_the_network
from jepa_monitor.cli.loaded import LoadedEncoder, plain_transform
from jepa_monitor.cli.settings import ModelSettings
from jepa_monitor.encoders.pretrained import find_timm, make_timm

__all__ = ["HUBS"]

_RANDOM = "the weights are random (`random_weights`)"


@contextmanager
def _loading(name: str, package: str, extra: str) -> Iterator[Any]:
    """Import a library, and say of whatever goes wrong inside which model it was."""
    try:
        library = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise explained(f"`model`: {name!r}", extra, error) from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of random weights
            yield library
    except Exception as error:  # of hubs, file formats and configurations, each has its own
        if is_of_the_network(error):
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UnreachableError(f"`model`: {name!r} cannot be fetched: {reason}") from error
        pickled = "weights only load failed" in str(error).lower()
        reason = (
            "its weights are a pickle that holds more than tensors, and loading that runs code of "
            "its author. If you trust it, set `trust_pickle`"
            if pickled
            else f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
        )
        raise ValueError(f"`model`: {name!r} cannot be loaded: {reason}") from error


def _from_timm(name: str, settings: ModelSettings) -> LoadedEncoder:
    from timm.data.transforms_factory import create_transform

    model = find_timm(name, "model")
    with _loading(name, "timm", "cli"):
        encoder, config = make_timm(model, not settings.random_weights, settings.image_size)
    if settings.mean is not None and settings.std is not None:
        config |= {"mean": tuple(settings.mean), "std": tuple(settings.std)}
    assumed = (_RANDOM,) if settings.random_weights else ()
    return LoadedEncoder(name, encoder, create_transform(**config), assumed)


class _Processed:
    """An image processor of transformers as a function of one image."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Any) -> Tensor:
        pixels: Tensor = self._processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @override
    def __repr__(self) -> str:
        return repr(self._processor)


class _ImageFeatures(nn.Module):
    """The half of a model of images and texts that sees the images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, images: Tensor) -> Any:
        return self.model.get_image_features(pixel_values=images)


def _from_transformers(name: str, settings: ModelSettings) -> LoadedEncoder:
    place = name.removeprefix("hf/")
    assumed = [_RANDOM] if settings.random_weights else []
    with _loading(name, "transformers", "hf") as transformers:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        if settings.random_weights:
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        else:
            model = _pretrained(transformers.AutoModel, place, config, settings)
        if hasattr(model, "get_image_features"):
            model = _ImageFeatures(model)
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                place, trust_remote_code=False
            )
        except OSError:  # it has none
            processor = None
    if processor is None:
        vision = getattr(config, "vision_config", config)
        channels, size = getattr(vision, "num_channels", 3), getattr(vision, "image_size", 224)
        side = size if isinstance(size, int) else size[0]
        transform: Callable[[Any], Tensor] = plain_transform(settings, channels, side, assumed)
    elif settings.image_size or settings.mean:
        raise ValueError(
            f"`image_size`, `mean` and `std` are for models that do not say, but {name!r} has "
            f"preprocessing of its own: {type(processor).__name__}."
        )
    else:
        transform = _Processed(processor)
    return LoadedEncoder(name, model.eval(), transform, tuple(assumed))


def _pretrained(auto: Any, place: str, config: Any, settings: ModelSettings) -> Any:
    """Load weights, and none that are not there: transformers would make them up."""
    options = {
        "config": config,
        "trust_remote_code": False,
        "weights_only": not settings.trust_pickle,
        "output_loading_info": True,
    }
    model, info = auto.from_pretrained(place, **options)
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        # Many encoders are published without the layer that classifies by their first token.
        model, info = auto.from_pretrained(place, add_pooling_layer=False, **options)
        missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"there are no weights for {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    return model


def _from_open_clip(name: str, settings: ModelSettings) -> LoadedEncoder:
    model_name, _, tag = name.removeprefix("open_clip/").partition("/")
    if not (model_name and tag):
        raise ValueError(f"`model` must be open_clip/NAME/TAG, got {name!r}.")
    with _loading(name, "open_clip", "open-clip") as open_clip:
        pretrained: str | None = tag
        preprocessing: dict[str, Any] = {}
        if settings.random_weights:  # the tag would have the weights downloaded
            pretrained = None
            preprocessing = open_clip.get_pretrained_cfg(model_name, tag)
            if not preprocessing:
                raise ValueError(f"there is no tag {tag!r}")
        model, _, transform = open_clip.create_model_and_transforms(
            model_name,
            pretrained,
            force_image_size=settings.image_size,
            image_mean=settings.mean or preprocessing.get("mean"),
            image_std=settings.std or preprocessing.get("std"),
            image_interpolation=preprocessing.get("interpolation"),
            image_resize_mode=preprocessing.get("resize_mode"),
            pretrained_text=not settings.random_weights,
            weights_only=not settings.trust_pickle,
        )
    assumed = (_RANDOM,) if settings.random_weights else ()
    return LoadedEncoder(name, model.visual.eval(), transform, assumed)


HUBS: dict[str, Callable[[str, ModelSettings], LoadedEncoder]] = {
    "timm/": _from_timm,
    "hf/": _from_transformers,
    "open_clip/": _from_open_clip,
}
