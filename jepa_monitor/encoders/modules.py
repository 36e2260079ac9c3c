"""Find the modules behind a callable: in go encoders as users have them, out come modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

__all__ = ["inner_module", "is_fsdp1", "is_of_distributed", "modules_of", "unwrap"]

# By name: neither FSDP1 nor Fabric need be loaded. Each has what it wraps in `module`.
_WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "_FabricModule",
}


def _is_a(module: nn.Module, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)


def is_fsdp1(module: nn.Module) -> bool:
    """Tell a wrapper of FSDP1.

    Args:
        module: Any module.

    Returns:
        Whether it is ``torch.distributed.fsdp.FullyShardedDataParallel``, which need not be loaded.
    """
    return _is_a(module, {"FullyShardedDataParallel"})


def is_of_distributed(hook: Any) -> bool:
    """Tell a hook by which FSDP or tensor parallelism talks to other processes.

    Args:
        hook: Any function.

    Returns:
        Whether it belongs to ``torch.distributed``.
    """
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def inner_module(module: nn.Module) -> nn.Module | None:
    """Find what a wrapper of a training strategy wraps.

    Args:
        module: Any module.

    Returns:
        The module inside ``(Distributed)DataParallel``, FSDP1 or Lightning Fabric's wrapper, which
        computes the same; ``None`` for a module that is no wrapper.
    """
    if not _is_a(module, _WRAPPERS):
        return None
    inner: nn.Module = module.module  # type: ignore[assignment]
    return inner


def unwrap(encoder: Any) -> Any:
    """Take off the wrappers that get in the way of input gradients.

    Args:
        encoder: What the user gave.

    Returns:
        What is inside ``torch.compile``, ``(Distributed)DataParallel`` and Fabric's wrapper, or the
        ``forward`` of it for a wrapper's. FSDP1 stays: parameters are gathered through it.
    """
    if inspect.ismethod(encoder) and encoder.__name__ == "forward":
        owner = unwrap(encoder.__self__)
        return encoder if owner is encoder.__self__ else owner.forward
    while isinstance(encoder, nn.Module) and not is_fsdp1(encoder):
        inner = encoder._orig_mod if hasattr(encoder, "_orig_mod") else inner_module(encoder)
        if inner is None:
            break
        encoder = inner
    return encoder


def _parts(found: Any, home: str) -> Iterable[Any]:
    """Say what a callable or a container consists of; functions of libraries are not looked into."""
    if isinstance(found, functools.partial):
        return [found.func, *found.args, *found.keywords.values()]
    if inspect.ismethod(found):
        return [found.__self__]
    if inspect.isfunction(found):
        scope = inspect.getclosurevars(found)
        named = (
            value
            for value in scope.globals.values()
            if not isinstance(value, FunctionType) or value.__module__ == home
        )
        return [*scope.nonlocals.values(), *named]
    if isinstance(found, dict):
        return found.values()
    if isinstance(found, list | tuple | set):
        return found
    held = vars(found).values() if hasattr(found, "__dict__") else ()
    return [value for value in held if isinstance(value, nn.Module)]


def modules_of(encoder: Any) -> list[nn.Module]:
    """Find the modules that a callable computes with.

    Args:
        encoder: A module, which is the answer itself, or a callable: the modules that a function
            closes over or finds in its own file, through other functions of that file and through
            containers; those that a bound method's owner or an object holds.

    Returns:
        The modules, each once, in a fixed order.
    """
    home = getattr(encoder, "__module__", "")
    seen: dict[int, Any] = {}
    modules: list[nn.Module] = []

    def visit(found: Any) -> None:
        if id(found) in seen or isinstance(found, type | ModuleType):
            return
        seen[id(found)] = found
        if isinstance(found, nn.Module):
            modules.append(found)
            return
        for part in _parts(found, home):
            visit(part)

    visit(encoder)
    return modules
