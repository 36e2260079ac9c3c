"""Whose weights are looked at where Lightning averages them: the averages, as checkpoints hold them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import nn

from jepa_monitor.callbacks.discovery import EncoderSpec, find_encoder

__all__ = ["averaged_encoder", "find_averaging", "follow_averaging"]


def find_averaging(trainer: pl.Trainer) -> Any:
    """Find the callback that averages weights.

    Args:
        trainer: The Trainer.

    Returns:
        Lightning's ``WeightAveraging`` or a subclass of it, such as ``EMAWeightAveraging``, of either
        package; ``None`` if there is none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__):
            return callback
    return None


def follow_averaging(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Put a callback behind the one that averages, so that it sees the average of this very step.

    Args:
        trainer: The Trainer.
        callback: What is to come after it.
    """
    averaging = find_averaging(trainer)
    callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
    if averaging is None or callbacks.index(averaging) < callbacks.index(callback):
        return
    callbacks.remove(callback)
    callbacks.insert(callbacks.index(averaging) + 1, callback)
    # A list of its own: Lightning is iterating over the old one while it calls this hook.
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def averaged_encoder(
    trainer: pl.Trainer, pl_module: pl.LightningModule, spec: EncoderSpec
) -> tuple[str, Any]:
    """Find the encoder with the weights that a checkpoint of this moment holds.

    While it validates, Lightning has the averages in the module; :func:`follow_averaging` sees to it
    that they are back in their place when a callback looks.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        spec: A dotted path, a module, a function of the module, or ``None`` for the usual names.

    Returns:
        What to call it in messages, and the encoder.
    """
    average = getattr(find_averaging(trainer), "_average_model", None)
    if average is None or trainer.state.fn == "test":  # Lightning tests the module's own weights
        return find_encoder(pl_module, spec)
    if isinstance(spec, nn.Module):
        paths = [path for path, module in pl_module.named_modules() if module is spec]
        if not paths:  # a module from elsewhere is in nobody's average
            return find_encoder(pl_module, spec)
        return type(spec).__name__, average.module.get_submodule(paths[0])
    return find_encoder(average.module, spec)
