"""The shape of the Jacobian's spectrum: what the sum of its logarithms loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.detectors._normal import NormalFeatures
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.functional._checks import as_matrix

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SpectrumShape"]

_BLOCKS = 8
_CLIP = 1e-6


class SpectrumShape(NormalFeatures):
    """Minus the squared distance of the log spectrum, in eight blocks, from the examples' law.

    JEPA-SCORE adds the logarithms of the singular values up, so that a spectrum that is too steep and
    one that is too flat may have the same score. Here their means over eight blocks of equal size,
    largest first, follow a normal law that the examples show.

    Stored spectra can be judged by themselves: :meth:`fit` and :meth:`score` also take singular values,
    (N, r), descending.

    Example:
        >>> import torch
        >>> usual = torch.rand(64, 16, generator=torch.Generator().manual_seed(0)) + 1
        >>> usual = usual.sort(1, descending=True).values
        >>> detector = SpectrumShape().fit(usual[:32])
        >>> steep = usual[32:] * torch.linspace(2, 0.5, 16)
        >>> bool(detector.score(usual[32:]).median() > detector.score(steep).max())
        True
    """

    name = "spectrum_shape"

    def features(self, data: ScoredSet | Tensor) -> Tensor:
        """Average the logarithms of the singular values in blocks.

        Args:
            data: Scored images, or singular values (N, r), descending.

        Returns:
            (B, min(8, r)), float64; NaN where there are no singular values.
        """
        values = as_matrix(data, "data") if isinstance(data, Tensor) else data.singular_values
        if not values.shape[1]:  # beside scores that are estimates
            return values.new_full((len(values), 1), torch.nan)
        logs = values.double().clamp_min(_CLIP).log()
        blocks = logs.tensor_split(min(_BLOCKS, logs.shape[1]), 1)
        return torch.stack([block.mean(1) for block in blocks], 1)

    def fit(self, reference: Reference | Tensor) -> Self:
        """Learn what spectra are usual.

        Args:
            reference: Reference images with examples, or singular values (N, r), N ≥ 16.

        Returns:
            Itself.
        """
        if isinstance(reference, Tensor):
            return self.learn(self.features(reference))
        return super().fit(reference)

    def score(self, data: ScoredSet | Tensor) -> Tensor:
        """Measure the distances.

        Args:
            data: Scored images, or singular values (N, r).

        Returns:
            (B,), float64; NaN for spectra that are not finite.
        """
        return self.judge(self.features(data))
