"""The full log-density of the probe: the Jacobian and the law of the embeddings together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from jepa_monitor.insights._drawing import HIGH, MUTED, OOD_COLORS
from jepa_monitor.insights._statistics import quantile_scalars
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LogDensity", "plot_score_and_distance"]


class LogDensity(Insight):
    """``log_density/*``, with a reference, and its two terms against each other."""

    name = "log_density"
    rows = (
        Row(
            tuple(f"log_density/{name}" for name in ("mean", "std", "p05", "p50", "p95")),
            "JEPA-SCORE + log N(z; μ, Σ), the full change of variables; μ, Σ from the reference",
            "any",
            "rising on held-out images",
            "both terms",
            "forward passes of the reference",
            "change of variables",
        ),
    )
    panels = (
        Panel(
            "density",
            "log-density: median, 5 % and 95 %",
            ("log_density/p50", "log_density/p05", "log_density/p95"),
            band=True,
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Summarise the densities.

        Args:
            look: What was gathered.

        Returns:
            ``log_density/*``; nothing without a reference.
        """
        return quantile_scalars("log_density", look.probe.log_density)

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw score against distance.

        Args:
            look: What was gathered.

        Returns:
            ``density/score_and_distance``, with a reference.
        """
        if look.reference is None:
            return {}
        return {"density/score_and_distance": plot_score_and_distance(look)}


def plot_score_and_distance(look: Look) -> Figure:
    """Draw the two terms of the log-density against each other, one colour a set.

    Args:
        look: A look with a reference.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no reference.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if look.reference is None:
        raise ValueError("`look` must have a reference for this plot.")
    law = look.reference.law
    sets = {name.removeprefix("ood/"): data for name, data in look.sets.items()}
    sets["probe"] = sets.pop("probe")  # on top of the others
    colors = dict(zip(look.ood, OOD_COLORS * 9, strict=False))
    colors |= {"reference": MUTED, "probe": HIGH}
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    farthest = 0.0
    for (name, data), marker in zip(sets.items(), "o^vsDPX*" * 3, strict=False):
        embeddings = data.scored_embeddings
        finite = torch.isfinite(data.scores) & torch.isfinite(embeddings).all(1)
        distance = law.mahalanobis_squared(embeddings[finite]) / law.width
        farthest = max([farthest, *distance.tolist()])
        axes.scatter(
            distance.numpy(),
            data.scores[finite].numpy(),
            s=16,
            marker=marker,
            color=colors[name],
            alpha=0.75,
            linewidths=0,
            label=name,
        )
    if farthest > 0:  # all embeddings may be one point
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="squared Mahalanobis distance / K", ylabel="JEPA-SCORE (nats)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
