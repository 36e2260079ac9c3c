"""Does what was lost come back, and go again? In go values from look to look, out come falls."""

from __future__ import annotations

import math
from typing import Any

from jepa_monitor.monitor.noise import LEAST_LOOKS, NoisyMeasure

__all__ = ["Returns"]

_FALL = math.log(1 / 0.7)  # of the logarithm: three tenths
_NOISES = 8.0  # standard deviations; a stationary measure ranges over some seven in 500 looks
_SMALL = 4.0  # divides a share, so that its logit is nearly its logarithm
_LEAST = 1e-3  # a share below is as good as nothing


class Returns:
    """Counts the times that a measure is lost and won back, each by three tenths at least.

    A fall counts when two looks in a row are that far under the last peak, a recovery when two are that
    far above the lowest value since. In a measure that varies, "that far" is eight standard deviations;
    while too few looks tell how much it varies, nothing counts. A slow decline is one fall, whatever its
    depth.
    """

    def __init__(self) -> None:
        self._noise = NoisyMeasure()
        self._falls: list[int] = []  # the steps of the looks that began them
        self._falling = False
        self._extreme: float | None = None  # the peak, or the lowest value since the fall
        self._beyond: int | None = None  # the step of a look that is to be confirmed

    def update(self, step: int, share: float, again: bool = False) -> None:
        """Take a look.

        Args:
            step: Training steps done.
            share: What there is of what there could be, 0 to about 1.
            again: Whether it takes the place of the last one; it then confirms nothing.
        """
        self._noise.update(share / _SMALL, again)
        value = math.log(max(share, _LEAST))
        far = max(_FALL, _NOISES * self._noise.noise)
        sign = 1 if self._falling else -1  # the way that would be a turn
        known = self._noise.looks >= LEAST_LOOKS
        if self._extreme is None or sign * (value - self._extreme) <= 0:
            self._extreme, self._beyond = value, None
        elif not known or sign * (value - self._extreme) < far:
            self._beyond = None
        elif self._beyond is None:
            self._beyond = step
        elif not again:
            self._falling = not self._falling
            if self._falling:
                self._falls.append(self._beyond)
            self._extreme, self._beyond = value, None

    @property
    def count(self) -> int:
        """Falls after the first one, each of which came after a recovery."""
        return max(0, len(self._falls) - 1)

    @property
    def steps(self) -> float:
        """Mean number of steps from fall to fall; 0 for fewer than two."""
        falls = self._falls
        return (falls[-1] - falls[0]) / (len(falls) - 1) if len(falls) > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers.
        """
        return {
            "noise": self._noise.state_dict(),
            "falls": list(self._falls),
            "falling": self._falling,
            "extreme": self._extreme,
            "beyond": self._beyond,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another one left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._noise.load_state_dict(state_dict["noise"])
        self._falls = list(state_dict["falls"])
        self._falling = state_dict["falling"]
        self._extreme = state_dict["extreme"]
        self._beyond = state_dict["beyond"]
