"""Argument checks that raise with the argument's name, what came and what was expected."""

from __future__ import annotations

import math

from torch import Tensor


def as_matrix(value: Tensor, name: str, min_rows: int = 1) -> Tensor:
    """Return ``value`` in float64 if it is a finite floating-point matrix (N, K).

    Args:
        value: What the caller passed.
        name: Its name in the caller's signature.
        min_rows: Smallest N that the caller can work with.

    Returns:
        The matrix in float64, on the device where it came from.

    Raises:
        ValueError: If the shape is wrong, rows are too few, or any row is not finite.
    """
    return _as_double(value, name, "(N, K) with K ≥ 1", min_rows, (1,))


def as_views(value: Tensor, name: str, min_samples: int, min_views: int) -> Tensor:
    """Return ``value`` in float64 if it is a finite floating-point stack (N, V, K).

    Args:
        value: What the caller passed: V views of each of N samples.
        name: Its name in the caller's signature.
        min_samples: Smallest N that the caller can work with.
        min_views: Smallest V that the caller can work with.

    Returns:
        The stack in float64, on the device where it came from.

    Raises:
        ValueError: If the shape is wrong, views are too few, or any sample is not finite.
    """
    shape = f"(N, V, K) with V ≥ {min_views} and K ≥ 1"
    return _as_double(value, name, shape, min_samples, (min_views, 1))


def as_vector(value: Tensor, name: str, min_size: int = 1) -> Tensor:
    """Return ``value`` in float64 if it is a finite floating-point vector (N,).

    Args:
        value: What the caller passed.
        name: Its name in the caller's signature.
        min_size: Smallest N that the caller can work with.

    Returns:
        The vector in float64, on the device where it came from.

    Raises:
        ValueError: If the shape is wrong, values are too few, or any value is not finite.
    """
    return _as_double(value, name, "(N,)", min_size, ())


def as_unit_interval(value: Tensor, name: str, min_size: int = 1) -> Tensor:
    """Return ``value`` in float64 if it is a vector of numbers from 0 to 1.

    Args:
        value: What the caller passed.
        name: Its name in the caller's signature.
        min_size: Smallest N that the caller can work with.

    Returns:
        The vector in float64, on the device where it came from.

    Raises:
        ValueError: If a number lies outside [0, 1].
    """
    vector = as_vector(value, name, min_size)
    low, high = vector.min().item(), vector.max().item()
    if low < 0 or high > 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got values from {low:g} to {high:g}.")
    return vector


def require_same_shape(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise unless two tensors have one shape.

    Args:
        first: One tensor.
        second: The other tensor.
        names: The names of both in the caller's signature.
    """
    _require_equal(first.shape == second.shape, first, second, names, "shape")


def require_same_width(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise unless two tensors have one last dimension.

    Args:
        first: One tensor.
        second: The other tensor.
        names: The names of both in the caller's signature.
    """
    same = first.shape[-1] == second.shape[-1]
    _require_equal(same, first, second, names, "last dimension")


def require_same_rows(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise unless two tensors have one number of rows.

    Args:
        first: One tensor.
        second: The other tensor.
        names: The names of both in the caller's signature.
    """
    _require_equal(len(first) == len(second), first, second, names, "number of rows")


def require_number(
    value: float, name: str, low: float, high: float = math.inf, *, closed: bool = True
) -> float:
    """Return ``value`` as a float if it is a finite number within bounds.

    Args:
        value: What the caller passed.
        name: Its name in the caller's signature.
        low: Lower bound.
        high: Upper bound.
        closed: Whether the bounds themselves are allowed.

    Returns:
        The value as a float.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If the value is not finite or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}.")
    inside = low <= value <= high if closed else low < value < high
    if not inside or not math.isfinite(value):
        left, right = ("[", "]") if closed else ("(", ")")
        right = ")" if math.isinf(high) else right
        raise ValueError(f"`{name}` must lie in {left}{low:g}, {high:g}{right}, got {value}.")
    return float(value)


def _as_double(
    value: Tensor, name: str, shape: str, min_rows: int, least: tuple[int, ...]
) -> Tensor:
    """Check dtype, shape, number of rows and finiteness; ``least`` bounds the other dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor, got {value.dtype}.")
    sizes = value.shape[1:]
    if value.ndim != 1 + len(least) or any(s < m for s, m in zip(sizes, least, strict=True)):
        raise ValueError(f"`{name}` must have shape {shape}, got {tuple(value.shape)}.")
    if len(value) < min_rows:
        plural = "s" if min_rows > 1 else ""
        raise ValueError(f"`{name}` must have at least {min_rows} row{plural}, got {len(value)}.")
    finite = value.isfinite()
    while finite.ndim > 1:
        finite = finite.all(dim=-1)
    broken = int((~finite).sum())
    if broken:
        unit = "rows" if least else "values"
        raise ValueError(
            f"`{name}` has {broken} non-finite {unit} of {len(value)}; "
            "count them and filter them out first."
        )
    return value.double()


def _require_equal(
    same: bool, first: Tensor, second: Tensor, names: tuple[str, str], what: str
) -> None:
    if not same:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same {what}, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )
