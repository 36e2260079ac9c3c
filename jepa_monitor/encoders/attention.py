"""Find how an encoder's attention weighs tokens: in go a forward pass, out come weights by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "AttentionError",
    "attention_by",
    "attention_modules",
    "returned_attention",
    "watch_attention",
    "weights_of",
]


class AttentionError(ValueError):
    """An encoder has no attention of which weights can be told."""


def attention_modules(modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """List the self-attention of which weights can be told, in the order of the encoder's modules.

    Those are modules with a method ``attention_weights(tokens)``, and softmax attention as timm and the
    official DINOv2 have it: one linear ``qkv``, ``num_heads`` and a class named ``Attention`` or
    ``MemEffAttention``. Rotary and windowed ones have classes of other names.

    Args:
        modules: Those that an encoder computes with.

    Returns:
        Modules by name.
    """
    found: dict[str, nn.Module] = {}
    for root in modules:
        for name, module in root.named_modules():
            own = callable(getattr(module, "attention_weights", None))
            usual = type(module).__name__ in ("Attention", "MemEffAttention")
            if own or (usual and _is_usual(module)):
                found.setdefault(name, module)
    return found


def _is_usual(module: Any) -> bool:
    return isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(
        getattr(module, "num_heads", None), int
    )


def weights_of(module: Any, tokens: Tensor) -> Tensor:
    """Say how an attention weighs tokens.

    Args:
        module: One of :func:`attention_modules`.
        tokens: What goes into it, (B, N, K).

    Returns:
        (B, heads, N, N).
    """
    if callable(getattr(module, "attention_weights", None)):
        made: Tensor = module.attention_weights(tokens)
        return made
    parts = module.qkv(tokens).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = (
        getattr(module, f"{name}_norm", nn.Identity())(part)
        for name, part in zip("qk", parts[:2], strict=True)
    )
    weights: Tensor = (q * q.shape[3] ** -0.5 @ k.mT).softmax(-1)
    return weights


def watch_attention(
    encoder: Callable[[Tensor], Any], modules: Iterable[nn.Module], images: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pass images through an encoder and measure how each layer weighs its tokens.

    Args:
        encoder: What to call.
        modules: Those that it computes with. For the time of the call they have hooks.
        images: (B, ...).

    Returns:
        Of each layer that was passed, in that order, three tensors (B,), means over heads: the entropy of the
        sizes of a row's weights over log N; the largest sum of a column, of rows whose sizes sum to 1; and
        the sum of a row.

    Raises:
        AttentionError: If there is no such layer.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(module: nn.Module, inputs: Any, options: Any) -> None:
        others = (*inputs[1:], *options.values())
        if inputs and all(value is None or value is False for value in others):
            found.append(_measured(weights_of(module, inputs[0].detach())))

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module in attention_modules(modules).values()
    ]
    try:
        with torch.no_grad():
            encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise AttentionError(
            "`encoder` has no attention of which weights can be told: none of its modules has a method "
            "`attention_weights(tokens)`, and none is an `Attention` of timm's kind, with one `qkv`."
        )
    return found


def returned_attention(
    model: nn.Module, forward: Callable[[], Any]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Measure the weights that layers of Hugging Face's models return beside their output.

    Args:
        model: Whose layers are asked for weights, which kernels of attention do not have.
        forward: Passes texts through it.

    Returns:
        As :func:`watch_attention`, of each layer; nothing where no layer returns weights.
    """
    found: dict[int, Tensor] = {}

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        for part in output if isinstance(output, tuple) else ():
            # A block hands on what its attention returned: the same tensor.
            if isinstance(part, Tensor) and part.ndim == 4 and part.shape[2] == part.shape[3]:
                found.setdefault(id(part), part)  # kept, or its id would be given again

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        with torch.no_grad(), attention_by(model, "eager"):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    sums = [weights.double().sum(-1) for weights in found.values()]
    return [
        _measured(weights)
        for weights, total in zip(found.values(), sums, strict=True)
        if bool(torch.isclose(total, torch.ones_like(total), atol=1e-2).all())
    ]


@contextmanager
def attention_by(
    model: nn.Module, name: str, instead_of: Container[str] | None = None
) -> Iterator[None]:
    """Have a model of Hugging Face compute its attention in another way.

    Args:
        model: It; others are left as they are.
        name: ``eager`` or ``sdpa``.
        instead_of: Names that stay as they are; ``None``: none.

    Yields:
        Nothing.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        used = getattr(config, "_attn_implementation", None)
        if isinstance(used, str) and used not in (instead_of or ()):
            configs[id(config)] = config
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, used in before:
            config._attn_implementation = used


def _measured(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sizes = weights.double().abs()
    shares = sizes / sizes.sum(-1, keepdim=True).clamp_min(1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum(-1) / max(
        math.log(weights.shape[-1]), 1e-300
    )
    return (
        entropy.mean((1, 2)),
        shares.sum(-2).amax(-1).mean(1),
        weights.double().sum(-1).mean((1, 2)),
    )
