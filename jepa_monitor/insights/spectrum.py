"""The spectrum of the Jacobian: how fast it decays, how many directions it has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.functional.jacobian_alignment import rank_one_share
from jepa_monitor.insights._drawing import LOW
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Spectrum", "plot_spectra"]


class Spectrum(Insight):
    """``jacobian/log_sigma_*``, ``/effective_rank`` and ``/rank_one_share``."""

    name = "spectrum"
    rows = (
        Row(
            tuple(f"jacobian/log_sigma_{name}" for name in ("p05", "p50", "p95")),
            "quantiles of log σ over all images and rows",
            "any",
            "steady",
            "collapse pulls the lowest down first",
            "free",
        ),
        Row(
            ("jacobian/effective_rank",),
            "exp of the entropy of σ²/Σσ², mean over images",
            "1 … R",
            "high",
            "few input directions that matter",
            "free",
            "Roy & Vetterli 2007",
        ),
        Row(
            ("jacobian/rank_one_share",),
            "σ₁²/Σσ², mean over images (of the sketch's rows, if it is one)",
            "1/R … 1",
            "grows where a network generalises",
            "one input direction that matters",
            "free",
            "[GrokAlign](https://arxiv.org/abs/2506.12284)",
        ),
    )
    panels = (
        Panel(
            "density",
            "log singular values: median, 5 % and 95 %",
            ("jacobian/log_sigma_p50", "jacobian/log_sigma_p05", "jacobian/log_sigma_p95"),
            band=True,
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Summarise the singular values of the images whose Jacobian is finite.

        Args:
            look: What was gathered.

        Returns:
            ``jacobian/*``.
        """
        values = look.probe.singular_values
        values = values[torch.isfinite(values).all(1)]
        if not values.numel():  # of estimates there is none
            return {}
        scalars: dict[str, float] = {}
        logs = values.clamp_min(look.options.eps).log().flatten()
        for name, quantile in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
            # Not torch.quantile, which takes no more than 16 million numbers.
            rank = 1 + round(quantile * (len(logs) - 1))
            scalars[f"jacobian/log_sigma_{name}"] = logs.kthvalue(rank).values.item()
        energy = values.square()
        share = energy / energy.sum(1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        entropy = -torch.special.xlogy(share, share).sum(1)
        scalars["jacobian/effective_rank"] = entropy.exp().mean().item()
        scalars["jacobian/rank_one_share"] = rank_one_share(values).mean().item()
        return scalars


def plot_spectra(spectra: dict[int, Tensor], eps: float) -> Figure:
    """Draw how the spectrum of the Jacobian moves over training, one curve an evaluation.

    Args:
        spectra: Mean log singular values of an evaluation, (r,), descending, by step.
        eps: The clipping value, drawn as a line where it is in sight.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no spectra.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if not spectra:
        raise ValueError("`spectra` must hold at least one spectrum, got none.")
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"]
    last = max(spectra)
    for step, logs in sorted(spectra.items()):
        color = shades(0.9 * (1 - step / max(last, 1)))
        ends = step in (min(spectra), last)
        label = f"step {step}" if ends else None
        axes.plot(
            range(1, len(logs) + 1), logs.numpy(), color=color, label=label, linewidth=1 + ends
        )
    floor = math.log(eps)
    if min(float(logs.min()) for logs in spectra.values()) < floor + 2:
        axes.axhline(floor, color=LOW, linewidth=1, linestyle=":", label="clipping value")
    axes.set(xlabel="k", ylabel="mean of log σₖ over the probe")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
