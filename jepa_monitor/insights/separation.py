"""Separation: do embeddings keep classes apart?"""

from __future__ import annotations

import math

import torch

from jepa_monitor.functional.separation import separation
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import LABELS

__all__ = ["Separation"]


class Separation(Insight):
    """``separation/*``."""

    name = "separation"
    needs = (LABELS,)
    rows = (
        Row(
            tuple(
                f"separation/{name}"
                for name in ("accuracy", "gap_ratio", "collapse_rate", "auroc", "merged")
            ),
            'with `insights=["separation"]` and `labels`: do classes stay apart?',
            "see below",
            "1, high, 0, 1, 0",
            "classes that merge",
            "O(N²)",
            "[arXiv 2509.12249](https://arxiv.org/abs/2509.12249)",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Ask how well the embeddings of the probe keep classes apart.

        Args:
            look: What was gathered.

        Returns:
            ``separation/*``; nothing if an embedding is not finite.
        """
        if not bool(torch.isfinite(look.probe.embeddings).all()):
            return {}
        numbers = separation(look.probe.embeddings, look[LABELS])._asdict()
        scalars = {f"separation/{name}": value.item() for name, value in numbers.items()}
        # The gap between classes that are points is infinite.
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}
