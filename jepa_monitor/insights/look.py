"""One look at an encoder: everything that was gathered, before any insight is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from jepa_monitor.detectors import Reference, ScoredSet
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.trust import SketchAgreement

if TYPE_CHECKING:
    from jepa_monitor.insights.parts import Part

__all__ = ["Look", "scored_sets"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Look:
    """What one look at an encoder has gathered; the same in all processes.

    Args:
        options: How images were scored.
        method: The same in words, such as ``"sketch, 12 of 192 rows, whitened"``.
        probe: Held-out images.
        reference: The usual, with the training images that are scored; ``None`` where none were
            given.
        ood: Out-of-distribution images by name.
        detected: What detectors say of each set, (B,), higher for more usual; by name of the set
            (see :attr:`sets`), by name of the detector.
        parts: What else was gathered, by what insights said that they need.
        agreement: How far sketched scores follow exact ones; ``None`` where none were tried.
    """

    options: ScoreOptions
    method: str
    probe: ScoredSet
    reference: Reference | None = None
    ood: Mapping[str, ScoredSet] = field(default_factory=dict)
    detected: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    parts: Mapping[Part[Any], Any] = field(default_factory=dict, repr=False)
    agreement: SketchAgreement | None = None

    def __getitem__(self, part: Part[_T]) -> _T:
        """Give a part that was gathered.

        Args:
            part: One that the insight names in ``needs``.

        Returns:
            What it holds.

        Raises:
            LookupError: If it was not gathered.
        """
        if part not in self.parts:
            raise LookupError(f"{part} was not gathered: name it in the insight's `needs`.")
        found: _T = self.parts[part]
        return found

    @cached_property
    def sets(self) -> Mapping[str, ScoredSet]:
        """All scored sets: ``probe``, ``reference`` where there is one, and ``ood/<name>``."""
        return scored_sets(self.probe, self.reference, self.ood)


def scored_sets(
    probe: ScoredSet, reference: Reference | None, ood: Mapping[str, ScoredSet]
) -> dict[str, ScoredSet]:
    """Name the sets of a look.

    Args:
        probe: Held-out images.
        reference: The usual.
        ood: Out-of-distribution images by name.

    Returns:
        ``probe``, ``reference`` where images of it are scored, and ``ood/<name>``.
    """
    sets = {"probe": probe}
    if reference is not None and reference.scored is not None:
        sets["reference"] = reference.scored
    return sets | {f"ood/{name}": data for name, data in ood.items()}
