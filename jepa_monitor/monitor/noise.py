"""How much a measure varies by itself: in go values from look to look, out come values beyond doubt."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from typing import Any

__all__ = ["LEAST_LOOKS", "NoisyMeasure"]

_RECENT = 100  # looks that the noise is estimated from
LEAST_LOOKS = 20  # with fewer no noise is assumed
_LAGS = (
    1,
    10,
)  # looks between those that are compared; the longer one at most a sixth of the looks
_BREAK = (
    5.0  # times the scale of second differences: 7 standard deviations of a step of AR(1) noise
)
_LEAST_BENDS = 6  # second differences that tell a scale
_MOST_ALIKE = 0.95  # correlation of neighbouring looks that is believed at most
_DOUBT = 4.0  # standard deviations
# Ends of the logit scale. Above the higher one a measure is at its best, and where exactly means nothing.
_EDGES = (1e-4, 0.95)


def _logit(value: float) -> float:
    inside = min(max(value, _EDGES[0]), _EDGES[1])
    return math.log(inside / (1 - inside))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _scale(stretches: list[list[float]], lag: int) -> float | None:
    """Give the spread of second differences, whatever a few of them are; ``None`` where they are too few."""
    bends = [
        before - 2 * middle + after
        for values in stretches
        for before, middle, after in zip(values, values[lag:], values[2 * lag :], strict=False)
    ]
    if len(bends) < _LEAST_BENDS:
        return None
    middle = statistics.median(bends)
    return 1.4826 * statistics.median([abs(bend - middle) for bend in bends])


def _stretches(values: list[float]) -> list[list[float]]:
    """Part values where they step further than noise does, or else a collapse would be half of the bends."""
    near = _scale([values], 1) or 0.0
    breaks = [
        n
        for n, (before, after) in enumerate(itertools.pairwise(values), 1)
        if abs(after - before) > _BREAK * near
    ]
    ends = itertools.pairwise([0, *breaks, len(values)])
    return [values[start:end] for start, end in ends]


def _scales(values: list[float]) -> tuple[int, float, float] | None:
    """Give the longer lag, and the spread of second differences of the shorter and of the longer."""
    stretches = _stretches(values)
    near = _scale(stretches, _LAGS[0])
    if near is None:
        return None
    for lag in range(min(_LAGS[1], len(values) // 6), 0, -1):
        far = _scale(stretches, lag)
        if far is not None:
            return lag, near, far
    return None


def _noise(values: list[float]) -> float:
    """Give the standard deviation of stationary noise, raised by what is unknown of it."""
    count = len(values)
    if count < LEAST_LOOKS:
        return 0.0
    scales = _scales(values)
    if scales is None:
        return 0.0
    short, (long, near, far) = _LAGS[0], scales

    def variance(alike: float, lag: int) -> float:
        return 6 - 8 * alike**lag + 2 * alike ** (2 * lag)

    # The ratio of the two grows with the correlation.
    low, high = 0.0, _MOST_ALIKE
    for _ in range(20):
        alike = (low + high) / 2
        less = far**2 * variance(alike, short) < near**2 * variance(alike, long)
        low, high = (low, alike) if less else (alike, high)
    sd = far / math.sqrt(variance(low, long))
    return sd * (1 + math.sqrt((1 + low) / ((1 - low) * count)))


class NoisyMeasure:
    r"""A measure from 0 to about 1, followed from look to look with its noise.

    The noise is the standard deviation σ of its logits about whatever they follow, taken for stationary
    with a correlation of φ from look to look. In second differences
    :math:`x_t - 2 x_{t-l} + x_{t-2l}` a steady rise or fall cancels; their variance is
    :math:`\sigma^2 (6 - 8 \varphi^l + 2 \varphi^{2l})`, and their median absolute deviation ignores a
    few outliers. Between two looks that differ by more than noise does, the measure has moved, and nothing is
    compared across them. A short and a long lag together tell φ and σ. As correlated looks tell less, σ is raised
    by :math:`\sqrt{(1 + \varphi) / ((1 - \varphi)\, n)}` of itself.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._highest: float | None = None
        self.noise = 0.0  # standard deviation of the logits; 0 for under 20 looks

    def update(self, value: float, again: bool = False) -> float:
        """Take a value.

        Args:
            value: The measure.
            again: Whether it takes the place of the last one.

        Returns:
            What the measure is at most: four standard deviations above the value, but no more than the
            highest of the last 20 values, since a level is not above all that varies about it. The value
            itself if no noise is known.
        """
        if again and self._recent:
            self._recent.pop()
        self._recent.append(_logit(value))
        self.noise = _noise(list(self._recent))
        self._highest = value if self._highest is None else max(self._highest, value)
        doubt = _DOUBT * self.noise
        if not doubt:
            return value
        lately = itertools.islice(reversed(self._recent), LEAST_LOOKS)
        return _share(min(_logit(value) + doubt, max(lately)))

    @property
    def looks(self) -> int:
        """How many values the noise is estimated from."""
        return len(self._recent)

    @property
    def highest(self) -> float:
        """The highest value; 0 before the first."""
        return self._highest or 0.0

    @property
    def level(self) -> float:
        """What the measure once was at least: four standard deviations under its highest value."""
        doubt = _DOUBT * self.noise
        return _share(_logit(self.highest) - doubt) if doubt else self.highest

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
        self.noise = _noise(list(self._recent))
