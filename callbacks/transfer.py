"""What a Trainer does to a batch on its way to the model: in goes a loader's batch, out the step's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from jepa_monitor.encoders.isolation import undisturbed
from jepa_monitor.probes.apart import Unread

__all__ = ["batch_transfer"]

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def _is_overridden(owner: Any, hook: str) -> bool:
    # Not Lightning's own function, which knows the classes of one of its two packages only.
    function = getattr(getattr(owner, hook, None), "__func__", getattr(owner, hook, None))
    return function is not None and not str(function.__module__).endswith("core.hooks")


@contextmanager
def _stage(trainer: pl.Trainer, stage: str) -> Iterator[None]:
    """Let hooks that ask find the Trainer where it will be with such a batch."""
    before = trainer.state.stage
    if before is not None:
        trainer.state.stage = type(before)(stage)
    try:
        yield
    finally:
        trainer.state.stage = before


def batch_transfer(trainer: pl.Trainer, stage: str) -> Callable[[Any], Any] | None:
    """Make a function that does what the user's batch-transfer hooks do.

    Normalisation and augmentation on the device stand there: what the encoder sees is what comes
    out. Random states and the modules' modes are what they were afterwards.

    Args:
        trainer: With its module and, perhaps, a data module.
        stage: Where such batches are used: ``train``, ``validate`` or ``test``.

    Returns:
        The function, or ``None`` if neither the module nor the data module overrides a hook. It
        raises :class:`~jepa_monitor.probes.apart.Unread` from whatever a hook raises.
    """
    module: Any = trainer.lightning_module
    data = getattr(trainer, "datamodule", None)
    owners = {
        hook: data if data is not None and _is_overridden(data, hook) else module for hook in _HOOKS
    }
    if not any(_is_overridden(owner, hook) for hook, owner in owners.items()):
        return None
    device = trainer.strategy.root_device
    seeds = itertools.count()
    evaluated = () if stage == "train" else (module,)

    def transfer(batch: Any) -> Any:
        with _stage(trainer, stage), undisturbed(evaluated, device), torch.no_grad():
            torch.manual_seed(next(seeds))
            try:
                batch = owners[_HOOKS[0]].on_before_batch_transfer(batch, 0)
                batch = owners[_HOOKS[1]].transfer_batch_to_device(batch, device, 0)
                return owners[_HOOKS[2]].on_after_batch_transfer(batch, 0)
            except Exception as error:
                raise Unread(
                    f"a batch-transfer hook raised {type(error).__name__}: {error}"
                ) from error

    return transfer
