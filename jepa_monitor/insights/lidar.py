"""LiDAR: in how many directions do images differ by more than their own views do?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from jepa_monitor.functional import lidar
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.views import Views

__all__ = ["Lidar"]

_ENOUGH = 5  # degrees of freedom within images for each dimension


class Lidar(Insight):
    """``lidar/*``, by ten views of up to 512 probe images.

    Args:
        samples: How many images at most.
        views: Views of each.
    """

    name = "lidar"
    rows = (
        Row(
            ("lidar/rank",),
            'with `insights=["lidar"]`: LiDAR of 10 random views (crop, mirror, colours) of up to 512 '
            "probe images, without what noise alone produces",
            "0 … min(n−1, K)",
            "high; 0: no direction tells images apart",
            "directions that separate images beyond their views; absent for fewer than `lidar/needed` "
            "images",
            "5120 images, forward",
            "[LiDAR](https://arxiv.org/abs/2312.04000)",
        ),
        Row(
            ("lidar/ratio", "lidar/ratio_noise"),
            "variance of the images' mean embeddings over the variance within them, and what embeddings "
            "that know nothing of the image read, 1/q",
            "≥ 0",
            "far above the noise's",
            "the same, in size instead of number",
            "free",
        ),
        Row(
            ("lidar/needed",),
            "images that the rank takes: q − 1 views of each, five for each dimension",
            "≥ 2",
            "at most `max_embedding_samples`, and 512",
            "the width of the embeddings",
            "free",
        ),
    )
    panels = (Panel("views", "LiDAR", ("lidar/rank",)),)

    def __init__(self, samples: int = 512, views: int = 10) -> None:
        self.part = Views(samples, views)
        self.needs = (self.part,)

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare the spread of images with that of their views.

        Args:
            look: What was gathered.

        Returns:
            ``lidar/*``, without the rank where the images are too few for the width of the embeddings;
            nothing for fewer than two images.
        """
        views = look[self.part]
        views = views[torch.isfinite(views).flatten(1).all(1)]
        count, number, width = views.shape
        needed = max(2, math.ceil(_ENOUGH * width / (number - 1)))
        scalars = {"lidar/needed": float(needed), "lidar/ratio_noise": 1 / number}
        if count < 2:
            return {}
        exact = views.double()
        means = exact.mean(1)
        within = (exact - means[:, None]).square().sum() / (count * (number - 1))
        ratio = (means.var(0).sum() / within).item()
        if math.isfinite(ratio):
            scalars["lidar/ratio"] = ratio
        if count >= needed:
            scalars["lidar/rank"] = lidar(views).item()
        return scalars

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say why there is no rank.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        if "lidar/needed" not in scalars or "lidar/rank" in scalars:
            return ""
        return f"LiDAR is withheld: embeddings of this width take {scalars['lidar/needed']:.0f} images."
