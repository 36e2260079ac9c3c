"""Find what leaves each block of an encoder: in goes a forward pass, out come pooled embeddings by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jepa_monitor.encoders.modules import modules_of, unwrap
from jepa_monitor.encoders.tokens import prefix_of

__all__ = ["LayerEncoder", "LayerError", "find_layers", "layer_embeddings"]

_MOST = 0.5  # of a block's parameters, held by blocks inside of it: then those are the layers


class LayerError(ValueError):
    """An encoder has no layers that can be told."""


def find_layers(modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Find the blocks that an encoder is a chain of.

    Those are the elements of its lists and sequences that are made of modules themselves: the blocks of a
    transformer, the residual blocks of a convolutional network, whether in stages or not. Of a network
    without such blocks, the linear and convolutional layers of its sequences.

    Args:
        modules: The roots of the encoder.

    Returns:
        Blocks by name, in the order in which they are defined; none if there are not two at least.
    """
    roots = list(modules)
    names = {module: name for root in roots for name, module in root.named_modules()}
    for search in (_blocks, _plain):
        found = list(dict.fromkeys(block for root in roots for block in search(root)))
        if len(found) > 1:
            return {names[block] or str(n): block for n, block in enumerate(found)}
    return {}


def layer_embeddings(
    encoder: Callable[[Tensor], Any],
    modules: Iterable[nn.Module],
    images: Tensor,
    only: str | None = None,
) -> dict[str, Tensor]:
    """Pass images through an encoder once, and pool what leaves each of its blocks.

    Tokens (B, T, d) become the mean of the patch tokens (class and register tokens left out), maps
    (B, d, h, w) or (B, h, w, d) the mean over their places.

    Args:
        encoder: What to call.
        modules: Those that it computes with. For the time of the call they have hooks.
        images: (B, ...).
        only: The name of one layer.

    Returns:
        (B, d) by layer, with its graph, in the order of the pass; blocks that were not reached, or that give
        nothing for each image, are not among them.

    Raises:
        LayerError: If there is no layer, or not the one that was named.
    """
    roots = list(modules)
    layers = find_layers(roots)
    if only is not None:
        layers = {name: block for name, block in layers.items() if name == only}
    with _catching(layers) as caught:
        encoder(images)
    prefix = functools.cache(lambda width: prefix_of(roots, width)[0])
    found = {
        name: pooled
        for name, output in caught.items()
        if (pooled := _pooled(output, layers[name], prefix, len(images))) is not None
    }
    if not found:
        asked = "layers" if only is None else f"layer {only!r}"
        raise LayerError(
            f"`encoder` has no {asked}: it is no chain of blocks (elements of a ModuleList or Sequential) that "
            "each give tokens (B, T, d), maps (B, d, h, w) or vectors (B, d)."
        )
    return found


class LayerEncoder:
    """An encoder up to the end of one of its blocks: its embedding is what leaves that, pooled.

    Args:
        encoder: A module or callable.
        name: Of the block, one of those that :func:`layer_embeddings` gives.

    Raises:
        LayerError: When called, if there is no such block.
    """

    def __init__(self, encoder: Any, name: str) -> None:
        self.encoder = unwrap(encoder)
        self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, ...).

        Returns:
            (B, d).
        """
        roots = modules_of(self.encoder)
        return layer_embeddings(self.encoder, roots, images, self.name)[self.name]


@contextmanager
def _catching(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Put hooks on blocks for the time of a pass; of a block that is called twice the last output counts."""
    caught: dict[str, Any] = {}

    def catch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            caught.pop(name, None)
            caught[name] = output

        return hook

    handles = [block.register_forward_hook(catch(name)) for name, block in layers.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _blocks(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, torch.jit.ScriptModule):
        return []  # which takes no hook
    found: list[nn.Module] = []
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        inside = _blocks(child)
        is_block = listed and next(child.children(), None) is not None
        whole = _size([child]) if is_block else 0
        is_block = is_block and whole > 0
        # A stage is a chain of blocks of one class; what a block is made of differs.
        is_stage = _size(inside) >= _MOST * whole and len({type(each) for each in inside}) == 1
        found += [child] if is_block and not is_stage else inside
    return found


def _plain(module: nn.Module) -> list[nn.Module]:
    listed = isinstance(module, nn.Sequential)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if listed and isinstance(child, kinds) else _plain(child)
    return found


def _size(modules: Sequence[nn.Module]) -> int:
    return sum(tensor.numel() for module in modules for tensor in module.parameters())


def _pooled(
    output: Any, block: nn.Module, prefix: Callable[[int], int], images: int
) -> Tensor | None:
    found = _first(output)
    if found is None or not found.is_floating_point():
        return None
    if found.ndim == 3 and found.shape[0] != images and found.shape[1] == images:
        found = found.transpose(0, 1)  # of open_clip and nn.TransformerEncoder: tokens come first
    if found.ndim < 2 or found.shape[0] != images:
        return None
    if found.ndim == 2:
        return found
    if found.ndim == 3:
        others = prefix(found.shape[2])
        return found[:, others if others < found.shape[1] else 0 :].mean(1)
    if found.ndim != 4:
        return None
    return found.mean((1, 2) if _channels_last(block, found.shape) else (2, 3))


def _channels_last(block: nn.Module, shape: torch.Size) -> bool:
    """Say whether a map is (B, h, w, d), as between the blocks of a Swin transformer."""
    widths = {
        module.normalized_shape[0] for module in block.modules() if isinstance(module, nn.LayerNorm)
    }
    return shape[-1] in widths and shape[1] not in widths


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if not isinstance(output, tuple | list):
        return None
    return next((found for value in output if (found := _first(value)) is not None), None)
