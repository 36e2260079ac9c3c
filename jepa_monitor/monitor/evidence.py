"""What fell together with a collapse: in go the numbers of each look, out come words for the cause.

They decide nothing. A measure is named only where it has fallen by more than it varies: where its 95 % interval lies
under the best one before, or, of a measure without an interval, by three tenths and beyond the noise of 20 looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_monitor.monitor.noise import LEAST_LOOKS, NoisyMeasure

__all__ = ["Fallen"]

_WITH_INTERVAL = {
    "views/retrieval": "Views of one image find each other less",
    "tokens/view_neighbors": "Patches find their place in another view less",
}
_WITHOUT = {"tokens/rank_across_relative": "The tokens use fewer directions as well"}
_LEFT = 0.7  # of the best


class Fallen:
    """Remembers the best of each measure."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, float]] = {}  # by tag: lower end, value
        self._noisy = {tag: NoisyMeasure() for tag in _WITHOUT}

    def update(self, scalars: Mapping[str, float], again: bool = False) -> str:
        """Take a look.

        Args:
            scalars: By tag, without prefix; what is not there is passed over.
            again: Whether it takes the place of the last one.

        Returns:
            A sentence for each measure that has fallen; empty where none has.
        """
        found = []
        for tag, words in _WITH_INTERVAL.items():
            ends = [scalars.get(f"{tag}{end}") for end in ("_low", "", "_high")]
            if any(end is None for end in ends):
                continue
            low, now, high = (float(end) for end in ends if end is not None)
            least, before = self._best.get(tag, (low, now))
            if high < least:
                found.append(_say(words, tag, now, before))
            if low >= least:
                self._best[tag] = low, now
        for tag, words in _WITHOUT.items():
            value = scalars.get(tag)
            if value is None:
                continue
            measure = self._noisy[tag]
            most = measure.update(value, again)
            enough = measure.looks >= LEAST_LOOKS
            if enough and most < measure.level and value < _LEFT * measure.highest:
                found.append(_say(words, tag, value, measure.highest))
        return " ".join(found)

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers by tag.
        """
        noisy = {tag: measure.state_dict() for tag, measure in self._noisy.items()}
        return {"best": {tag: list(ends) for tag, ends in self._best.items()}, "noisy": noisy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another one left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._best = {tag: (ends[0], ends[1]) for tag, ends in state_dict["best"].items()}
        for tag, measure in self._noisy.items():
            if tag in state_dict["noisy"]:
                measure.load_state_dict(state_dict["noisy"][tag])


def _say(words: str, tag: str, now: float, before: float) -> str:
    return f"{words} ({tag} {now:.2f}, was {before:.2f})."
