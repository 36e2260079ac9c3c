"""Find what to watch: in goes a LightningModule or Trainer, out come its encoder and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

__all__ = [
    "USUAL_NAMES",
    "EncoderSpec",
    "find_classifier",
    "find_encoder",
    "find_tokenizer",
    "find_training_data",
    "find_validation_data",
    "first_of",
    "is_fitting",
]

EncoderSpec = str | nn.Module | Callable[[pl.LightningModule], Any] | None

# EMA targets first: they are what is evaluated and kept in the end.
_BODIES = ("encoder", "backbone", "embedding_model", "network", "net", "model")
_AVERAGED = ("target", "teacher", "ema", "momentum", "averaged")
_EMA_NAMES = (
    *(f"{kind}_{body}" for body in _BODIES for kind in _AVERAGED),
    *(f"{body}_{kind}" for body in _BODIES for kind in _AVERAGED),
    "encoder_k",
    "key_encoder",
    *_AVERAGED,
)
_TRAINED = ("context", "student", "online")
USUAL_NAMES = (
    *_EMA_NAMES,
    *(f"{kind}{body}" for body in _BODIES[:4] for kind in ("", *(f"{k}_" for k in _TRAINED))),
    "encoder_q",
    "query_encoder",
    "image_encoder",
    "vision_encoder",
    *_TRAINED,
    "feature_extractor",
    "model",
    "student_model",
    "online_model",
    "net",
    "student_net",
    "online_net",
    "vit",
    "module",
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


def _child(module: nn.Module, name: str) -> nn.Module | None:
    found = module._modules.get(name)
    if found is None:
        try:
            found = getattr(module, name, None)
        except Exception:  # noqa: BLE001 - a property of the user's that is not ready
            return None
    return found if isinstance(found, nn.Module) else None


def _is_callable(module: nn.Module) -> bool:
    """Say whether the module has a forward pass; a compiled one has it on the instance only."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def _is_opened(module: nn.Module) -> bool:
    """Say whether the encoder is rather a part of this module than the module itself."""
    # It cannot be called, is a whole method (a LightningModule in another one), or holds an EMA
    # target beside what that averages.
    nested = any(kind.__name__ == "LightningModule" for kind in type(module).__mro__)
    return not _is_callable(module) or nested or any(_child(module, name) for name in _EMA_NAMES)


def _usual_part(module: nn.Module, names: tuple[str, ...], depth: int) -> tuple[str, Any] | None:
    for name in names:
        candidate = _child(module, name)
        if candidate is None or isinstance(candidate, nn.ModuleList):
            continue
        if isinstance(candidate, nn.ModuleDict):  # a container, such as DINOv2's teacher
            part = next((part for part in _PARTS if part in candidate), None)
            if part is not None:
                return f"{name}.{part}", candidate[part]
            continue
        inside = depth > 0 and _is_opened(candidate)
        part_of = _usual_part(candidate, USUAL_NAMES, depth - 1) if inside else None
        if part_of is not None:
            return f"{name}.{part_of[0]}", part_of[1]
        if _is_callable(candidate):
            return name, candidate
    return None


def _usual_encoder(pl_module: pl.LightningModule) -> tuple[str, nn.Module]:
    found = _usual_part(pl_module, USUAL_NAMES, 2)
    if found is not None:
        return found
    texts = [
        (name, child)
        for name, child in pl_module.named_children()
        if callable(getattr(child, "get_input_embeddings", None))
    ]
    if len(texts) == 1:  # `bert`, `transformer`, `lm`: a model of Hugging Face's kind
        return texts[0]
    seen = [f"{name} ({type(child).__name__})" for name, child in pl_module.named_children()]
    raise ValueError(
        f"`encoder` was not given, and {type(pl_module).__name__} has no submodule of a usual name "
        "(target_encoder, teacher, momentum_backbone, encoder_ema and the like, or encoder, "
        "context_encoder, backbone, student, online_network, feature_extractor, model, net). Its "
        f"submodules are: {', '.join(seen) or 'none'}. Pass `encoder`: a dotted path such as "
        "'teacher.backbone', a module, or a function of the LightningModule."
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
        UnfoundError: If a function of this package finds nothing.
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
    except UnfoundError:
        raise
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


class UnfoundError(ValueError):
    """What was to be found by itself is not there; the message says what to pass."""


def find_classifier(pl_module: pl.LightningModule) -> Any:
    """Find what predicts the classes of texts.

    Args:
        pl_module: The module in training.

    Returns:
        The module itself if it has a forward pass, else its only submodule with ``get_input_embeddings()``.

    Raises:
        UnfoundError: If there is no such submodule, or more than one.
    """
    forward = getattr(pl_module.forward, "__func__", None)
    if forward is not None and not forward.__module__.endswith("core.module"):
        return pl_module
    found = [
        child
        for _, child in pl_module.named_children()
        if callable(getattr(child, "get_input_embeddings", None))
    ]
    if len(found) == 1:
        return found[0]
    seen = [f"{name} ({type(child).__name__})" for name, child in pl_module.named_children()]
    raise UnfoundError(
        f"`classifier` was not given, and {type(pl_module).__name__} has no `forward`, nor just one submodule with "
        f"`get_input_embeddings()`. Its submodules are: {', '.join(seen) or 'none'}. Pass `classifier`: a dotted path, a "
        "module, or a function of the LightningModule that returns a module which takes `input_ids` and "
        "`attention_mask` and returns logits."
    )


def find_tokenizer(trainer: pl.Trainer) -> Any:
    """Find the tokenizer of a Trainer's texts.

    Args:
        trainer: Past its set-up.

    Returns:
        The first that is an attribute ``tokenizer`` of the module, the data module, or the collate function or data set of
        the validation or training data.

    Raises:
        ValueError: If there is none.
    """
    loaders = [find_validation_data(trainer), _first(getattr(trainer, "train_dataloader", None))]
    owners = [trainer.lightning_module, getattr(trainer, "datamodule", None)]
    for loader in loaders:
        owners += [getattr(loader, name, None) for name in ("collate_fn", "dataset")]
    for owner in owners:
        found = getattr(owner, "tokenizer", None)
        if found is not None:
            return found
    raise ValueError(
        "`tokenizer` was not given, and neither the LightningModule nor the data module, the collate function or "
        "the data set has one as its attribute `tokenizer`. Words are put into texts by it: pass `tokenizer`."
    )


def _opened(loaders: Any) -> tuple[Any, ...] | None:
    """List what a container of loaders holds; ``None`` for a loader."""
    # A loader is never asked for its truth value, which calls `len`: a stream has none.
    if isinstance(loaders, Mapping):
        return tuple(loaders.values())
    if type(loaders).__name__ == "CombinedLoader":  # of either package of Lightning
        return (loaders.iterables,)
    return tuple(loaders) if isinstance(loaders, list | tuple) else None


def _first(loaders: Any) -> Any:
    """Take the first of several loaders, however they are nested."""
    while (inside := _opened(loaders)) is not None:
        if not inside:
            return None
        loaders = inside[0]
    return loaders


def first_of(batch: Any, loaders: Any) -> Any:
    """Take the part of a batch that the first of several loaders has yielded.

    Args:
        batch: As a step gets it.
        loaders: What the Trainer draws from, in the containers of the batch.

    Returns:
        The first loader's own batch.
    """
    while (inside := _opened(loaders)) is not None and inside:
        if type(loaders).__name__ != "CombinedLoader":
            batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        loaders = inside[0]
    return batch


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
