"""How much a measure varies by itself: in go values from look to look, out come values beyond doubt."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

__all__ = ["NoisyMeasure"]

_RECENT = 100  # looks that the noise is estimated from
_LEAST = 20  # with fewer no noise is assumed; a single fall spoils six of their differences
_LAG = 3  # looks between those that are compared, as neighbours may be alike
_DOUBT = 4.0  # standard deviations
_EDGE = 1e-4  # of the logit scale


def _logit(value: float) -> float:
    inside = min(max(value, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class NoisyMeasure:
    r"""A measure from 0 to about 1, followed from look to look with its noise.

    The noise is the standard deviation of its logits about whatever they follow: second differences
    :math:`x_t - 2 x_{t-3} + x_{t-6}`, in which a steady rise or fall cancels, have a variance of
    6 σ² where looks three apart are independent; their median absolute deviation ignores a sudden
    fall. Noise that lasts longer than that is underestimated.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._highest: float | None = None

    def update(self, value: float, again: bool = False) -> float:
        """Take a value.

        Args:
            value: The measure.
            again: Whether it takes the place of the last one.

        Returns:
            What the measure is at most, four standard deviations above the value; the value itself
            if no noise is known.
        """
        if again and self._recent:
            self._recent.pop()
        self._recent.append(_logit(value))
        self._highest = value if self._highest is None else max(self._highest, value)
        doubt = _DOUBT * self.noise
        return _share(_logit(value) + doubt) if doubt else value

    @property
    def noise(self) -> float:
        """Standard deviation of the logits, by their second differences; 0 for under 20 looks."""
        values = list(self._recent)
        if len(values) < _LEAST:
            return 0.0
        triples = zip(values, values[_LAG:], values[2 * _LAG :], strict=False)
        bends = [before - 2 * middle + after for before, middle, after in triples]
        middle = statistics.median(bends)
        return 1.4826 * statistics.median(abs(bend - middle) for bend in bends) / math.sqrt(6)

    @property
    def level(self) -> float:
        """What the measure once was at least: four standard deviations under its highest value."""
        highest = self._highest or 0.0
        doubt = _DOUBT * self.noise
        return _share(_logit(highest) - doubt) if doubt else highest

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers.
        """
        return {"recent": list(self._recent), "highest": self._highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another one left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._recent = deque(state_dict["recent"], maxlen=_RECENT)
        self._highest = state_dict["highest"]
