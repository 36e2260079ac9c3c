"""Signs of collapse that need nothing but embeddings: ranks, spread, decay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._spectrum import (
    covariance_eigenvalues,
    entropy_rank,
    fit_power_law,
    participation,
    stable_share,
)
from jepa_monitor.functional.collapse import normalized_std, rankme
from jepa_monitor.functional.hypersphere import mean_cosine, uniformity
from jepa_monitor.functional.isotropic import isotropic_baseline
from jepa_monitor.functional.variety import duplicate_share
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look

__all__ = ["Collapse", "collapse_scalars"]

_RANKS = ("rankme", "effective_rank", "participation_ratio", "stable_rank")


class Collapse(Insight):
    """``collapse/*`` but the state and the alarm, which remember earlier looks."""

    name = "collapse"
    rows = (
        Row(
            (*(f"collapse/{name}" for name in _RANKS), *(f"collapse/{n}_relative" for n in _RANKS)),
            "ranks of the embeddings, and their share of what isotropic embeddings of the same N "
            "and K have",
            "see below",
            "high; relative towards 1",
            "dimensional collapse",
            "free",
            "see below",
        ),
        Row(
            ("collapse/normalized_std", "collapse/mean_cosine", "collapse/uniformity"),
            "spread of the embeddings on the sphere",
            "see below",
            "1, 0, low",
            "complete collapse",
            "free",
            "see below",
        ),
        Row(
            ("collapse/same_pairs",),
            "share of pairs of embeddings that are the same but for a hundredth of the variance, as they "
            "are or in unit length, whichever is less; one over it is the effective number of points that they sit on",
            "0 … 1",
            "near 0",
            "clusters that have become points",
            "O(N²)",
            "`duplicate_share`",
        ),
        Row(
            ("collapse/alpha_req", "collapse/alpha_req_r2"),
            "decay of the spectrum and quality of its fit",
            "≥ 0",
            "about 1",
            "few strong directions",
            "free",
            "see below",
        ),
    )
    panels = (
        Panel(
            "collapse",
            "relative to isotropic embeddings",
            (
                "collapse/(rankme|effective_rank|participation_ratio)_relative",
                "collapse/normalized_std",
            ),
        ),
        Panel(
            "collapse",
            "state (0 healthy, 1 dimensional, 2 complete)",
            ("collapse/state",),
            healthy=(None, 0.5),
        ),
        Panel(
            "collapse",
            "pairs of training images that are the same",
            ("data/duplicates$",),
            healthy=(None, 0.5),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Measure the embeddings of the probe.

        Args:
            look: What was gathered.

        Returns:
            ``collapse/*``.
        """
        return collapse_scalars(look.probe.embeddings)


def collapse_scalars(embeddings: Tensor) -> dict[str, float]:
    """All signs of collapse that need nothing but embeddings, under the tags of the dashboard.

    Ranks also come relative to isotropic embeddings of the same N and K, as ``..._relative``.

    Args:
        embeddings: Embeddings, shape (N, K). Rows with NaN or infinity are left out.

    Returns:
        Finite numbers by tag; empty for fewer than two finite rows. ``collapse/alpha_req`` is
        absent where there are too few eigenvalues for its fit, or too few positive ones.

    Example:
        >>> import torch
        >>> z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        >>> scalars = collapse_scalars(z)
        >>> round(scalars["collapse/effective_rank"]), len(scalars)
        (56, 14)
    """
    finite = embeddings[torch.isfinite(embeddings).all(dim=1)]
    count, width = finite.shape
    if count < 2:
        return {}
    eigenvalues = covariance_eigenvalues(finite.double(), torch.finfo(finite.dtype).eps)
    isotropic = isotropic_baseline(count, width)
    ranks = {
        "rankme": rankme(finite).item(),
        "effective_rank": entropy_rank(eigenvalues).item(),
        "participation_ratio": participation(eigenvalues, False, count, width).item(),
        "stable_rank": stable_share(eigenvalues).item(),
    }
    scalars = {f"collapse/{name}": value for name, value in ranks.items()}
    for name, value in ranks.items():
        scalars[f"collapse/{name}_relative"] = value / getattr(isotropic, name)
    scalars["collapse/normalized_std"] = normalized_std(finite).item()
    scalars["collapse/mean_cosine"] = mean_cosine(finite).item()
    scalars["collapse/uniformity"] = uniformity(finite).item()
    # On the sphere a line is two points, and beside one large embedding all others are one.
    both = (unit_rows(finite.double()), finite.double())
    same = [duplicate_share([z - z.mean(dim=0)]).share.item() for z in both]
    scalars["collapse/same_pairs"] = min(same)
    if len(eigenvalues) >= 15:  # ranks 11 to 15: the shortest window of α-ReQ
        fit = fit_power_law(eigenvalues, (11, 100))
        scalars["collapse/alpha_req"] = fit.alpha.item()
        scalars["collapse/alpha_req_r2"] = fit.r2.item()
        if not math.isfinite(fit.alpha):
            del scalars["collapse/alpha_req"], scalars["collapse/alpha_req_r2"]
    return {tag: value for tag, value in scalars.items() if math.isfinite(value)}
