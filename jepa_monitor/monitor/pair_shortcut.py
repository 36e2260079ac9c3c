"""Has the loss of pairs been lowered by what all texts share? In go the numbers of each look, out comes 0 or 1.

A loss 1 − cos of two views falls where the embeddings of a pair come together, and as well where all embeddings do. The second
is a shortcut: the loss says success, and the views of one thing are no nearer to each other than to those of others. Seen on
held-out pairs, since the first look the loss (1 − ``text/aligned``) has fallen, ``text/common_share`` has risen, and
``text/pair_gap`` has not risen with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

__all__ = ["follow_pairs"]

_LEFT = 0.5  # of what the loss was at first, and of what the common share was short of 1
_FLAT = 0.1  # of the fall of the loss: by so little the gap may have risen, or by its error
_CONFIRMATIONS = 2  # looks in a row that begin or end it
_NAMES = ("aligned", "common_share", "pair_gap", "pair_gap_error")


def follow_pairs(
    memory: MutableMapping[str, Any], step: int, scalars: Mapping[str, float]
) -> dict[str, float]:
    """Compare the pairs of a look with those of the run's first look.

    Args:
        memory: Of the run, plain numbers; takes the first look.
        step: Training steps done. A second look at a step takes the place of the first.
        scalars: Of the look, by tag, without prefix.

    Returns:
        ``text/shortcut``: 1 from the second look in a row that finds one, to the second that does not; and, beside a 1,
        what cosine and gap were at first. Nothing without pairs.

    Example:
        >>> def look(aligned, common, gap):
        ...     return {"text/aligned": aligned, "text/common_share": common, "text/pair_gap": gap, "text/pair_gap_error": 0.01}
        >>> memory = {}
        >>> looks = [look(0.5, 0.4, 0.1), look(0.98, 0.97, 0.1), look(0.99, 0.98, 0.1)]
        >>> [follow_pairs(memory, n, seen)["text/shortcut"] for n, seen in enumerate(looks)]
        [0.0, 0.0, 1.0]
    """
    if any(f"text/{name}" not in scalars for name in _NAMES):
        return {}
    now = {name: scalars[f"text/{name}"] for name in _NAMES}
    kept = memory.setdefault(
        "pairs", {"first": now, "taken": False, "against": 0, "before": 0, "step": -1}
    )
    seen = _is_shortcut(kept["first"], now)
    if step != kept["step"]:
        kept["before"], kept["step"] = kept["against"], step
    kept["against"] = 0 if seen == kept["taken"] else kept["before"] + 1
    if kept["against"] >= _CONFIRMATIONS:
        kept["taken"], kept["against"], kept["before"] = seen, 0, 0
    if not kept["taken"]:
        return {"text/shortcut": 0.0}
    first = {f"text/{name}_first": kept["first"][name] for name in ("aligned", "pair_gap")}
    return {"text/shortcut": 1.0, **first}


def _is_shortcut(first: Mapping[str, float], now: Mapping[str, float]) -> bool:
    loss, before = 1 - now["aligned"], 1 - first["aligned"]
    if loss >= _LEFT * before or 1 - now["common_share"] >= _LEFT * (1 - first["common_share"]):
        return False
    noise = math.hypot(now["pair_gap_error"], first["pair_gap_error"])
    return now["pair_gap"] - first["pair_gap"] <= max(noise, _FLAT * (before - loss))
