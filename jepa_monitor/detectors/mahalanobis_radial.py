"""Mahalanobis distance after shrinking long embeddings: by as much as makes the reference likeliest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.functional.gaussian import Gaussian

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RadialMahalanobis"]

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 0.9)
_LEAST = 32


class RadialMahalanobis(Detector):
    r"""Minus the squared Mahalanobis distance of :math:`z / \|z\|^\beta` under the reference's law.

    Embeddings that differ in length more than a normal law allows are spread out along their radius.
    β = 0 leaves them as they are, β = 1 looks at directions alone (Mahalanobis++, arXiv 2505.18032);
    between them lies the family of arXiv 2510.15202. Here β is the one of 0, ¼, ½, ¾ and 0.9 under
    which half of the reference is likeliest by the law of the other half, the change of volume counted:
    the map shrinks radial steps by (1 − β) ‖z‖^−β and the K − 1 others by ‖z‖^−β.

    Args:
        exponent: β, from 0 to 1; ``None`` to choose it.

    Raises:
        ValueError: If ``exponent`` is out of range.
    """

    name = "mahalanobis_radial"
    least_reference = _LEAST
    by_law = True

    def __init__(self, exponent: float | None = None) -> None:
        if exponent is not None and not 0 <= exponent <= 1:
            raise ValueError(f"`exponent` must be from 0 to 1, got {exponent}.")
        self.exponent = exponent

    def fit(self, reference: Reference) -> Self:
        """Choose β where it is not given, and take the law of the shrunk embeddings.

        Args:
            reference: Reference images, at least 32.

        Returns:
            Itself.
        """
        embeddings = reference.embeddings
        self.chosen = self.exponent
        if self.chosen is None:
            losses = {beta: _loss(embeddings, beta) for beta in _EXPONENTS}
            self.chosen = min(losses, key=losses.__getitem__)
        self._law = Gaussian.fit(_shrunk(embeddings, self.chosen))
        return self

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64; NaN for embeddings that are zero or not finite.
        """
        assert self.chosen is not None
        shrunk = _shrunk(data.scored_embeddings, self.chosen)
        finite = torch.isfinite(shrunk).all(1)
        filled = torch.where(finite[:, None], shrunk, 0.0)
        return torch.where(finite, -self._law.mahalanobis_squared(filled), torch.nan)


def _shrunk(embeddings: Tensor, beta: float) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / lengths**beta


def _loss(embeddings: Tensor, beta: float) -> float:
    """Mean negative log-density of every other embedding under the law of the rest, in nats."""
    law = Gaussian.fit(_shrunk(embeddings[::2], beta))
    held_out = embeddings[1::2]
    lengths = torch.linalg.vector_norm(held_out, dim=1)
    volume = embeddings.shape[1] * beta * lengths.log() - math.log(1 - beta)
    return float((volume - law.log_prob(_shrunk(held_out, beta))).mean())
