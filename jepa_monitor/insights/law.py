"""The law of the embeddings: do held-out images follow it, and is it normal?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.calibration import (
    calibration_error,
    coverage_curve,
    kolmogorov_smirnov,
)
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.functional.normality import NEAR_ENOUGH, normality
from jepa_monitor.functional.sequential import LEAST_REFERENCE, NoLawError, predictive_pit
from jepa_monitor.insights._drawing import HIGH, MUTED
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Law", "law_scalars", "plot_reliability"]

_SLICES = 256
_LEAST = 32  # embeddings, for a verdict


class Law(Insight):
    """``density/calibration_*``, ``/ks``, ``/gaussianity_*``, ``/normality_*``, ``/precondition``."""

    name = "law"
    rows = (
        Row(
            ("density/calibration_error",),
            "mean \\|empirical − nominal\\| coverage of the probe by the highest-density regions of "
            "the normal law of the embeddings before, which knows how few they were",
            "0 … ½",
            "about 0.3/√N, whatever K",
            "embeddings that are not Gaussian; a shift",
            "free",
            "`predictive_pit`, `calibration_error`",
        ),
        Row(
            ("density/ks", "density/calibration_p"),
            "Kolmogorov-Smirnov distance of the same levels from uniform, and its exact p-value",
            "0 … 1",
            "about 0.9/√N; above 0.01",
            "the same",
            "free",
            "`kolmogorov_smirnov`",
        ),
        Row(
            ("density/gaussianity_effect", "density/gaussianity_z"),
            "sliced Epps-Pulley statistic of the whitened embeddings of probe and reference: effect "
            "size (does not grow with N) and z-score",
            "0 … 1.4; any",
            "0; within ±3",
            "departures that random directions show; of wide embeddings few do",
            "free",
            "`sliced_epps_pulley`",
        ),
        Row(
            ("density/normality_effect", "density/normality_p"),
            "the largest departure of the same embeddings from a normal law along principal axes, "
            "radii, coordinates and slices: effect size (does not grow with N) and p-value, corrected "
            "for all that was looked at",
            "0 … 1.4; 0 … 1",
            "under 0.005; above 0.01",
            "any departure from a normal law",
            "free",
            "`normality`",
        ),
        Row(
            ("density/precondition", "density/precondition_needed"),
            "are the embeddings Gaussian enough for the score to be a density? 1 yes, 0 no; absent "
            "where too few embeddings cannot tell, and how many can",
            "0 or 1; 32 …",
            "1; at most N",
            "the same, and a spectrum that falls off a cliff",
            "free",
            "`normality`, [theory](theory.md#are-the-embeddings-normal)",
        ),
    )
    panels = (
        Panel(
            "calibration",
            "error of coverage, gap to the training data",
            ("density/calibration_error", "density/generalisation_gap"),
            healthy=(-0.1, 0.1),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare the law of the reference with the embeddings.

        Args:
            look: What was gathered.

        Returns:
            ``density/*``; nothing without a reference.
        """
        reference = _reference(look)
        return {} if reference is None else law_scalars(look.probe.finite_embeddings, reference)

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether the score may be read as a density.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence or two, or nothing.
        """
        verdict, needed = (scalars.get(f"density/precondition{end}") for end in ("", "_needed"))
        said = []
        if verdict == 1:
            said.append("The embeddings are Gaussian enough for the score to be a density.")
        elif verdict == 0:
            said.append(
                f"The embeddings are not Gaussian{_by(scalars)}, so the score is no density; its order "
                "may hold."
            )
        elif needed:
            said.append(f"Too few embeddings to tell whether they are Gaussian: {needed:.0f} can.")
        if needed and "density/calibration_error" not in scalars:
            said.append(
                "Whether held-out images follow the law of the reference cannot be told: the reference's "
                "embeddings are too few, or do not vary in all directions that the probe's do."
            )
        return " ".join(said)

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the reliability diagram.

        Args:
            look: What was gathered.

        Returns:
            ``density/reliability``, with a reference.
        """
        embeddings, reference = look.probe.finite_embeddings, _reference(look)
        if reference is None or _levels(embeddings, reference) is None:
            return {}
        return {"density/reliability": plot_reliability(embeddings, reference)}


def _by(scalars: Mapping[str, float]) -> str:
    """Say by how much embeddings are not Gaussian: what was judged, and what it does to coverage."""
    effect, off = (
        scalars.get(f"density/{name}") for name in ("normality_effect", "calibration_error")
    )
    found = []
    if effect is not None:
        judged = f"departure {effect:.2g}, {NEAR_ENOUGH:g} would do"
        found.append(judged if effect >= NEAR_ENOUGH else "their variances fall off a cliff")
    if off is not None:
        found.append(f"coverage is off by {off:.2f}")
    return f" ({'; '.join(found)})" if found else ""


def _reference(look: Look) -> Tensor | None:
    if look.reference is None or look.reference.scored is None:
        return None
    return look.reference.scored.finite_embeddings


def _levels(embeddings: Tensor, reference: Tensor) -> Tensor | None:
    """Give the levels of the probe under the law of the reference, where there is one."""
    if len(embeddings) < 2 or len(reference) < LEAST_REFERENCE:
        return None
    try:
        levels, axes = predictive_pit(embeddings, reference)
    except NoLawError:
        return None
    return levels if axes else None


def law_scalars(embeddings: Tensor, reference: Tensor) -> dict[str, float]:
    """Say whether embeddings follow the law of a reference, and whether that law is normal.

    Args:
        embeddings: Of held-out images, (N, K), finite.
        reference: Of reference images, none of them among the others, (M, K), finite.

    Returns:
        ``density/*``: calibration of the law, Gaussianity, and whether it is good enough.
    """
    scalars: dict[str, float] = {}
    levels = _levels(embeddings, reference)
    if levels is not None:
        test = kolmogorov_smirnov(levels)
        scalars["density/calibration_error"] = calibration_error(levels).item()
        scalars["density/ks"] = test.distance.item()
        scalars["density/calibration_p"] = test.p_value.item()
    everything = torch.cat([embeddings, reference])
    if len(everything) > everything.shape[1]:
        sliced = sliced_epps_pulley(everything, _SLICES, seed=0, standardized="whitened")
        scalars["density/gaussianity_effect"] = sliced.effect_size.item()
        scalars["density/gaussianity_z"] = sliced.z_score.item()
    if len(everything) >= _LEAST:
        verdict = normality(everything)
        scalars["density/normality_effect"] = verdict.effect
        scalars["density/normality_p"] = verdict.p_value
        scalars["density/precondition_needed"] = float(verdict.needed)
        if verdict.gaussian is not None:
            scalars["density/precondition"] = float(verdict.gaussian)
    return {tag: value for tag, value in scalars.items() if math.isfinite(value)}


def plot_reliability(embeddings: Tensor, reference: Tensor) -> Figure:
    """Draw how often the law of the embeddings covers held-out images, against how often it says.

    Args:
        embeddings: Of held-out images, (N, K), finite.
        reference: Of reference images, (M, K), finite, M ≥ 4.

    Returns:
        The figure; the band is the 95 % interval of each point.

    Raises:
        ValueError: If there are no embeddings.
    """
    from matplotlib.figure import Figure

    if not len(embeddings):
        raise ValueError("`embeddings` must have at least one row for this plot, got none.")
    curve = coverage_curve(predictive_pit(embeddings, reference).levels)
    level, coverage, lower, upper = (values.numpy() for values in curve)
    figure = Figure(figsize=(4.2, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    axes.fill_between(level, lower, upper, color=HIGH, alpha=0.2, linewidth=0)
    axes.plot(level, coverage, color=HIGH, marker="o", markersize=3.5)
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
    for x, y, words, side in ((0.03, 0.97, "more", "left"), (0.97, 0.11, "less", "right")):
        text = f"covers {words}\nthan it says"
        axes.text(x, y, text, color=MUTED, fontsize=8, ha=side, va="top", bbox=box)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="nominal coverage of the law",
        ylabel=f"held-out images covered (N = {len(embeddings)})",
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure
