"""Detectors of a run: in go a reference and its scored part, out come detectors, and why one is missing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.cli.reference import Law
from jepa_monitor.detectors import (
    DETECTORS,
    Detector,
    Reference,
    ScoredSet,
    fit_detectors,
    score_reference,
    score_with,
)

__all__ = ["Fits", "fit_all"]


class Fits(NamedTuple):
    """Detectors that are fitted to a reference.

    Args:
        fitted: By name.
        swapped: Those that learn from examples, with the other half of them; of images that are
            their own reference.
        learned: Numbers of the images that ``fitted`` learned from and ``swapped`` judges.
        usual: What each detector says of reference images that it has not learned from, by name;
            nothing of images that are their own reference.
        missing: Why a detector says nothing, by name.
    """

    fitted: dict[str, Detector]
    swapped: dict[str, Detector]
    learned: Tensor
    usual: dict[str, Tensor]
    missing: dict[str, str]

    def score(self, data: ScoredSet, numbers: Tensor) -> dict[str, Tensor]:
        """Ask the detectors; of images that one has learned from, the one that has learned from others.

        Args:
            data: The images and what is known of them.
            numbers: Which ones of their data they are, (B,).

        Returns:
            Scores, (B,), by name of the detector.
        """
        scores = {
            name: _asked(each, functools.partial(score_with, each, data))
            for name, each in self.fitted.items()
        }
        learned = (numbers[:, None] == self.learned).any(1)
        if bool(learned.any()):
            for name, each in self.swapped.items():
                others = _asked(each, functools.partial(score_with, each, data))
                scores[name] = torch.where(learned, others, scores[name])
        return scores


def fit_all(
    detectors: Iterable[Detector], law: Law, known: ScoredSet | None, numbers: Tensor, asked: int
) -> Fits:
    """Fit detectors to a reference.

    Args:
        detectors: Which ones.
        law: Of the reference's embeddings.
        known: The scored part of the reference, ``None`` if there is none.
        numbers: Which images of the reference it is of, (n,).
        asked: How many were to be scored at most.

    Returns:
        The detectors, and what they say of the reference.
    """
    reference = Reference(law.base, law.law, known)
    learned = numbers[: len(numbers) // 2] if law.own else numbers[:0]
    fits = Fits({}, {}, learned, {}, {})
    for each in detectors:
        if each.by_law and not law.holds:
            fits.missing[each.name] = law.void
            continue
        found = _fit(each, reference, fits.missing)
        fits.fitted.update(found)
        if not found:
            fits.missing.setdefault(each.name, _too_few(each, law, asked))
        elif each.least_examples and law.own:
            fits.swapped.update(_fit(each, reference.swapped, {}))
        if found and known is not None and not law.own:
            work = functools.partial(score_reference, found[each.name], reference)
            fits.usual[each.name] = _asked(each, work)
    return fits


def _fit(detector: Detector, reference: Reference, missing: dict[str, str]) -> dict[str, Detector]:
    """Fit one detector; one of the package that has nothing to learn says why and is left out."""
    try:
        return fit_detectors([detector], reference)
    except Exception as error:
        if detector is not DETECTORS.get(detector.name) or not isinstance(error, ValueError):
            raise _failed(detector, error) from error
        missing[detector.name] = str(error).rstrip(".").replace("`reference`", "the reference")
        return {}


def _asked(detector: Detector, work: Callable[[], Tensor]) -> Tensor:
    try:
        return work()
    except Exception as error:
        raise _failed(detector, error) from error


def _failed(detector: Detector, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {error}"
    return ValueError(f"`detectors`: {detector.name} has failed: {reason}")


def _too_few(detector: Detector, law: Law, asked: int) -> str:
    """Say what a detector would need."""
    if len(law.base) < detector.least_reference:
        return f"it takes {detector.least_reference} reference images, there are {len(law.base)}"
    return (
        f"it takes {2 * detector.least_examples} scored images of the reference, of whose "
        f"{len(law.embeddings)} at most half are scored and at most {asked} (--reference-scored)"
    )
