"""Neighbours: does the encoder hold the same images for similar as it did, and as another does?"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor.functional.mutual_neighbors import mutual_knn
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import FIRST_EMBEDDINGS, OTHER_EMBEDDINGS

__all__ = ["Neighbors"]

_NEIGHBOURS = 10


class Neighbors(Insight):
    """``neighbors/drift`` and, with another encoder, ``neighbors/reference``."""

    name = "neighbors"
    needs = (FIRST_EMBEDDINGS,)
    wants = (OTHER_EMBEDDINGS,)
    rows = (
        Row(
            ("neighbors/drift", "neighbors/reference"),
            'with `insights=["neighbors"]`: mutual 10-nearest-neighbour agreement of the probe\'s '
            "embeddings with those of the first evaluation, and of `compare_with`",
            "about 0 … 1",
            "drift settles",
            "what the encoder holds for similar",
            "O(N²)",
            "[arXiv 2405.07987](https://arxiv.org/abs/2405.07987)",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare the neighbourhoods of the probe.

        Args:
            look: What was gathered.

        Returns:
            ``neighbors/*``; nothing for fewer than 12 images and embeddings that are not finite.
        """
        others = {"drift": look[FIRST_EMBEDDINGS]}
        if (other := look.parts.get(OTHER_EMBEDDINGS)) is not None:
            others["reference"] = other
        found = {name: _agreement(look.probe.embeddings, z) for name, z in others.items()}
        return {f"neighbors/{name}": value for name, value in found.items() if value is not None}


def _agreement(first: Tensor, second: Tensor) -> float | None:
    finite = bool(torch.isfinite(first).all()) and bool(torch.isfinite(second).all())
    if not finite or len(first) < _NEIGHBOURS + 2:
        return None
    return mutual_knn(first, second, k=_NEIGHBOURS).item()
