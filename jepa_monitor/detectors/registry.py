"""All detectors by name, and how to choose and fit some: a new one is a file and a line here."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from jepa_monitor.detectors.bands import Bands
from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.combined import Combined
from jepa_monitor.detectors.contrast import Contrast
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.detectors.jepa_score import JepaScore
from jepa_monitor.detectors.jepa_score_two_sided import TwoSidedJepaScore
from jepa_monitor.detectors.knn import KNN
from jepa_monitor.detectors.knn_normalized import NormalizedKNN
from jepa_monitor.detectors.log_density import LogDensity
from jepa_monitor.detectors.mahalanobis import Mahalanobis
from jepa_monitor.detectors.mahalanobis_normalized import NormalizedMahalanobis
from jepa_monitor.detectors.mahalanobis_radial import RadialMahalanobis
from jepa_monitor.detectors.spectrum_shape import SpectrumShape
from jepa_monitor.detectors.white_energy import WhiteEnergy

__all__ = [
    "DETECTORS",
    "choose_detectors",
    "detect",
    "fit_detectors",
    "score_reference",
    "score_with",
]

_ALWAYS = (JepaScore(), LogDensity(), KNN(), Mahalanobis(), Combined())
_BY_NAME = (
    NormalizedKNN(),
    NormalizedMahalanobis(),
    RadialMahalanobis(),
    SpectrumShape(),
    Contrast(),
    Bands(),
    WhiteEnergy(),
    TwoSidedJepaScore(),
)
DETECTORS: Mapping[str, Detector] = MappingProxyType(
    {found.name: found for found in (*_ALWAYS, *_BY_NAME)}
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def choose_detectors(detectors: Iterable[str | Detector] | None = None) -> tuple[Detector, ...]:
    """Find detectors by name; objects of one's own are taken as they are.

    Args:
        detectors: Names in :data:`DETECTORS` and detectors; ``None`` for ``jepa_score``,
            ``log_density``, ``knn``, ``mahalanobis`` and ``combined``.

    Returns:
        The detectors, in the order given.

    Raises:
        TypeError: If it is no collection of names and detectors.
        ValueError: If a name is unknown, is given twice, or cannot stand in a tag.

    Example:
        >>> [detector.name for detector in choose_detectors(["knn", "jepa_score"])]
        ['knn', 'jepa_score']
    """
    if detectors is None:
        return _ALWAYS
    if isinstance(detectors, str) or not isinstance(detectors, Iterable):
        raise TypeError(
            f"`detectors` must be a collection of names and detectors, got {detectors!r}."
        )
    chosen: dict[str, Detector] = {}
    for asked in detectors:
        found: Any = DETECTORS.get(asked) if isinstance(asked, str) else asked
        if found is None:
            raise ValueError(f"`detectors` must be among {', '.join(DETECTORS)}, got {asked!r}.")
        if not isinstance(found, Detector):
            raise TypeError(
                f"`detectors` must hold names and detectors, got {type(asked).__name__}."
            )
        if not (isinstance(found.name, str) and _NAME.fullmatch(found.name)):
            raise ValueError(
                "`detectors` must have names of letters, digits and underscores, got "
                f"{found.name!r} of {type(found).__name__}."
            )
        if found.name in chosen:
            raise ValueError(f"`detectors` must have different names, got {found.name!r} twice.")
        chosen[found.name] = found
    return tuple(chosen.values())


def fit_detectors(
    detectors: Iterable[Detector], reference: Reference | None
) -> dict[str, Detector]:
    """Fit copies of detectors, which themselves stay as they are.

    Args:
        detectors: From :func:`choose_detectors`.
        reference: What to fit them to; ``None`` if there is none.

    Returns:
        The fitted ones by name, without those that need more reference images than there are.
    """
    size = 0 if reference is None else len(reference.embeddings)
    examples = None if reference is None else reference.examples
    scored = 0 if examples is None else len(examples.scores)
    fitted = {}
    for detector in detectors:
        if size >= detector.least_reference and scored >= detector.least_examples:
            fitted[detector.name] = copy.copy(detector)
            if reference is not None:
                fitted[detector.name].fit(reference)
    return fitted


def detect(
    detectors: Iterable[Detector], reference: Reference | None, sets: Mapping[str, ScoredSet]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Exception]]:
    """Score sets of images by detectors; one that fails is left out, the others go on.

    Args:
        detectors: From :func:`choose_detectors`.
        reference: What to fit them to; ``None`` if there is none.
        sets: What to score, by name.

    Returns:
        Scores, (B,), higher for more usual, by name of the set, by name of the detector, NaN for the
        images of ``reference`` that a detector has learned from; and what went wrong, by name of the
        detector.
    """
    scores: dict[str, dict[str, Tensor]] = {name: {} for name in sets}
    failed: dict[str, Exception] = {}
    for detector in detectors:
        try:
            for name, fitted in fit_detectors([detector], reference).items():
                found = {
                    kind: score_reference(fitted, reference)
                    if reference is not None and data is reference.scored
                    else score_with(fitted, data)
                    for kind, data in sets.items()
                }
                for kind, values in found.items():
                    scores[kind][name] = values
        except Exception as error:  # noqa: BLE001, PERF203 - somebody else's; told by the caller
            failed[detector.name] = error
    return scores, failed


def score_reference(detector: Detector, reference: Reference) -> Tensor:
    """Score the scored images of a reference, on which thresholds are set.

    Args:
        detector: From :func:`fit_detectors`, fitted to this reference.
        reference: One with scored images.

    Returns:
        (B,), higher for more usual; NaN for those that the detector has learned from, which measure no
        others.

    Raises:
        ValueError: If no image of the reference is scored.
    """
    examples = reference.require_examples()
    assert reference.scored is not None
    values = score_with(detector, reference.scored)
    if not detector.least_examples:
        return values
    unseen = torch.arange(len(values)) >= len(examples.scores)
    return torch.where(unseen, values, torch.nan)  # not in place: the scores may be the set's own


def score_with(detector: Detector, data: ScoredSet) -> Tensor:
    """Score a set by a fitted detector, which may be somebody else's.

    Args:
        detector: From :func:`fit_detectors`.
        data: The images and what is known of them.

    Returns:
        (B,), float64, higher for more usual.

    Raises:
        ValueError: If it returns anything but one number an image.
    """
    found: Any = detector.score(data)
    if not isinstance(found, Tensor) or found.shape != data.scores.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{type(detector).__name__}.score must return {tuple(data.scores.shape)}, got {shape}."
        )
    return found.double()
