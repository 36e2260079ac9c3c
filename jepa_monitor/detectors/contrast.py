"""The contrast of images, which costs nothing: the baseline for what the Jacobian sees of it."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor.detectors._normal import NormalFeatures
from jepa_monitor.detectors.inputs import ScoredSet
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.functional.contrast import log_contrast

__all__ = ["Contrast"]


class Contrast(NormalFeatures):
    """Minus the squared distance of the log-contrast from that of the examples."""

    name = "contrast"

    def features(self, data: ScoredSet) -> Tensor:
        """Take the contrast.

        Args:
            data: The images and what is known of them.

        Returns:
            (B, 1), float64; NaN of texts, which have none.
        """
        if is_texts(data.images):
            return torch.full((len(data.images), 1), torch.nan, dtype=torch.float64)
        return log_contrast(data.images)[:, None]
