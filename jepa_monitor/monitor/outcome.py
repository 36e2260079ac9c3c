"""What comes of a look at a run: in go scalars, embeddings and what an alarm says, out come records of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["Evaluation", "Look", "Reading"]


class Reading(Protocol):
    """What an alarm says at a look."""

    @property
    def alarm(self) -> bool:
        """Whether somebody should come and look."""

    @property
    def reason(self) -> str:
        """Why, in a sentence or two."""

    @property
    def scalars(self) -> dict[str, float]:
        """Numbers by tag."""


class Evaluation(NamedTuple):
    """What was found of an encoder.

    Args:
        scalars: Finite numbers by tag.
        embeddings: Of the probe, (N, K), for the alarm; none where they are nothing to it.
        report: The whole report, where there is one.
        reading: What an alarm of the evaluation's own says.
    """

    scalars: dict[str, float]
    embeddings: Tensor
    report: Any = None
    reading: Reading | None = None


@dataclass(frozen=True)
class Look:
    """What came of asking for a look; true if one was taken.

    Args:
        step: Training steps done.
        scalars: Finite numbers by tag, to be logged; empty if it was not time to look.
        taken: Whether there was a look, be it one that failed.
        evaluation: What was found; ``None`` if there was no look or it failed.
        reading: What the alarm says; ``None`` likewise, and for fewer than 16 embeddings.
        began: The reading with which an alarm begins at this look, in whichever process; ``None``
            while there is no alarm or it has been told before.
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    taken: bool = False
    evaluation: Evaluation | None = None
    reading: Reading | None = None
    began: Reading | None = None

    def __bool__(self) -> bool:
        return self.taken

    @property
    def alarm_begins(self) -> bool:
        """Whether an alarm begins at this look: the time to stop, the same in all processes."""
        return self.began is not None
