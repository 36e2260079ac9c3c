"""Turn what encoders return into one embedding an image: in go structures, out comes (B, K)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from jepa_monitor._checks import check_choice

__all__ = ["Pool", "check_pool", "pool_output"]

Pool = str | Callable[[Any], Tensor]
_POOLS = ("auto", "mean", "cls", "flatten")

# The whole image's embedding before token sequences; names of Hugging Face, DINOv2,
# stable-pretraining and torchvision.
_OUTPUT_KEYS = (
    "image_embeds",
    "x_norm_clstoken",
    "pooler_output",
    "embedding",
    "embeddings",
    "last_hidden_state",
    "encoded",
    "x_norm_patchtokens",
    "features",
)


def check_pool(pool: Any) -> Pool:
    """Return ``pool`` if it is a function or one of the rules of :func:`pool_output`.

    Args:
        pool: What the caller gave.

    Returns:
        The value.

    Raises:
        ValueError: If it is neither.
    """
    return pool if callable(pool) else check_choice(pool, "pool", _POOLS)


def _select(output: Any) -> Tensor:
    """Find the embedding in a structured output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in _OUTPUT_KEYS:
            if isinstance(found := output.get(key), Tensor):
                return found
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        raise ValueError(
            f"`encoder` returned a {type(output).__name__} with the keys {sorted(map(str, output))}, "
            f"and none of {', '.join(_OUTPUT_KEYS)} holds a tensor. Pass `pool`, a function that "
            "takes this output and returns the (B, K) embedding."
        )
    if isinstance(output, tuple | list) and output:
        return _select(output[0])
    for key in _OUTPUT_KEYS:
        if isinstance(found := getattr(output, key, None), Tensor):
            return found
    raise TypeError(
        f"`encoder` must return a tensor or a structure that holds one, got {type(output).__name__}."
    )


def pool_output(output: Any, pool: Pool = "auto") -> Tensor:
    """Turn what an encoder returned into one embedding an image.

    Structures are searched first: of a dict or Hugging Face output the first of ``image_embeds``,
    ``x_norm_clstoken``, ``pooler_output``, ``embedding``, ``embeddings``, ``last_hidden_state``,
    ``encoded``, ``x_norm_patchtokens``, ``features``, or its only tensor; of a tuple or list the
    first element.

    Args:
        output: What the encoder returned.
        pool: ``"auto"`` and ``"mean"`` average tokens (B, N, K) over N and maps (B, K, H, W) or
            (B, K, T, H, W) over their positions, class tokens included; ``"cls"`` takes the first
            token; ``"flatten"`` keeps all numbers. (B, K) is taken as it is. A function gets the
            output as returned and must return (B, K).

    Returns:
        The embeddings, (B, K).

    Raises:
        TypeError: If the output holds no tensor.
        ValueError: If the shape cannot be pooled in this way.
    """
    if callable(pool):
        embeddings = pool(output)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
            raise ValueError(
                f"`pool` must return a (B, K) tensor, got {type(embeddings).__name__} of shape {shape}."
            )
        return embeddings
    check_pool(pool)
    tensor = _select(output)
    if tensor.ndim < 2:
        raise ValueError(
            "`encoder` must return one embedding an image, (B, K), tokens (B, N, K) or maps "
            f"(B, K, H, W), got shape {tuple(tensor.shape)}."
        )
    if tensor.ndim == 2:
        return tensor
    if pool == "flatten":
        return tensor.flatten(1)
    if tensor.ndim == 3:
        return tensor[:, 0] if pool == "cls" else tensor.mean(1)
    if pool == "cls":
        raise ValueError(f"`pool='cls'` needs tokens (B, N, K), got shape {tuple(tensor.shape)}.")
    return tensor.flatten(2).mean(2)
