"""A normal law of a few numbers an image: what several detectors have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.functional.gaussian import Gaussian

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LEAST_EXAMPLES", "NormalFeatures"]

LEAST_EXAMPLES = 16
_FOLDS = 4


class NormalFeatures(Detector):
    """Minus the squared Mahalanobis distance of features whose law the examples show.

    It is two-sided by nature: too little of something is as unusual as too much. The covariance is
    shrunk by Ledoit and Wolf's rule, which for a handful of features and few examples tells outliers
    better than the likeliest shrinkage (``docs/detectors.md``).
    """

    least_examples: ClassVar[int] = LEAST_EXAMPLES

    @abstractmethod
    def features(self, data: ScoredSet) -> Tensor:
        """Take the features.

        Args:
            data: The images and what is known of them.

        Returns:
            (B, F), float64; NaN or infinite where there are none.
        """

    def fit(self, reference: Reference) -> Self:
        """Learn the law of the features of the examples that have some.

        Args:
            reference: Reference images with examples.

        Returns:
            Itself.

        Raises:
            ValueError: If fewer than 16 examples have features.
        """
        return self.learn(self.features(reference.require_examples()))

    def learn(self, features: Tensor) -> Self:
        """Learn the law of features.

        Args:
            features: (N, F), float64; rows that are not finite are left out.

        Returns:
            Itself.

        Raises:
            ValueError: If fewer than 16 rows are finite.
        """
        finite = features[torch.isfinite(features).all(1)]
        if len(finite) < LEAST_EXAMPLES:
            raise ValueError(
                f"`reference` must have at least {LEAST_EXAMPLES} examples with finite "
                f"{self.name} features, got {len(finite)} of {len(features)}."
            )
        # Features of different units: shrinkage towards a multiple of the identity needs one.
        self._centre, self._scale = finite.mean(0), finite.std(0)
        self._scale = torch.where(self._scale > 0, self._scale, 1.0)
        self._law = Gaussian.fit((finite - self._centre) / self._scale, "ledoit_wolf")
        return self

    def fit_and_judge(self, reference: Reference) -> Tensor:
        """Fit, and score each example by the law of the folds that it is not in.

        Args:
            reference: Reference images with examples.

        Returns:
            (n,), float64; NaN for features that are not finite, and throughout, without a fit, if
            fewer than 32 are.

        Raises:
            ValueError: If there are no examples.
        """
        features = self.features(reference.require_examples())
        scores = features.new_full((len(features),), torch.nan)
        if int(torch.isfinite(features).all(1).sum()) < 2 * LEAST_EXAMPLES:
            return scores
        fold = torch.arange(len(features)) % _FOLDS
        for k in range(_FOLDS):
            held = fold == k
            scores[held] = copy.copy(self).learn(features[~held]).judge(features[held])
        self.learn(features)
        return scores

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64; NaN for features that are not finite.
        """
        return self.judge(self.features(data))

    def judge(self, features: Tensor) -> Tensor:
        """Measure the distances of features.

        Args:
            features: (B, F), float64.

        Returns:
            (B,), float64; NaN for rows that are not finite.
        """
        finite = torch.isfinite(features).all(1)
        scaled = (torch.where(finite[:, None], features, 0.0) - self._centre) / self._scale
        return torch.where(finite, -self._law.mahalanobis_squared(scaled), torch.nan)
