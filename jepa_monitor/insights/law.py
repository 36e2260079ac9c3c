"""The law of the embeddings: do held-out images follow it, and is it normal?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.calibration import (
    calibration_error,
    coverage_curve,
    hdr_pit,
    kolmogorov_smirnov,
)
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.insights._drawing import HIGH, MUTED
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Law", "law_scalars", "plot_reliability"]

_SLICES = 256
_GAUSSIAN_EFFECT = 0.005  # a third of that of uniform or Laplace slices of unit variance
_CALIBRATED = 0.1  # mean error of coverage


class Law(Insight):
    """``density/calibration_error``, ``/ks``, ``/gaussianity_*`` and ``/precondition``."""

    name = "law"
    rows = (
        Row(
            ("density/calibration_error",),
            "mean \\|empirical − nominal\\| coverage of the probe by the highest-density regions of "
            "N(μ, Σ)",
            "0 … ½",
            "about 0.3/√N",
            "embeddings that are not Gaussian; a shift",
            "free",
            "`calibration_error`",
        ),
        Row(
            ("density/ks",),
            "Kolmogorov-Smirnov distance of the same levels from uniform",
            "0 … 1",
            "about 0.9/√N",
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
            "any departure from a normal law",
            "free",
            "`sliced_epps_pulley`",
        ),
        Row(
            ("density/precondition",),
            "1 if the effect is under 0.005 and the calibration error under 0.1: the embeddings are "
            "Gaussian enough for the score to be a density",
            "0 or 1",
            "1",
            "",
            "free",
            "[LeJEPA](https://arxiv.org/abs/2511.08544)",
        ),
    )
    panels = (
        Panel(
            "calibration",
            "error of coverage, gap to the training data",
            ("density/calibration_error", "density/generalisation_gap"),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare the law of the reference with the embeddings.

        Args:
            look: What was gathered.

        Returns:
            ``density/*``; nothing without a reference.
        """
        if look.reference is None or look.reference.scored is None:
            return {}
        others = look.reference.scored.finite_embeddings
        return law_scalars(look.probe.finite_embeddings, others, look.reference.law)

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw the reliability diagram.

        Args:
            look: What was gathered.

        Returns:
            ``density/reliability``, with a reference.
        """
        embeddings = look.probe.finite_embeddings
        if look.reference is None or not len(embeddings):
            return {}
        return {"density/reliability": plot_reliability(embeddings, look.reference.law)}


def law_scalars(embeddings: Tensor, reference: Tensor, law: Gaussian) -> dict[str, float]:
    """Say whether embeddings follow a law, and whether that law is normal.

    Args:
        embeddings: Of images that are not in the law, (N, K), finite.
        reference: Of reference images, which also may be in it, (M, K), finite.
        law: Of the embeddings of reference images.

    Returns:
        ``density/*``: calibration of the law, Gaussianity, and whether both are good enough.
    """
    scalars: dict[str, float] = {}
    if len(embeddings) > 1:
        levels = hdr_pit(embeddings, law)
        test = kolmogorov_smirnov(levels)
        scalars["density/calibration_error"] = calibration_error(levels).item()
        scalars["density/ks"] = test.distance.item()
    everything = torch.cat([embeddings, reference])
    if len(everything) > everything.shape[1]:
        normality = sliced_epps_pulley(everything, _SLICES, seed=0, standardized="whitened")
        scalars["density/gaussianity_effect"] = normality.effect_size.item()
        scalars["density/gaussianity_z"] = normality.z_score.item()
        # Random slices of wide embeddings look Gaussian whatever the law: the radius must too.
        radius = scalars.get("density/calibration_error", 1.0) < _CALIBRATED
        scalars["density/precondition"] = float(
            bool(normality.effect_size < _GAUSSIAN_EFFECT) and radius
        )
    return {tag: value for tag, value in scalars.items() if math.isfinite(value)}


def plot_reliability(embeddings: Tensor, law: Gaussian) -> Figure:
    """Draw how often the law of the embeddings covers held-out images, against how often it says.

    Args:
        embeddings: Of held-out images, (N, K), finite.
        law: Of the reference.

    Returns:
        The figure; the band is the 95 % interval of each point.

    Raises:
        ValueError: If there are no embeddings.
    """
    from matplotlib.figure import Figure

    if not len(embeddings):
        raise ValueError("`embeddings` must have at least one row for this plot, got none.")
    curve = coverage_curve(hdr_pit(embeddings, law))
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
