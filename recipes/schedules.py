"""Schedules as pure functions of the optimiser step, so that resuming is exact."""

import math


def _progress(step: int, total: int) -> float:
    return min(step / max(total - 1, 1), 1.0)


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Go from ``start`` to ``end`` on half a cosine; flat at ``end`` afterwards.

    Args:
        step: Optimiser steps done so far, at least 0.
        total: Steps of the whole run; ``end`` is reached at the last one, ``total - 1``.
        start: Value at step 0.
        end: Value from the last step on.

    Returns:
        The value at ``step``, between ``start`` and ``end``.
    """
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * _progress(step, total)))


def linear(step: int, total: int, start: float, end: float) -> float:
    """Go from ``start`` to ``end`` on a straight line; flat at ``end`` afterwards.

    Args:
        step: Optimiser steps done so far, at least 0.
        total: Steps of the whole run; ``end`` is reached at the last one, ``total - 1``.
        start: Value at step 0.
        end: Value from the last step on.

    Returns:
        The value at ``step``, between ``start`` and ``end``.
    """
    return start + (end - start) * _progress(step, total)


def warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """Rise on a straight line to ``peak``, then fall to ``end`` on half a cosine.

    Args:
        step: Optimiser steps done so far, at least 0.
        total: Steps of the whole run; ``end`` is reached at the last one, ``total - 1``.
        warmup: Steps of the rise, from ``peak / warmup`` at step 0 to ``peak`` at ``warmup - 1``.
        peak: The highest value.
        end: Value from the last step on.

    Returns:
        The value at ``step``, between 0 and ``peak``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(step - warmup, total - warmup, peak, end)
