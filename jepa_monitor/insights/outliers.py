"""Outliers: what share of the probe is unlike the reference, by each detector."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from jepa_monitor.functional.conformal import benjamini_hochberg, conformal_p_values
from jepa_monitor.functional.outliers import outlier_fraction, robust_fence
from jepa_monitor.insights._statistics import finite_only
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

__all__ = ["Outliers", "outlier_scalars"]

_ALPHA = 0.05
_FALSE = 0.1  # of the list of outliers, on average
_RINGS = 0.01  # probability of an alarm under one law
_LEAST_REFERENCE = 19  # scores, for which the lowest is the 5 % quantile


class Outliers(Insight):
    """``outliers/<detector>`` with its interval, or ``outliers/<detector>_fence``."""

    name = "outliers"
    rows = (
        Row(
            ("outliers/<detector>", "outliers/<detector>_low", "outliers/<detector>_high"),
            "share of the probe below the 5 % quantile of the scored reference images, and between "
            "which it lies in 95 % of cases if both have one law, whatever that is",
            "0 … 1",
            "inside",
            "probe images that are unlike the training data",
            "free",
            "`outlier_fraction`",
        ),
        Row(
            ("outliers/expected",),
            "what that share is on average if nothing is wrong",
            "0 … 0.05",
            "",
            "the number of reference scores",
            "free",
        ),
        Row(
            ("outliers/<detector>_listed",),
            "share of the probe on the list of outliers of which a tenth at most are false, on average",
            "0 … 1",
            "0",
            "single images far from the training data; the list takes some 10 scored reference images "
            "for each probe image, or many outliers",
            "free",
            "`conformal_p_values`, `benjamini_hochberg`",
        ),
        Row(
            ("outliers/alarm",),
            "1 if any detector's share is too large or too small for one law, at 1 % for all "
            "detectors together",
            "0 or 1",
            "0",
            "a probe unlike the training data; scores that no longer differ",
            "free",
            "`outlier_fraction`",
        ),
        Row(
            ("outliers/<detector>_fence",),
            "without a reference: share below median − 3 · 1.4826 · MAD",
            "0 … 1",
            "about 0.001",
            "heavy lower tails",
            "free",
            "`robust_fence`",
        ),
    )
    panels = (
        Panel(
            "outliers",
            "share below the 5 % quantile of the reference",
            (
                "outliers/combined$",
                "outliers/(?!expected|alarm|.*_(low|high|fence|listed)$).+$",
            ),
            healthy=("outliers/log_density_low", "outliers/log_density_high"),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Count outliers by every detector.

        Args:
            look: What was gathered.

        Returns:
            ``outliers/*``.
        """
        return outlier_scalars(look.detected["probe"], look.detected.get("reference"))

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say what share of the probe is outlying, and whether that is usual.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        found = [m[1] for tag in scalars if (m := re.fullmatch(r"outliers/(\w+)_low", tag))]
        if not found:
            return ""
        # Of several detectors the one with the best mean on a real network: docs/detectors.md.
        name = next((each for each in ("combined", "log_density") if each in found), found[0])
        share, low, high = (scalars[f"outliers/{name}{end}"] for end in ("", "_low", "_high"))
        alarm = " That is not as usual." if scalars.get("outliers/alarm") else ""
        return (
            f"{share:.0%} of the probe are outliers by {name}, where {low:.0%} to {high:.0%} are usual."
            f"{alarm}"
        )


def outlier_scalars(
    probe: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None
) -> dict[str, float]:
    """Measure what share of the probe is outlying.

    Args:
        probe: What each detector says of the probe, (B,) by name.
        reference: The same of reference images. Without, or with less than 19 of them, a robust
            fence takes the place of their quantile.

    Returns:
        ``outliers/<detector>`` with ``_low`` and ``_high``, between which it lies under one law,
        ``_listed``, ``outliers/expected`` and ``outliers/alarm``; or ``outliers/<detector>_fence``.
    """
    scalars: dict[str, float] = {}
    p_values: list[float] = []
    for name, values in probe.items():
        finite = finite_only(values)
        if not len(finite):
            continue
        others = finite[:0] if reference is None else finite_only(reference[name])
        if len(others) < _LEAST_REFERENCE:
            share = (finite < robust_fence(finite)).double().mean()
            scalars[f"outliers/{name}_fence"] = share.item()
            continue
        found = outlier_fraction(finite, others, _ALPHA)
        scalars[f"outliers/{name}"] = found.fraction.item()
        scalars[f"outliers/{name}_low"] = found.lower.item()
        scalars[f"outliers/{name}_high"] = found.upper.item()
        scalars["outliers/expected"] = found.expected.item()
        p_values.append(found.p_value.item())
        listed = benjamini_hochberg(conformal_p_values(finite, others)) <= _FALSE
        scalars[f"outliers/{name}_listed"] = listed.double().mean().item()
    if p_values:
        scalars["outliers/alarm"] = float(min(p_values) * len(p_values) < _RINGS)
    return scalars
