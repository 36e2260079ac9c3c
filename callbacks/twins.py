"""Find whose average is watched: in go a module and its EMA target, out comes the trained encoder."""

from __future__ import annotations

import re
from typing import Any

import lightning.pytorch as pl
from torch import nn

from jepa_monitor.callbacks.averaging import find_averaging

__all__ = ["find_online"]

# In the names of what is averaged; `k` and `key` are MoCo's.
_AVERAGED = {"target", "teacher", "ema", "momentum", "averaged", "average", "k", "key"}


def find_online(trainer: pl.Trainer, pl_module: pl.LightningModule, encoder: Any) -> Any:
    """Find the encoder that is trained where its moving average is watched.

    It has the same parameters by name and shape as the average, others by value, and a path without
    a word such as ``target``, ``teacher`` or ``ema``; of several the one whose path ends like the
    average's.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        encoder: What is watched.

    Returns:
        A module, or ``None`` where what is watched is no average, or its source is not told apart.
    """
    if not isinstance(encoder, nn.Module):
        return None
    average = getattr(find_averaging(trainer), "_average_model", None)
    if average is not None:
        path = _path(average.module, encoder)
        return None if path is None else pl_module.get_submodule(path)
    path = _path(pl_module, encoder)
    if path is None or not _is_average(path):
        return None
    if next(encoder.parameters(), None) is None:
        return None
    mine, own = _signature(encoder), {id(p) for p in encoder.parameters()}
    found = {
        other: module
        for other, module in pl_module.named_modules()
        if not _is_average(other)
        and _signature(module) == mine
        and own.isdisjoint(id(p) for p in module.parameters())
    }
    if len(found) > 1:
        last = path.rpartition(".")[2]
        alike = {p: m for p, m in found.items() if p.rpartition(".")[2] in (last, _bare(last))}
        found = alike or found
    return next(iter(found.values())) if len(found) == 1 else None


def _path(root: nn.Module, module: nn.Module) -> str | None:
    return next((path for path, found in root.named_modules() if found is module), None)


def _words(name: str) -> list[str]:
    return re.split(r"[._]", name.lower())


def _is_average(path: str) -> bool:
    return not _AVERAGED.isdisjoint(_words(path))


def _bare(name: str) -> str:
    return "_".join(word for word in _words(name) if word not in _AVERAGED)


def _signature(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without what compilation and wrappers put before the names."""
    return {
        re.sub(r"^(_orig_mod\.|module\.)+", "", name): tuple(p.shape)
        for name, p in module.named_parameters()
    }
