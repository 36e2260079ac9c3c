"""Generalisation: are held-out images as likely as training images?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jepa_monitor.functional.calibration import (
    coverage_gap,
    rank_pit,
    two_sample_kolmogorov_smirnov,
)
from jepa_monitor.insights._statistics import finite_only
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.look import Look

__all__ = ["Generalisation"]

_UNLIKELY = 0.01  # p-value


class Generalisation(Insight):
    """``density/generalisation_gap`` and ``/generalisation_p``, with a reference."""

    name = "generalisation"
    rows = (
        Row(
            ("density/generalisation_gap",),
            "½ − mean rank of the probe's scores among the reference's",
            "−½ … ½",
            "0 ± 0.29/√N",
            "above 0: held-out images look less likely than training images (memorisation, or "
            "augmentation of the reference)",
            "R passes",
            "`rank_pit`",
        ),
        Row(
            ("density/generalisation_p",),
            "p-value that both have one law",
            "0 … 1",
            "above 0.01",
            "the same",
            "free",
            "`two_sample_kolmogorov_smirnov`",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Rank the probe's scores among the reference's.

        Args:
            look: What was gathered.

        Returns:
            ``density/generalisation_*``; nothing without a reference.
        """
        if look.reference is None or look.reference.scored is None:
            return {}
        scores = finite_only(look.probe.scores)
        others = finite_only(look.reference.scored.scores)
        if not (len(scores) and len(others)):
            return {}
        test = two_sample_kolmogorov_smirnov(scores, others)
        scalars = {
            "density/generalisation_gap": coverage_gap(rank_pit(scores, others)).item(),
            "density/generalisation_p": test.p_value.item(),
        }
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether held-out images are as likely as training images.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        gap, p_value = (scalars.get(f"density/generalisation_{end}") for end in ("gap", "p"))
        if gap is None or p_value is None or p_value >= _UNLIKELY:
            return ""
        return f"Held-out images score {'lower' if gap > 0 else 'higher'} than training images."
