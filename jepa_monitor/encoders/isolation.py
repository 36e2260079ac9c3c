"""Evaluate a model without leaving a trace: in go its modules, out comes a neutral context.

A monitor looks at a model in the middle of somebody else's training step. Everything that the look
could change (modes, random numbers, gradient and precision settings) is put back afterwards, also
when the look raises.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from jepa_monitor.encoders.holdings import Holdings
from jepa_monitor.encoders.modules import inner_module, is_of_distributed

__all__ = ["check_tf32", "full_float32", "neutralise", "seed_all", "tensor_float32", "undisturbed"]

# Since torch 2.9 every backend has a switch of its own beside the older global ones. Whichever kind
# the user has set is used here, since an encoder that reads the other kind would raise.
_PRECISION_SWITCHES = (
    "cuda.matmul",
    "cudnn.conv",
    "cudnn.rnn",
    "mkldnn.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
)
_REDUCTION_SWITCHES = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)


def _backend(path: str) -> Any:
    backend: Any = torch.backends
    for name in path.split("."):
        backend = getattr(backend, name)
    return backend


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _products(older: str, newer: str) -> Iterator[None]:
    """Compute float32 products by one precision, in the words of both kinds of switches."""
    with ExitStack() as stack:
        try:
            before = torch.get_float32_matmul_precision()
            convolutions = torch.backends.cudnn.allow_tf32
        except RuntimeError:  # the user has set the newer switches, which forbids reading these
            for path in _PRECISION_SWITCHES:
                stack.enter_context(_attribute(_backend(path), "fp32_precision", newer))
        else:
            stack.callback(torch.set_float32_matmul_precision, before)
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", convolutions)
            torch.set_float32_matmul_precision(older)
            torch.backends.cudnn.allow_tf32 = older != "highest"
        for name in _REDUCTION_SWITCHES:
            stack.enter_context(_attribute(torch.backends.cuda.matmul, name, False))
        yield


def full_float32() -> AbstractContextManager[None]:
    """Compute float32 products in float32: no TF32, no bfloat16, no reduced-precision sums.

    Returns:
        A context, on exit of which the settings of every backend are restored.
    """
    return _products("highest", "ieee")


def tensor_float32() -> AbstractContextManager[None]:
    """Compute float32 products of matrices and convolutions in TF32 where the device can.

    Returns:
        A context, on exit of which the settings of every backend are restored.
    """
    return _products("high", "tf32")


def check_tf32(device: torch.device) -> None:
    """Refuse a device without TF32.

    Args:
        device: Where the encoder is.

    Raises:
        ValueError: If it is no CUDA device of compute capability 8.0 or above.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return
    raise ValueError(
        "`precision='tf32'` is for CUDA devices of compute capability 8.0 and above, the encoder is "
        f"on {device}: use 'float32'."
    )


@contextmanager
def _preserved_rng(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    backend = None if device.type in ("cpu", "cuda") else getattr(torch, device.type, None)
    other = backend.get_rng_state() if backend is not None else None
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if backend is not None:
            backend.set_rng_state(other)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the random numbers of Python, NumPy and torch; only inside :func:`undisturbed`.

    Args:
        seed: The seed.
        device: Where the encoder is.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not torch.manual_seed, which would also seed devices that nobody has used yet.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    backend = None if device.type in ("cpu", "cuda") else getattr(torch, device.type, None)
    if backend is not None:
        backend.manual_seed(seed)


def neutralise(modules: Iterable[nn.Module]) -> None:
    """Put modules into eval mode, and take away what makes strategies talk to other processes.

    Their hooks and wrappers would put sharded tensors in the place of the whole ones that are
    evaluated here, and wait for processes that evaluate other images. Wrappers are made to call what
    they wrap.

    Args:
        modules: Each once; what they hold is on record.
    """
    for module in modules:
        module.training = False  # not module.eval(), which may do more than set flags
        inner = inner_module(module)
        if inner is not None:
            vars(module)["forward"] = inner.__call__
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(module, name)
            if any(is_of_distributed(hook) for hook in hooks.values()):
                kept = {key: hook for key, hook in hooks.items() if not is_of_distributed(hook)}
                vars(module)[name] = OrderedDict(kept)


@contextmanager
def undisturbed(modules: Iterable[nn.Module], device: torch.device) -> Iterator[Holdings]:
    """Open a context in which the modules are in eval mode and exact gradients can be taken.

    Inside, gradients are on and inference mode is off (whatever Lightning set around it), autocast,
    TF32, compiled graphs, the wrappers of training strategies and the hooks of ``torch.distributed``
    are off. On exit, also through an exception, the training flag of every single submodule, what the
    modules and their hooks hold (:class:`~jepa_monitor.encoders.holdings.Holdings`), the random
    states of Python, NumPy and torch on all devices, and all settings are what they were.

    Args:
        modules: The modules that will be evaluated, with all their submodules.
        device: Where they will be evaluated.

    Yields:
        The record of what the modules hold.
    """
    modes = {module: module.training for root in modules for module in root.modules()}
    with ExitStack() as stack:
        stack.enter_context(_preserved_rng(device))
        # Inference mode first: leaving it also turns gradients on, which enable_grad then confirms.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {device.type, "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(full_float32())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        holdings = Holdings(modes)
        stack.callback(holdings.restore)
        try:
            neutralise(modes)
            yield holdings
        finally:
            for module, training in modes.items():
                module.training = training
