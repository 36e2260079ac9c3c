"""Energies of octaves of spatial frequency, which cost nothing: the baseline for blur and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor.detectors._normal import NormalFeatures
from jepa_monitor.detectors.inputs import ScoredSet
from jepa_monitor.functional.bands import band_energies

__all__ = ["Bands"]


class Bands(NormalFeatures):
    """Minus the squared distance of the log-energies of octaves from the law of the examples'."""

    name = "bands"

    def features(self, data: ScoredSet) -> Tensor:
        """Take the energies.

        Args:
            data: The images and what is known of them.

        Returns:
            (B, bands), float64; NaN for inputs that are no images.
        """
        if data.images.ndim != 4 or min(data.images.shape[2:]) < 4:
            return torch.full((len(data.images), 1), torch.nan, dtype=torch.float64)
        return band_energies(data.images).log()
