"""Parameters that are spread over processes: in go modules, out come whole tensors by their places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jepa_monitor.encoders.modules import is_fsdp1, modules_of

__all__ = ["Place", "check_whole", "gather", "tensor_at"]

Place = tuple[nn.Module, str]


def tensor_at(place: Place) -> Any:
    """Find what a module holds under a name.

    Args:
        place: A module, and the name of one of its parameters or plain tensors.

    Returns:
        The tensor.
    """
    module, name = place
    return module._parameters.get(name, vars(module).get(name))


def _in_fsdp1(module: nn.Module) -> set[nn.Module]:
    """Find the submodules whose parameters a wrapper of FSDP1 inside ``module`` can make whole."""
    return {part for found in module.modules() if is_fsdp1(found) for part in found.modules()}


def check_whole(encoder: Any) -> None:
    """Refuse an encoder whose parameters are spread over processes and cannot be gathered.

    Args:
        encoder: What the user gave.

    Raises:
        ValueError: If it is sharded by DeepSpeed ZeRO-3, or by an FSDP1 out of its reach.
    """
    roots = modules_of(encoder)
    modules = {module for root in roots for module in root.modules()}
    reachable = {part for root in roots for part in _in_fsdp1(root)}
    for module in modules:
        parameters = [p for p in module.parameters(recurse=False) if not is_lazy(p)]
        if any(hasattr(parameter, "ds_id") for parameter in parameters):
            raise ValueError(
                "`encoder` is sharded by DeepSpeed ZeRO-3, which hides its parameters. Train with "
                "fully_shard (FSDP2: Lightning's ModelParallelStrategy), FSDP1, DDP or a lower "
                "stage of ZeRO."
            )
        # With use_orig_params=False, what is left of a parameter is a tensor without memory.
        left = [t for t in vars(module).values() if isinstance(t, Tensor) and t.numel()]
        if module not in reachable and (
            any(hasattr(parameter, "_fsdp_flattened") for parameter in parameters)
            or any(not t.is_meta and not t.untyped_storage().size() for t in left)
        ):
            raise ValueError(
                "`encoder` is a part of a module that FSDP1 has sharded, and its parameters can "
                "only be gathered through that module. Pass a function that calls it through the "
                "wrapper, such as lambda images: wrapper.module.encoder(images)."
            )


def gather(modules: Iterable[nn.Module]) -> dict[Place, Tensor]:
    """Gather the parameters that are spread over processes: FSDP2's one by one, FSDP1's at once.

    All processes that share them must call this.

    Args:
        modules: Each once.

    Returns:
        Whole tensors, for the places that hold a part now; one that two layers share is one.
    """
    modules = list(modules)
    gathered: dict[Place, Tensor] = {}
    whole: dict[int, Tensor] = {}
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and hasattr(parameter, "full_tensor"):  # a DTensor
                if id(parameter) not in whole:
                    whole[id(parameter)] = parameter.full_tensor().detach()
                gathered[module, name] = whole[id(parameter)]
    wrappers = [module for module in modules if is_fsdp1(module)]
    inner = {part for wrapper in wrappers for part in wrapper.modules() if part is not wrapper}
    for wrapper in wrappers:
        if wrapper not in inner:
            gathered |= _summoned(wrapper)
    return gathered


def _summoned(wrapper: Any) -> dict[Place, Tensor]:
    """Copy the whole parameters inside an outermost wrapper of FSDP1."""
    parts = list(wrapper.modules())
    fresh = [part for part in parts if is_fsdp1(part) and part._is_root is None]
    copies: dict[int, Tensor] = {}  # a parameter that two layers share stays one
    gathered: dict[Place, Tensor] = {}
    with torch.inference_mode(False), wrapper.summon_full_params(wrapper, writeback=False):
        for module in parts:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in copies:
                    copies[id(parameter)] = parameter.detach().clone()
                gathered[module, name] = copies[id(parameter)]
    # Summoning settles who the outermost wrapper is. Before the first training step that is not
    # ours to say: there may be one around this one, which would refuse to train.
    for part in fresh:
        part._is_root = None
    return gathered
