"""Find how an encoder's attention weighs tokens: in go a forward pass, out come weights by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AttentionError", "attention_modules", "watch_attention", "weights_of"]


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
