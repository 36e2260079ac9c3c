"""Contrast: how much of the score is how contrasted an image is, and what is left without."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors import Contrast as ContrastDetector
from jepa_monitor.detectors import Reference, ScoredSet, detect
from jepa_monitor.functional.contrast import (
    ContrastSlope,
    contrast_free,
    contrast_slope,
    log_contrast,
)
from jepa_monitor.functional.correlation import Correlation, pearson, spearman
from jepa_monitor.insights._drawing import is_drawable
from jepa_monitor.insights._statistics import finite_only, quantile_scalars
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.outliers import outlier_scalars
from jepa_monitor.insights.parts import CONTRASTED
from jepa_monitor.insights.score import extremes, plot_extremes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Contrast"]

_LEAST = 4  # images, for a correlation to have an interval
_MUCH = 0.25  # of the score's variance


class Contrast(Insight):
    """``contrast_free/*``, the score without contrast, and ``contrast/*``, what it has to do with it."""

    name = "contrast"
    wants = (CONTRASTED,)
    rows = (
        Row(
            tuple(f"contrast_free/{name}" for name in ("mean", "std", "p05", "p50", "p95")),
            "JEPA-SCORE + κ log r over the probe: the score without the contrast r = ‖x − mean‖ of the "
            "image, by the slope κ of this look",
            "any",
            "as `jepa_score/*`",
            "as `jepa_score/*`, but for contrast",
            "free",
            "`contrast_free`, [theory](theory.md#contrast)",
        ),
        Row(
            ("contrast/kappa", "contrast/kappa_se"),
            "κ, by how much the score falls when the log-contrast of an image grows by 1: mean over 8 "
            "probe images, scored again with 5 % more contrast, and its standard error",
            "about 0 … R; ≥ 0",
            "steady",
            "R: each image is normalised before anything else is done to it (GroupNorm, LayerNorm); "
            "0: a linear encoder",
            "8 images",
            "`contrast_slope`",
        ),
        Row(
            ("contrast/share", "contrast/share_low", "contrast/share_high"),
            "share of the variance of JEPA-SCORE over the probe that a line in log r explains (R²), and "
            "the ends of its 95 % interval",
            "0 … 1",
            "low",
            "a score that follows the contrast of images, not what they show",
            "free",
            "`pearson`",
        ),
        Row(
            ("contrast/spearman", "contrast/spearman_low", "contrast/spearman_high"),
            "rank correlation of JEPA-SCORE and log r over the probe, and the ends of its 95 % interval",
            "−1 … 1",
            "0",
            "the same; below 0: dull images score high",
            "free",
            "`spearman`",
        ),
        Row(
            (
                "contrast/spearman_free",
                "contrast/spearman_free_low",
                "contrast/spearman_free_high",
            ),
            "the same of the score without contrast",
            "−1 … 1",
            "0",
            "what contrasted images show beside their contrast",
            "free",
            "`spearman`",
        ),
        Row(
            ("contrast/outliers", "contrast/outliers_low", "contrast/outliers_high"),
            "share of the probe whose contrast is further from that of the reference, on either side, "
            "than that of 95 % of the scored reference images, and between which it lies in 95 % of "
            "cases if both have one law",
            "0 … 1",
            "inside",
            "a probe that is more or less contrasted than the training data",
            "free",
            "detector `contrast`",
        ),
    )
    panels = (
        Panel(
            "density",
            "JEPA-SCORE without contrast: median, 5 % and 95 %",
            ("contrast_free/p50", "contrast_free/p05", "contrast_free/p95"),
            band=True,
        ),
        Panel(
            "calibration",
            "share of the score that is contrast",
            ("contrast/share", "contrast/share_low", "contrast/share_high"),
            band=True,
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Measure what the score has to do with contrast.

        Args:
            look: What was gathered.

        Returns:
            ``contrast_free/*`` and ``contrast/*``; nothing of inputs that are no images, or of images
            without contrast.
        """
        scalars = _outliers(look.probe, look.reference)
        slope = self._slope(look)
        if slope is None:
            return scalars
        scores, free = (
            look.probe.scores,
            contrast_free(look.probe.scores, look.probe.images, slope.mean),
        )
        scalars |= quantile_scalars("contrast_free", free)
        scalars |= {"contrast/kappa": slope.mean, "contrast/kappa_se": slope.error}
        known = torch.isfinite(free)
        if int(known.sum()) < _LEAST:
            return scalars
        contrast = log_contrast(look.probe.images[known])
        scalars |= _interval("contrast/spearman", spearman(scores[known], contrast))
        scalars |= _interval("contrast/spearman_free", spearman(free[known], contrast))
        return scalars | _interval("contrast/share", _squared(pearson(scores[known], contrast)))

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say if the score is contrast to a good part.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        share, low = (scalars.get(f"contrast/share{end}") for end in ("", "_low"))
        if share is None or low is None or low < _MUCH:
            return ""
        return (
            f"{share:.0%} of the score's variance is the contrast of the images: contrast_free/* is "
            "without."
        )

    def histograms(self, look: Look) -> dict[str, Tensor]:
        """Give the scores without contrast.

        Args:
            look: What was gathered.

        Returns:
            ``contrast_free/scores`` of the probe, finite, (n,).
        """
        free = self._free(look)
        return {} if free is None else {"contrast_free/scores": finite_only(free.scores)}

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the sheet of images.

        Args:
            look: What was gathered.

        Returns:
            ``contrast_free/least_and_most_likely``, where the inputs are images.
        """
        free = self._free(look)
        if free is None or not (is_drawable(free.images) and len(extremes(free.scores, 1)[0])):
            return {}
        return {"contrast_free/least_and_most_likely": plot_extremes(free)}

    def _slope(self, look: Look) -> ContrastSlope | None:
        if CONTRASTED not in look.parts:
            return None
        changed = look[CONTRASTED]
        few = len(changed)
        slope = contrast_slope(look.probe.scores[:few], changed, look.probe.images[:few])
        return slope if math.isfinite(slope.error) else None

    def _free(self, look: Look) -> ScoredSet | None:
        """The probe with scores without contrast."""
        slope = self._slope(look)
        if slope is None:
            return None
        free = contrast_free(look.probe.scores, look.probe.images, slope.mean)
        return dataclasses.replace(look.probe, scores=free)


def _outliers(probe: ScoredSet, reference: Reference | None) -> dict[str, float]:
    """Count the probe images of unusual contrast, as ``outliers/contrast`` would."""
    if reference is None or reference.scored is None or probe.images.ndim != 4:
        return {}
    sets = {"probe": probe, "reference": reference.scored}
    found, _ = detect((ContrastDetector(),), reference, sets)
    if "contrast" not in found["probe"]:  # too few examples that have a contrast
        return {}
    counted = outlier_scalars(found["probe"], found["reference"])
    ends = ("", "_low", "_high")
    tags = {f"contrast/outliers{end}": counted.get(f"outliers/contrast{end}") for end in ends}
    return {tag: value for tag, value in tags.items() if value is not None}


def _squared(found: Correlation) -> Correlation:
    """The squares of all correlations in an interval."""
    low, high = sorted((found.lower**2, found.upper**2))
    return Correlation(found.value**2, 0.0 if found.lower < 0 < found.upper else low, high)


def _interval(tag: str, found: Correlation) -> dict[str, float]:
    if math.isnan(found.value):
        return {}
    return {tag: found.value, f"{tag}_low": found.lower, f"{tag}_high": found.upper}
