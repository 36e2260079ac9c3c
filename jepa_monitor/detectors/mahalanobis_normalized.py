"""Mahalanobis distance of directions alone."""

from __future__ import annotations

from jepa_monitor.detectors.mahalanobis_radial import RadialMahalanobis

__all__ = ["NormalizedMahalanobis"]


class NormalizedMahalanobis(RadialMahalanobis):
    r"""Minus the squared Mahalanobis distance of :math:`z / \|z\|` under the reference's law.

    Mahalanobis++ (arXiv 2505.18032). Networks with ReLUs give embeddings whose length follows the
    contrast of an image: it drowns what the direction tells (``docs/detectors.md``).
    """

    name = "mahalanobis_normalized"

    def __init__(self) -> None:
        super().__init__(1.0)
