"""Labels that may be wrong: in go embeddings and classes, out comes how much nearer the own class is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional.gaussian import Gaussian

__all__ = ["Classes", "fit_classes"]

_LEAST = 2  # images of a class, of which one can be left out


class Classes(NamedTuple):
    """Classes as normal laws of one covariance, that of the embeddings within classes.

    Args:
        names: Of the C classes.
        means: (C, K), whitened.
        counts: Number of embeddings behind each mean, (C,).
        law: Of the embeddings within classes.
    """

    names: tuple[str, ...]
    means: Tensor
    counts: Tensor
    law: Gaussian

    def score(
        self, embeddings: Tensor, labels: Sequence[str | None], own: Tensor
    ) -> tuple[Tensor, list[str]]:
        """Say how much nearer images are to their own class than to the nearest other one.

        An image that is behind its class's mean is left out of it.

        Args:
            embeddings: (B, K).
            labels: Class of each.
            own: Which ones are behind the means, (B,), bool.

        Returns:
            Squared distance to the nearest other class less that to the own, (B,), higher for what is
            more usual; NaN for a class that is not known, and for embeddings that are not finite; and
            the nearest other class.
        """
        z = embeddings.double()
        finite = torch.isfinite(z).all(1)
        distances = (self.law.whiten(z.where(finite[:, None], 0.0))[:, None] - self.means).square()
        squared = distances.sum(2)
        number = {name: i for i, name in enumerate(self.names)}
        mine = torch.tensor([number.get(label, -1) if label else -1 for label in labels])
        known = (mine >= 0) & finite
        column = mine.clamp_min(0)[:, None]
        counts = self.counts[column[:, 0]]
        # Without the image the mean is n/(n − 1) times as far away.
        without = torch.where(own, (counts / (counts - 1)).square(), 1.0)
        near = squared.gather(1, column)[:, 0] * without
        nearest = squared.scatter(1, column, torch.inf).min(1)
        scores = torch.where(known, nearest.values - near, torch.nan)
        return scores, [self.names[i] for i in nearest.indices.tolist()]


def fit_classes(embeddings: Tensor, labels: Sequence[str | None]) -> Classes | None:
    """Fit the classes of a reference.

    Args:
        embeddings: (M, K), finite, float64.
        labels: Class of each.

    Returns:
        The classes of two or more images; ``None`` if they are fewer than two, or if there are too
        few images for a covariance of K dimensions.

    Source:
        Lee et al., A simple unified framework for detecting out-of-distribution samples
        (arXiv 1807.03888): class-wise means, one covariance.
    """
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(row)
    rows = {name: rows[name] for name in sorted(rows) if len(rows[name]) >= _LEAST}
    total = sum(len(some) for some in rows.values())
    if len(rows) < 2 or total - len(rows) <= embeddings.shape[1]:
        return None
    means = torch.stack([embeddings[some].mean(0) for some in rows.values()])
    within = torch.cat([embeddings[some] - embeddings[some].mean(0) for some in rows.values()])
    law = Gaussian.fit(within)
    counts = torch.tensor([len(some) for some in rows.values()]).double()
    return Classes(tuple(rows), law.whiten(means), counts, law)
