"""Ask insights: in goes a look, out come numbers by tag, and who had nothing to say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jepa_monitor.encoders.processes import Processes
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.insights.base import Insight
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part

__all__ = ["ask", "parts_of"]


def parts_of(insights: Iterable[Insight]) -> list[Part[Any]]:
    """List what insights need and want.

    Args:
        insights: Whom to ask.

    Returns:
        Their parts, equal ones as often as they are named.
    """
    return [part for insight in insights for part in (*insight.needs, *insight.wants)]


def ask(
    insights: Iterable[Insight],
    look: Look,
    broken: Mapping[Any, Exception],
    processes: Processes | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Ask every insight for its numbers; one that fails is left out, the others go on.

    All processes ask, and then have the first one's numbers: an insight that failed in any of them
    is left out in all.

    Args:
        insights: Whom to ask.
        look: What was gathered.
        broken: What went wrong in gathering.
        processes: Those that look together.

    Returns:
        Finite numbers by tag, and the reasons of those that failed by name.
    """
    scalars: dict[str, dict[str, float]] = {}
    failed = {f"detector {name}": _why(e) for name, e in broken.items() if isinstance(name, str)}
    taken: set[str] = set()
    for insight in insights:
        try:
            found = _checked(insight, look, broken, taken)
        except Exception as error:  # noqa: BLE001 - maybe somebody else's code
            failed[insight.name] = _why(error)
            continue
        scalars[insight.name] = found
        taken |= found.keys()
    answers = (processes or Processes(False)).gather(lambda: (scalars, failed))
    lost = {name: why for _, other in answers for name, why in other.items()}
    kept = [found for name, found in answers[0][0].items() if name not in lost]
    return {tag: value for found in kept for tag, value in found.items()}, lost


def _checked(
    insight: Insight, look: Look, broken: Mapping[Any, Exception], taken: set[str]
) -> dict[str, float]:
    for part in insight.needs:
        if part in broken:
            raise broken[part]
        if part not in look.parts and part.of_images and is_texts(look.probe.images):
            raise LookupError("it is of images, and the probe holds texts")
        if part not in look.parts:
            raise LookupError(f"it needs {part.source or part}, which was not given")
    for part in insight.wants:
        if part in broken:
            raise broken[part]
    found = {tag: float(value) for tag, value in insight.scalars(look).items()}
    for tag, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{tag!r} is {value}: what cannot be computed must be absent")
    if twice := sorted(taken & found.keys()):
        raise ValueError(f"the tag {twice[0]!r} is another insight's")
    return found


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
