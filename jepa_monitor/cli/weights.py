"""Weights of an encoder in somebody's checkpoint: in go its keys, out come the tensors under the right prefix.

Every library wraps an encoder's state in names of its own. The official I-JEPA has
``target_encoder``/``module.``, V-JEPA 2 ``target_encoder``/``module.backbone.``, DINOv2 and DINOv3
``teacher``/``backbone.``, Lightning modules ``state_dict``/``backbone.`` and the like. None of these is
written down here: the prefix is found by the encoder's own keys, all of which must be there, in their shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Weights", "find_weights", "tensors_of"]

# What wrappers of a module put before its names: DistributedDataParallel, torch.compile, FSDP, activation
# checkpointing, DeepSpeed.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# Where there are tensors that are no weights, such as an optimiser's moments of the same shapes.
_NO_WEIGHTS = re.compile(r"opt|optim.*|scaler|.*schedul.*|callbacks|loops|loss.*|rng.*|.*config.*")
_DEPTH = 4  # of dicts in dicts
_LISTED = 3


class Weights(NamedTuple):
    """What of a checkpoint an encoder takes.

    Args:
        prefix: Where it was, such as ``target_encoder`` or ``state_dict.teacher.backbone``; empty for
            a file that is the state of an encoder.
        tensors: By the encoder's own keys.
        unused: Keys under the prefix that the encoder does not have.
    """

    prefix: str
    tensors: dict[str, Tensor]
    unused: tuple[str, ...]


def tensors_of(checkpoint: Mapping[Any, Any]) -> dict[str, Tensor]:
    """List the tensors of a checkpoint that may be weights.

    Args:
        checkpoint: A state dict, or dicts of them.

    Returns:
        Tensors by their path in the dicts, joined by dots, without what wrappers add.
    """
    return dict(_tensors(checkpoint, "", _DEPTH))


def _tensors(content: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield place + _clean(key), value
        elif isinstance(value, Mapping) and depth and not _NO_WEIGHTS.fullmatch(key.lower()):
            yield from _tensors(value, f"{place}{_clean(key)}.", depth - 1)


def _clean(name: str) -> str:
    """Take out what wrappers add."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS) or parts[-1]


def find_weights(
    encoder: Mapping[str, Tensor], checkpoint: Mapping[Any, Any], asked: str | None = None
) -> Weights:
    """Find the weights of an encoder.

    Args:
        encoder: Its state.
        checkpoint: A state dict, or dicts of them.
        asked: The end of the prefix, such as ``teacher.backbone``; default: what fits, EMA targets first.

    Returns:
        The tensors under the best prefix.

    Raises:
        ValueError: If nothing fits, with what is missing from the nearest; if several parts fit and none
            has a usual name; or if there are more layers of a kind than the encoder has.
    """
    flat = tensors_of(checkpoint)
    found = _matching(encoder, flat, asked)
    if not found.fits:
        # DINOv2 parts its blocks in chunks for FSDP: `blocks.1.7.` is the block 7.
        joined = {re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in flat.items()}
        if joined.keys() != flat.keys():
            flat = joined
            found = _matching(encoder, flat, asked)
    if not found.fits:
        raise ValueError(_misfit(encoder, flat, found.nearest, asked))
    best = min(found.fits, key=lambda prefix: (_rank(prefix), len(prefix), prefix))
    rivals = [p for p in found.fits if p != best and _rank(p) == _rank(best)]
    if rivals:
        names = ", ".join(repr(p.rstrip(".")) for p in sorted([best, *rivals]))
        raise ValueError(f"several parts of it fit, {names}: say which (`encoder`).")
    own = {_clean(key): key for key in encoder}
    tensors = {key: flat[best + name] for name, key in own.items()}
    unused = [k for k in flat if k.startswith(best) and k.removeprefix(best) not in own]
    _check_depth(list(own), [key.removeprefix(best) for key in unused], best)
    return Weights(best.rstrip("."), tensors, tuple(unused) if best else ())


class _Matches(NamedTuple):
    fits: list[str]
    nearest: str | None


def _matching(
    encoder: Mapping[str, Tensor], flat: Mapping[str, Tensor], asked: str | None
) -> _Matches:
    """Find the prefixes under which all keys of the encoder are, in their shapes."""
    own = {_clean(key): value.shape for key, value in encoder.items()}
    ends: dict[str, list[str]] = {}
    for name in own:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    named: Counter[str] = Counter()
    shaped: Counter[str] = Counter()
    for key, value in flat.items():
        for name in ends.get(key.rpartition(".")[2], ()):
            prefix = key.removesuffix(name)
            if not (key == name or key.endswith(f".{name}")):
                continue
            if asked is None or f".{prefix}".endswith(f".{_clean(asked)}."):
                named[prefix] += 1
                shaped[prefix] += value.shape == own[name]
    fits = [prefix for prefix, count in shaped.items() if count == len(own)]
    nearest = max(named, key=lambda p: (named[p], shaped[p], -_rank(p)), default=None)
    return _Matches(fits, nearest)


def _rank(prefix: str) -> int:
    """Order prefixes as the callback orders submodules: EMA targets first, then the usual names."""
    from jepa_monitor.callbacks.discovery import USUAL_NAMES

    places = [USUAL_NAMES.index(p) for p in prefix.split(".") if p in USUAL_NAMES]
    return min(places, default=len(USUAL_NAMES))


def _misfit(
    encoder: Mapping[str, Tensor], flat: Mapping[str, Tensor], prefix: str | None, asked: str | None
) -> str:
    own = {_clean(key): tuple(value.shape) for key, value in encoder.items()}
    if not flat:
        return "it holds no weights."
    where = "" if asked is None else f" under {asked!r} (`encoder`)"
    if prefix is None:
        return (
            f"it has none of the encoder's {len(own)} keys ({_some(list(own))}){where}, but "
            f"{_some(list(flat))}."
        )
    missing = [name for name in own if prefix + name not in flat]
    shapes = [
        f"{name} {own[name]}, not {tuple(flat[prefix + name].shape)}"
        for name in own
        if prefix + name in flat and tuple(flat[prefix + name].shape) != own[name]
    ]
    place = f" under {prefix.rstrip('.')!r}" if prefix else where
    said = []
    if missing:
        said.append(
            f"{len(missing)} of the encoder's {len(own)} keys are missing ({_some(missing)})"
        )
    if shapes:
        said.append(f"{len(shapes)} have another shape (the encoder has {_some(shapes)})")
    return f"{' and '.join(said)}{place}."


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _check_depth(own: list[str], unused: list[str], prefix: str) -> None:
    """Refuse a deeper network than the encoder: its first layers alone are another encoder."""
    known = {layer for name in own for layer in _layers(name)}
    lists = {place for place, _ in known}
    for name in unused:
        for place, number in _layers(name):
            if place in lists and (place, number) not in known:
                layer = f"{place}.{number}" if place else number
                where = f" under {prefix.rstrip('.')!r}" if prefix else ""
                raise ValueError(
                    f"it has {layer}{where}, which the encoder has not: another architecture."
                )


def _layers(name: str) -> list[tuple[str, str]]:
    """Find the numbered parts of a key, and what they are numbers in."""
    parts = name.split(".")
    return [(".".join(parts[:n]), part) for n, part in enumerate(parts) if part.isdigit()]
