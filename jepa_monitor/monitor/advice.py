"""Which look of a run is the best so far? In go its scalars as training goes on, out comes a number from 0 to 1.

The rule, the whole of it: how often two random views of a held-out image find each other
(``views/retrieval``, 0 where that is chance), averaged over the looks so far with weights that fall by a
third from each look to the one before::

    quality = quality before + (retrieval now − quality before) / 3

No label is used, nothing of later looks, and no rank among the earlier ones, so that the values of two looks
can be compared. Of some forty candidates, most of what is published among them, retrieval told best which of
two checkpoints of a run is the better one; the average takes out some of its noise. It needs no gate for a
collapse: embeddings that are alike find each other no more often than by chance. ``docs/advice.md`` has the
candidates, what the rule is worth, and for which encoders that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Advisor", "advice_sentence", "is_founded"]

WEIGHT = 1 / 3  # of the look at hand; the runs of docs/advice.md with seed 0 chose it
_SAME = 1e-9  # a rounding, not a loss


class Advisor:
    """Follows a run, look by look, and says which look to keep so far.

    Example:
        >>> advisor = Advisor()
        >>> for step, retrieval in ((0, 0.1), (10, 0.4), (20, 0.1)):
        ...     told = advisor.update(step, {"views/retrieval": retrieval})
        >>> round(told["advice/quality"], 3), round(told["advice/best"], 3), told["advice/step"]
        (0.167, 0.2, 10.0)
    """

    def __init__(self) -> None:
        self._step: float | None = None
        self._before: float | None = None  # quality without the look at hand
        self._quality: float | None = None
        self._best: tuple[float, float] | None = None  # without the look at hand: quality, step
        self._highest: tuple[float, float] | None = None

    def update(self, step: float, scalars: Mapping[str, float]) -> dict[str, float]:
        """Take a look.

        Args:
            step: Training steps done; looks come in order. A second look at the same step replaces the
                first.
            scalars: Of the look, by tag, without prefix.

        Returns:
            ``advice/quality``, 0 to 1; ``advice/best``, the highest so far; ``advice/step``, where that was:
            of equals the last. Nothing where the look has no ``views/retrieval``; the next then goes on
            from the look before.

        Raises:
            ValueError: If the step is before the last one. Nothing is changed then.
        """
        if self._step is not None and step < self._step:
            raise ValueError(f"`step` must not decrease: got {step} after {self._step}.")
        if step != self._step:
            self._before, self._best = self._quality, self._highest
        self._step = step
        retrieval = scalars.get("views/retrieval")
        if retrieval is None:
            self._quality, self._highest = self._before, self._best
            return {}
        found = min(1.0, max(0.0, retrieval))  # below chance is chance
        before = found if self._before is None else self._before
        self._quality = before + WEIGHT * (found - before)
        mine = (self._quality, float(step))
        worse = self._best is not None and self._best[0] > self._quality + _SAME
        self._highest = self._best if worse else mine
        assert self._highest is not None
        return {
            "advice/quality": self._quality,
            "advice/best": self._highest[0],
            "advice/step": self._highest[1],
        }

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Returns:
            Plain numbers.
        """
        return {
            "step": self._step,
            "before": self._before,
            "quality": self._quality,
            "best": self._best,
            "highest": self._highest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another advisor left off.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._step = state_dict["step"]
        self._before = state_dict["before"]
        self._quality = state_dict["quality"]
        self._best = state_dict["best"]
        self._highest = state_dict["highest"]


def is_founded(scalars: Mapping[str, float], best: float) -> bool:
    """Say whether views find each other by more than what raw pixels have in common.

    Args:
        scalars: Of the look at hand, by tag, without prefix.
        best: The highest ``advice/quality`` so far.

    Returns:
        Whether it is above the retrieval of raw pixels by more than half of the interval of the look's own;
        also where that of pixels is not known.
    """
    pixels = scalars.get("views/retrieval_pixels")
    return pixels is None or best - max(0.0, pixels) > _noise(scalars)


def advice_sentence(scalars: Mapping[str, float]) -> str:
    """Say what the numbers advise, and on what ground.

    Args:
        scalars: Of a look, by tag, without prefix.

    Returns:
        A sentence; nothing where there is no ``advice/quality``.

    Example:
        >>> advice_sentence({"advice/quality": 0.2, "advice/best": 0.4, "advice/step": 50.0,
        ...                  "views/retrieval": 0.15, "views/retrieval_pixels": 0.1})
        'Advice: keep the look at step 50 (advice/quality 0.4), not this one (0.2): views of an image find each other less often now.'
    """
    names = ("advice/quality", "advice/best", "advice/step")
    quality, best, step = (scalars.get(name) for name in names)
    if quality is None or best is None or step is None:
        return ""
    noise = _noise(scalars)
    if not is_founded(scalars, best):
        return (
            f"No advice: views of an image find each other hardly more often ({best:.2g} at best) than those of raw "
            f"pixels ({max(0.0, scalars['views/retrieval_pixels']):.2g}), which tells no look from another."
        )
    if quality >= best - _SAME:
        said = (
            f"Advice: keep this one (advice/quality {quality:.2g}): at no look have views of an image found "
            "each other more often."
        )
    elif not scalars.get("collapse/state") and best - quality < noise:
        said = (
            f"Advice: no look stands out. advice/quality was highest at step {step:.0f} ({best:.2g}), above "
            f"this one ({quality:.2g}) by less than it is known to (± {noise:.1g})."
        )
    else:
        said = (
            f"Advice: keep the look at step {step:.0f} (advice/quality {best:.2g}), not this one "
            f"({quality:.2g}): views of an image find each other less often now."
        )
    return said


def _noise(scalars: Mapping[str, float]) -> float:
    """Half of the interval of ``views/retrieval`` at this look; the average of several is known better."""
    low, high = (scalars.get(f"views/retrieval_{end}") for end in ("low", "high"))
    return 0.0 if low is None or high is None else (high - low) / 2
