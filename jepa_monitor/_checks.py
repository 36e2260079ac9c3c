"""Checks of arguments: each takes a value, raises an error that names it, or returns it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_choice", "check_images", "check_positive", "check_positive_int"]


def check_positive_int(value: Any, name: str) -> int:
    """Return ``value`` if it is an integer of at least 1.

    Args:
        value: What the caller gave.
        name: Name of the argument.

    Returns:
        The value.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
    return value


def check_positive(value: Any, name: str) -> float:
    """Return ``value`` as a float if it is a finite number above 0.

    Args:
        value: What the caller gave.
        name: Name of the argument.

    Returns:
        The value as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, got {value!r} ({type(value).__name__}).")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be finite and above 0, got {value}.")
    return float(value)


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the choices.

    Args:
        value: What the caller gave.
        name: Name of the argument.
        choices: What is allowed.

    Returns:
        The value.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    return str(value)


def check_images(images: Any, name: str = "images") -> Tensor:
    """Return ``images`` detached if it is a non-empty batch of finite floating-point inputs.

    Args:
        images: What the caller gave; (B, ...) with at least one more dimension.
        name: Name of the argument.

    Returns:
        The images, detached from any graph.

    Raises:
        TypeError: If it is no tensor of floating-point numbers.
        ValueError: If it is empty, has no batch dimension or holds NaN or infinity.
    """
    import torch  # the other checks serve `jepa-monitor --help`, which has no use for it

    if not isinstance(images, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(images).__name__}.")
    if not images.is_floating_point():
        raise TypeError(
            f"`{name}` must be floating point, as the encoder takes them after its preprocessing, "
            f"got {images.dtype}. Convert and normalise them first: the Jacobian is taken with "
            "respect to what the encoder sees."
        )
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(
            f"`{name}` must have shape (B, ...) with at least one image and one pixel, "
            f"got {tuple(images.shape)}."
        )
    bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if bad:
        raise ValueError(
            f"`{name}` must be finite, but {bad} of {len(images)} images hold NaN or infinite pixels."
        )
    return images.detach()
