"""Find the patch tokens of an encoder: in goes a forward pass, out come tokens (B, P, d) on their grid.

What an encoder returns may be tokens already; often it is pooled, and the tokens are inside. They are
what goes through the last norm (of a ViT) or into the last pooling (of a convolutional network), and
hooks that live for one pass catch them there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["EncoderTokens", "TokenError", "encoder_tokens", "join_tokens", "prefix_of"]

# Names of the last norm in timm, torchvision, Hugging Face, open_clip and the official DINO and I-JEPA.
_LAST_NORMS = {
    "norm",
    "layernorm",
    "layer_norm",
    "ln",
    "ln_post",
    "post_layernorm",
    "final_layer_norm",
}
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_OTHER_TOKENS = (
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
    "storage_tokens",
)
# Keys of outputs that hold tokens, those that hold patch tokens alone first.
_TOKEN_KEYS = (
    "x_norm_patchtokens",
    "last_hidden_state",
    "encoded",
    "features",
    "embedding",
    "embeddings",
)


_Hook = Callable[[nn.Module, Any, Any], None]


class TokenError(ValueError):
    """An encoder gives no tokens, or some that cannot be told apart from others."""


class EncoderTokens(NamedTuple):
    """Tokens of B images.

    Args:
        patches: Of the patches, row by row, (B, P, d).
        class_token: (B, d); ``None`` if the encoder has none.
        unnormalized: The patch tokens before the last norm, (B, P, d); of a map that no norm of tokens
            follows the tokens themselves; ``None`` if the last norm was not found.
        grid: Rows and columns of patches; ``None`` if P patches do not fit the shape of the images.
    """

    patches: Tensor
    class_token: Tensor | None
    unnormalized: Tensor | None
    grid: tuple[int, int] | None


class _Caught(NamedTuple):
    """Tokens inside of an encoder: before and after its last norm, or of a map before pooling."""

    before: Tensor  # (B, T, d)
    after: Tensor  # (B, T, d); the same of a map
    grid: tuple[int, int] | None


def encoder_tokens(
    encoder: Callable[[Tensor], Any],
    modules: Iterable[nn.Module],
    images: Tensor,
    *,
    differentiable: bool = False,
) -> EncoderTokens:
    """Pass images through an encoder and find their patch tokens.

    In this order: what it returns, if that is patch tokens (``x_norm_patchtokens`` of DINOv2), hidden
    states (``last_hidden_state`` of Hugging Face), tokens (B, T, d) or a map (B, d, h, w); what went
    through its last norm; the map that went into its last pooling. Class and register tokens come first
    in a sequence; how many there are is ``num_prefix_tokens`` of timm, or the sizes of parameters named
    ``cls_token``, ``register_tokens`` and the like.

    Args:
        encoder: What to call.
        modules: Those that it computes with. For the time of the call they have hooks.
        images: (B, ...).
        differentiable: Whether gradients of the tokens are to be taken.

    Returns:
        The tokens, without their graph unless ``differentiable``.

    Raises:
        TokenError: If there are none.
    """
    roots = list(modules)
    with torch.set_grad_enabled(differentiable), _catching(roots, len(images)) as caught:
        output = encoder(images)
    sides = tuple(images.shape[2:]) if images.ndim == 4 else None
    sequence, classes, patches_alone = _of_output(output)
    if sequence is None and not caught:
        raise TokenError(
            f"`encoder` gives no tokens: it returns {_shape(output)}, and inside it there is neither a "
            "last norm over tokens (norm, layernorm, ln_post, …) nor a pooling of maps. Pass an encoder "
            "that returns tokens (B, P, d) or maps (B, d, h, w), and `pool` to say what its embedding is."
        )
    found = caught[-1] if caught else None
    grid = None
    if sequence is None:
        assert found is not None
        sequence, grid = found.after, found.grid
    elif sequence.ndim == 4:
        grid = (sequence.shape[2], sequence.shape[3])
        sequence = sequence.flatten(2).transpose(1, 2)
        found = _Caught(sequence, sequence, grid)
    prefix, has_class = (0, False)
    if grid is None and not patches_alone:
        prefix, has_class = prefix_of(roots, sequence.shape[2])
        if not _grid(sequence.shape[1] - prefix, sides) and _grid(sequence.shape[1], sides):
            prefix, has_class = 0, False  # the norm of patches alone, as with DINOv3's two norms
    if sequence.shape[1] - prefix < 2:
        raise TokenError(
            f"`encoder` gives no tokens: of {sequence.shape[1]} an image {prefix} are class and register "
            "tokens, and one patch has no neighbours."
        )
    patches = sequence[:, prefix:]
    if has_class and classes is None:
        classes = sequence[:, 0]
    before = None
    if found is not None and found.after.shape[0] == len(patches):
        after = found.after[:, -patches.shape[1] :]
        if after.shape == patches.shape and torch.equal(after, patches):
            before = found.before[:, -patches.shape[1] :]
    return EncoderTokens(patches, classes, before, grid or _grid(patches.shape[1], sides))


def join_tokens(parts: Sequence[EncoderTokens]) -> EncoderTokens:
    """Put the tokens of several batches together.

    Args:
        parts: Of one encoder, one at least.

    Returns:
        The tokens of all images, in order.
    """
    patches, classes, before, grids = zip(*parts, strict=True)

    def joined(values: Iterable[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.cat(there) if len(there) == len(parts) else None

    return EncoderTokens(torch.cat(patches), joined(classes), joined(before), grids[0])


@contextmanager
def _catching(roots: Iterable[nn.Module], images: int) -> Iterator[list[_Caught]]:
    """Put hooks on last norms and poolings for the time of a pass; what they see last comes last."""
    caught: list[_Caught] = []

    def norm(module: nn.Module, inputs: Any, output: Any) -> None:
        before, after = _positions(inputs), _positions((output,))
        if before is None or after is None or before.shape != after.shape:
            return
        grid = None
        if before.ndim == 4:
            if not hasattr(module, "normalized_shape"):
                return  # a norm of whole maps, after which tokens still differ in length
            if "2d" in type(module).__name__:  # timm's, of channels that come first
                before, after = before.permute(0, 2, 3, 1), after.permute(0, 2, 3, 1)
            grid = (before.shape[1], before.shape[2])
            before, after = before.flatten(1, 2), after.flatten(1, 2)
        if len(before) == images:
            caught.append(_Caught(before, after, grid))

    def pooling(module: nn.Module, inputs: Any, output: Any) -> None:
        del module
        before = _positions(inputs)
        if before is None or before.ndim != 4 or _positions((output,)) is not None:
            return
        if caught and caught[-1].after.numel() == before.numel():
            return  # the tokens that a norm has given already
        tokens = before.flatten(2).transpose(1, 2)
        if len(before) == images:
            caught.append(_Caught(tokens, tokens, (before.shape[2], before.shape[3])))

    def convolution(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if _positions((output,)) is not None:
            caught.clear()  # what was pooled before was a gate, as in squeeze-and-excitation

    handles = []
    try:
        for module, hook in _watched(roots, norm, pooling, convolution):
            handles.append(module.register_forward_hook(hook))
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _watched(
    roots: Iterable[nn.Module], norm: _Hook, pooling: _Hook, convolution: _Hook
) -> list[tuple[nn.Module, _Hook]]:
    """Say which module is to have which hook. Norms that every block has are not the last one."""
    named = {module: path for root in roots for path, module in root.named_modules()}
    norms = {m: re.sub(r"\d+", "#", p) for m, p in named.items() if p.split(".")[-1] in _LAST_NORMS}
    times = Counter(norms.values())
    found: list[tuple[nn.Module, _Hook]] = []
    for module in named:
        if isinstance(module, torch.jit.ScriptModule):
            continue  # which takes no hook
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            found.append((module, convolution))
        elif _is_pooling(module):
            found.append((module, pooling))
        elif module in norms and times[norms[module]] == 1:
            found.append((module, norm))
    return found


def _is_pooling(module: nn.Module) -> bool:
    name = type(module).__name__
    return "AdaptiveAvgPool" in name or "AdaptivePool" in name


def _positions(values: Any) -> Tensor | None:
    """Give the first of some values if it is tokens (B, T, d) or a map of more than one place."""
    first = values[0] if isinstance(values, tuple) and values else None
    if not isinstance(first, Tensor) or first.ndim not in (3, 4):
        return None
    places = first.shape[1] if first.ndim == 3 else first[0, 0].numel()
    return first if places > 1 else None


def _of_output(output: Any) -> tuple[Tensor | None, Tensor | None, bool]:
    """Find tokens or a map in an output, its class token, and whether the tokens are patches alone."""
    if isinstance(output, Tensor):
        return _positions((output,)), None, False
    if isinstance(output, tuple | list):
        for value in output:
            if (found := _of_output(value))[0] is not None:
                return found
        return None, None, False
    known = isinstance(output, Mapping)
    values = {key: output.get(key) if known else getattr(output, key, None) for key in _TOKEN_KEYS}
    if known and not any(isinstance(value, Tensor) for value in values.values()):
        values = dict(output)
    for key, value in values.items():
        if (found_tokens := _positions((value,))) is not None:
            classes = (
                output.get("x_norm_clstoken") if key == "x_norm_patchtokens" and known else None
            )
            return found_tokens, classes, key == "x_norm_patchtokens"
    return None, None, False


def prefix_of(roots: Iterable[nn.Module], width: int) -> tuple[int, bool]:
    """Count class and register tokens, and say whether there is a class token, which comes first.

    Args:
        roots: Modules that an encoder computes with.
        width: Numbers of a token.

    Returns:
        How many tokens are no patches, and whether the first of them is a class token.
    """
    for root in roots:
        for module in root.modules():
            held = {
                name: parameter
                for name in (*_CLASS_TOKENS, *_OTHER_TOKENS)
                if isinstance(parameter := getattr(module, name, None), Tensor)
                and parameter.shape[-1:] == (width,)
            }
            classes = any(name in held for name in _CLASS_TOKENS)
            told = getattr(module, "num_prefix_tokens", None)
            if isinstance(told, int):
                return told, classes
            if held:
                return sum(parameter.numel() // width for parameter in held.values()), classes
    return 0, False


def _grid(patches: int, sides: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Lay patches out as square ones on an image of these sides."""
    if sides is None or patches < 1:
        return None
    rows = round(math.sqrt(patches * sides[0] / sides[1]))
    columns = round(math.sqrt(patches * sides[1] / sides[0]))
    return (rows, columns) if rows * columns == patches and rows > 0 else None


def _shape(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    return f"a {type(output).__name__} without tokens"
