"""Find what to watch: in goes a LightningModule or Trainer, out come its encoder and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

__all__ = [
    "EncoderSpec",
    "find_encoder",
    "find_training_data",
    "find_validation_data",
    "is_fitting",
]

EncoderSpec = str | nn.Module | Callable[[pl.LightningModule], Any] | None

# EMA targets first: they are what is evaluated and kept in the end.
_USUAL_NAMES = (
    "target_encoder",
    "teacher_encoder",
    "teacher_backbone",
    "ema_encoder",
    "momentum_encoder",
    "backbone_momentum",
    "teacher",
    "encoder",
    "context_encoder",
    "student_encoder",
    "backbone",
    "student_backbone",
    "student",
    "feature_extractor",
    "model",
    "net",
)
_PARTS = ("backbone", "encoder")


def is_fitting(trainer: pl.Trainer) -> bool:
    """Say whether the Trainer is in ``fit``, whatever it does there at the moment.

    Its stage (``trainer.training``, ``trainer.validating``) does not tell: in the validation loop of
    ``fit`` the Trainer is validating.

    Args:
        trainer: The Trainer.

    Returns:
        Whether ``fit`` was called, and not ``validate``, ``test`` or ``predict``.
    """
    return bool(trainer.state.fn == "fit")


def _usual_encoder(pl_module: pl.LightningModule) -> tuple[str, nn.Module]:
    for name in _USUAL_NAMES:
        candidate = getattr(pl_module, name, None)
        if not isinstance(candidate, nn.Module):
            continue
        if isinstance(candidate, nn.ModuleDict):  # a container, such as DINOv2's teacher
            part = next((part for part in _PARTS if part in candidate), None)
            if part is not None:
                return f"{name}.{part}", candidate[part]
        elif isinstance(teacher := getattr(candidate, "teacher", None), nn.Module):
            # A wrapper of student and EMA teacher, such as stable-pretraining's, whose own forward
            # pass takes no gradients.
            return f"{name}.teacher", teacher
        elif not isinstance(candidate, nn.ModuleList):
            return name, candidate
    seen = [f"{name} ({type(child).__name__})" for name, child in pl_module.named_children()]
    raise ValueError(
        f"`encoder` was not given, and {type(pl_module).__name__} has no submodule of a usual name "
        f"({', '.join(_USUAL_NAMES)}). Its submodules are: {', '.join(seen) or 'none'}. Pass "
        "`encoder`: a dotted path such as 'teacher.backbone', a module, or a function of the "
        "LightningModule."
    )


def _encoder_at(pl_module: pl.LightningModule, path: str) -> Any:
    found: Any = pl_module
    for depth, part in enumerate(path.split(".")):
        inside = found[part] if isinstance(found, nn.ModuleDict) and part in found else None
        found_next = inside if inside is not None else getattr(found, part, None)
        if found_next is None:
            where = ".".join([type(pl_module).__name__, *path.split(".")[:depth]])
            names = (
                [name for name, _ in found.named_children()] if isinstance(found, nn.Module) else []
            )
            raise ValueError(
                f"`encoder` names {path!r}, but {where} has no {part!r}. Its submodules are: "
                f"{', '.join(names) or 'none'}."
            )
        found = found_next
    if not callable(found):
        raise TypeError(
            f"`encoder` names {path!r}, which is a {type(found).__name__} and cannot be called."
        )
    return found


def find_encoder(pl_module: pl.LightningModule, spec: EncoderSpec) -> tuple[str, Any]:
    """Find the encoder to watch.

    Args:
        pl_module: The module in training.
        spec: A dotted path, a module, a function of the module, or ``None`` for the usual names.

    Returns:
        What to call it in messages, and the encoder.

    Raises:
        TypeError: If a function fails, or what is found cannot be called.
        ValueError: If there is no such encoder; the message lists the candidates.
    """
    if spec is None:
        return _usual_encoder(pl_module)
    if isinstance(spec, str):
        return spec, _encoder_at(pl_module, spec)
    if isinstance(spec, nn.Module):
        return type(spec).__name__, spec
    try:
        encoder = spec(pl_module)
    except Exception as error:
        raise TypeError(
            "`encoder` is called with the LightningModule and must return an encoder, but raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(encoder):
        raise TypeError(
            f"`encoder` is a function that must return an encoder, got {type(encoder).__name__}. "
            "It is called with the LightningModule, not with images."
        )
    return getattr(spec, "__name__", "encoder"), encoder


def _first(loaders: Any) -> Any:
    """Take the first of several loaders, however they are nested.

    A loader is never asked for its truth value, which calls ``len``: a stream has none.
    """
    while True:
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        elif type(loaders).__name__ == "CombinedLoader":  # of either package of Lightning
            loaders = [loaders.iterables]
        elif not isinstance(loaders, list | tuple):
            return loaders
        if not loaders:
            return None
        loaders = loaders[0]


def _requested(loop: Any) -> Any:
    """Ask a loop's source for its data, for when the loop itself will never do so."""
    source = getattr(loop, "_data_source", None)
    return source.dataloader() if source is not None and source.is_defined() else None


def find_validation_data(trainer: pl.Trainer) -> Any:
    """Find the held-out data of a Trainer.

    Args:
        trainer: Past its set-up.

    Returns:
        The first loader of the validation data (test data while testing), or ``None``.
    """
    if trainer.state.fn == "test":
        return _first(trainer.test_dataloaders)
    if trainer.val_dataloaders is not None:
        return _first(trainer.val_dataloaders)
    # The data may be there although no validation will run: Lightning only asks for them if the
    # module has a validation_step, which few self-supervised modules have.
    return _first(_requested(trainer.fit_loop.epoch_loop.val_loop))


def find_training_data(trainer: pl.Trainer) -> Any:
    """Find the training data of a Trainer.

    Args:
        trainer: Past its set-up.

    Returns:
        The first loader of the training data, or ``None``; read it through a loader of your own.
    """
    return _first(trainer.train_dataloader)
