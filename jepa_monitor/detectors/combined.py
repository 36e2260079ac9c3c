"""Several detectors in one: what one of them does not see, another may."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jepa_monitor.detectors._normal import LEAST_EXAMPLES
from jepa_monitor.detectors.bands import Bands
from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.detectors.jepa_score import JepaScore
from jepa_monitor.detectors.knn_normalized import NormalizedKNN
from jepa_monitor.detectors.mahalanobis_normalized import NormalizedMahalanobis
from jepa_monitor.detectors.spectrum_shape import SpectrumShape

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Combined"]

_TAIL = 0.15  # of the examples, whose excesses say how p goes on below them
_LEAST_TAIL = 5


class Combined(Detector):
    r"""Fisher's sum of the logarithms of p-values, over detectors that see different things.

    For each of JEPA-SCORE, Mahalanobis distance and k-NN of normalised embeddings, the shape of the
    spectrum and octaves of frequency, an image has the share p of the examples that are no more usual than it,
    :math:`(1 + \#\{s_i \le s\}) / (n + 1)`; the score is their mean :math:`\log p`. Beyond the least usual
    15 % of the examples p falls off exponentially, at the rate of their mean excess: with 64 examples the
    share alone ends at 1/65, and one detector that is certain would count for no more than one that
    wonders. Detectors that learn from examples judge each of them as the other three quarters have it. The
    p-values are not independent, so that the sum has no law of its own: thresholds come from reference
    images that no detector has learned from, which is exact whatever the dependence (combine first,
    calibrate after).

    A detector that has nothing to say, of inputs that are no images or of a reference that is too small,
    is left out.
    """

    name = "combined"
    least_reference = 2
    least_examples: ClassVar[int] = 2 * LEAST_EXAMPLES
    parts: ClassVar[tuple[Detector, ...]] = (
        JepaScore(),
        NormalizedMahalanobis(),
        NormalizedKNN(),
        SpectrumShape(),
        Bands(),
    )

    def fit(self, reference: Reference) -> Self:
        """Fit the parts, and keep what they say of the examples.

        Args:
            reference: Reference images with at least 32 examples.

        Returns:
            Itself.

        Raises:
            ValueError: If there are no examples, or no part has anything to say of them.
        """
        reference.require_examples()
        self._fitted: list[tuple[Detector, Tensor]] = []
        for part in self.parts:
            if len(reference.embeddings) < part.least_reference:
                continue
            fitted = copy.copy(part)
            usual = fitted.fit_and_judge(reference)
            usual = usual[torch.isfinite(usual)]
            if len(usual) >= LEAST_EXAMPLES:
                self._fitted.append((fitted, usual))
        if not self._fitted:
            raise ValueError(
                f"`reference` must have examples that {', '.join(p.name for p in self.parts)} can "
                "score, got none."
            )
        return self

    def score(self, data: ScoredSet) -> Tensor:
        """Average the logarithms of the p-values.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64, at most 0, of no lower bound; NaN for images of which no part has anything to say.
        """
        logs = []
        for part, usual in self._fitted:
            scores = part.score(data)
            logs.append(torch.where(torch.isfinite(scores), _log_p(scores, usual), torch.nan))
        return torch.stack(logs).nanmean(0)


def _log_p(scores: Tensor, usual: Tensor) -> Tensor:
    """Logarithm of the share of the usual that score as low, and of its exponential tail."""
    ordered, size = usual.double().sort().values, len(usual)
    logs = ((1 + (usual[None] <= scores[:, None]).sum(1)).double() / (size + 1)).log()
    tail = max(_LEAST_TAIL, round(_TAIL * size))
    # Excesses over a threshold are exponential, or close to it, for most laws (Pickands, 1975).
    threshold = ordered[tail - 1 : tail + 1].mean()
    excess = (threshold - ordered[:tail]).mean()
    if not excess > 0:
        return logs  # tied scores have no tail
    beyond = math.log(tail / (size + 1)) - (threshold - scores) / excess
    return torch.where(scores < threshold, beyond, logs)
