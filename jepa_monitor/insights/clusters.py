"""Clusters: do directions crowd, can clusters be learned, and do views of an image share one?"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from jepa_monitor.functional import (
    cluster_agreement,
    cluster_learnability,
    self_clustering,
    wilson_interval,
)
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.views import VIEWS

__all__ = ["Clusters"]

_LEAST = 16  # embeddings
_SPREAD = NormalDist().inv_cdf(0.975)


class Clusters(Insight):
    """``clusters/*``: no labels needed."""

    name = "clusters"
    wants = (VIEWS,)
    rows = (
        Row(
            ("clusters/self_clustering", "clusters/self_clustering_isotropic"),
            "how far directions crowd together, and below what isotropic embeddings of the same N and K "
            "stay in 97.5 % of cases",
            "about 0 … 1",
            "low",
            "directions that crowd, a collapse above all",
            "free",
            "[arXiv 2305.16562](https://arxiv.org/abs/2305.16562)",
        ),
        Row(
            ("clusters/learnability", "clusters/learnability_low", "clusters/learnability_high"),
            "accuracy of 1-NN on the √N k-means clusters of the probe, half of which is left out, "
            "corrected for chance, and the ends of its 95 % interval for these clusters",
            "about 0 … 1",
            "high; 0 is chance",
            "clusters that are no more than cuts through a cloud",
            "O(N^1.5·K)",
            "[CLID](https://arxiv.org/abs/2206.01251)",
        ),
        Row(
            ("clusters/agreement",),
            "adjusted mutual information of the k-means clusters of two views of 128 probe images",
            "about 0 … 1",
            "high; 0 is chance",
            "clusters that a crop or another colour leaves; says little of SimSiam's encoders",
            "free",
            "[arXiv 2409.06612](https://arxiv.org/abs/2409.06612)",
        ),
    )
    panels = (
        Panel(
            "views",
            "clusters (0: chance)",
            ("clusters/(self_clustering|learnability|agreement)$",),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Cluster the embeddings of the probe.

        Args:
            look: What was gathered.

        Returns:
            ``clusters/*``; nothing for fewer than 16 finite embeddings.
        """
        z = look.probe.finite_embeddings
        count, width = z.shape
        scalars: dict[str, float] = {}
        if count < _LEAST:
            return scalars
        if width > 1:
            deviation = 2 / math.sqrt(count * (count - 1) * (width - 1) * (width + 2))
            scalars["clusters/self_clustering"] = self_clustering(z).item()
            scalars["clusters/self_clustering_isotropic"] = _SPREAD * deviation
        found = cluster_learnability(z)
        asked = count - count // 2
        ends = wilson_interval(found.accuracy * asked, asked)
        room = 1 - found.chance
        if room > 0:
            scalars["clusters/learnability"] = found.learnability.item()
            for name, end in (("low", ends.lower), ("high", ends.upper)):
                scalars[f"clusters/learnability_{name}"] = ((end - found.chance) / room).item()
        else:  # one cluster: nothing to learn, and no interval
            scalars["clusters/learnability"] = 0.0
        if VIEWS in look.parts:
            views = look[VIEWS]
            views = views[torch.isfinite(views).flatten(1).all(1)]
            if len(views) >= _LEAST:
                agreement = cluster_agreement(views[:, 0], views[:, 1])
                scalars["clusters/agreement"] = agreement.item()
        return scalars
