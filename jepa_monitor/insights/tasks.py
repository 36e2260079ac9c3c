"""Task Priors: how well do embeddings serve tasks that are drawn from the labels?"""

from __future__ import annotations

import math

import torch

from jepa_monitor.functional.task_priors import task_prior_performance
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import LABELS

__all__ = ["Tasks"]


class Tasks(Insight):
    """``tasks/mean``, ``/sd`` and ``/best``."""

    name = "tasks"
    needs = (LABELS,)
    rows = (
        Row(
            ("tasks/mean", "tasks/sd", "tasks/best"),
            'with `insights=["tasks"]` and `labels`: performance over tasks drawn from the labels\' '
            "kernel, its standard deviation, and the most that can be had",
            "−1 … 1",
            "mean towards best",
            "neighbours that share labels",
            "O(N²)",
            "[Task Priors](https://arxiv.org/abs/2507.09871)",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Ask how well the embeddings of the probe serve tasks.

        Args:
            look: What was gathered.

        Returns:
            ``tasks/*``; nothing if an embedding is not finite.
        """
        if not bool(torch.isfinite(look.probe.embeddings).all()):
            return {}
        found = task_prior_performance(look.probe.embeddings, look[LABELS])
        scalars = {
            "tasks/mean": found.mean.item(),
            "tasks/sd": found.variance.sqrt().item(),
            "tasks/best": found.best.item(),
        }
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}
