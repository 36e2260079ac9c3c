"""Small statistics that several insights share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["finite_only", "quantile_scalars", "with_ends"]


def finite_only(values: Tensor) -> Tensor:
    """Leave out what is not finite.

    Args:
        values: (N,).

    Returns:
        (n,).
    """
    return values[torch.isfinite(values)]


def with_ends(group: str, *names: str) -> tuple[str, ...]:
    """Name values and the ends of their intervals.

    Args:
        group: What the tags begin with.
        names: Of the values.

    Returns:
        ``<group>/<name>``, ``<group>/<name>_low`` and ``<group>/<name>_high`` of each.
    """
    return tuple(f"{group}/{name}{end}" for name in names for end in ("", "_low", "_high"))


def quantile_scalars(prefix: str, values: Tensor) -> dict[str, float]:
    """Summarise a distribution.

    Args:
        prefix: Of the tags.
        values: (N,); what is not finite is left out.

    Returns:
        ``<prefix>/mean``, ``/p05``, ``/p50``, ``/p95`` and, of more than one value, ``/std``.
    """
    finite = finite_only(values)
    if not len(finite):
        return {}
    low, median, high = torch.quantile(finite, finite.new_tensor([0.05, 0.5, 0.95])).tolist()
    scalars = {
        f"{prefix}/mean": finite.mean().item(),
        f"{prefix}/p05": low,
        f"{prefix}/p50": median,
        f"{prefix}/p95": high,
    }
    if len(finite) > 1:
        scalars[f"{prefix}/std"] = finite.std().item()
    return scalars
