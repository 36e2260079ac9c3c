"""How white images are under the spectrum of others, which needs no encoder: what an encoder leaves unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from jepa_monitor.detectors._normal import LEAST_EXAMPLES
from jepa_monitor.detectors.base import Detector
from jepa_monitor.detectors.inputs import Reference, ScoredSet
from jepa_monitor.functional.frequency_gaussian import FrequencyGaussian

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WhiteEnergy"]

_FOLDS = 8
_LEAST_SIDE = 4


class WhiteEnergy(Detector):
    r"""Minus the squared distance of the log of an image's white energy from that of the examples.

    The white energy :math:`\|u\|^2 / D` of :math:`u = \Sigma_x^{-1/2}(x - \mu_x)` counts every cosine of
    the image over what the examples have of it, the faintest like the strongest. Nearly all of it lies along the
    fibre of an encoder with K ≪ D: it is what the density of an embedding cannot see. Examples are
    measured by the law of those of other folds.

    It sees whatever has been done to the pixels, and so also that the reference was cropped and
    enlarged or compressed in another way than the images it is compared with.
    """

    name = "white_energy"
    least_examples: ClassVar[int] = 2 * LEAST_EXAMPLES

    def fit(self, reference: Reference) -> Self:
        """Learn the spectrum of the examples, and how far their energies are spread.

        Args:
            reference: Reference images with at least 32 examples.

        Returns:
            Itself.

        Raises:
            ValueError: If there are no examples, or they are no images that differ.
        """
        images = reference.require_examples().images
        if not _are_images(images):
            raise ValueError(
                f"`reference` must hold images (B, C, H, W) of {_LEAST_SIDE} pixels and more, got "
                f"{tuple(images.shape)}."
            )
        fold = torch.arange(len(images)) % _FOLDS
        energies = torch.empty(len(images), dtype=torch.float64)
        for k in range(_FOLDS):
            held = fold == k
            energies[held] = _log_energy(FrequencyGaussian.fit(images[~held]), images[held])
        self._law = FrequencyGaussian.fit(images)
        self._centre, self._scale = energies.mean(), energies.std()
        self._examples = energies
        return self

    def fit_and_judge(self, reference: Reference) -> Tensor:
        """Fit, and score each example by the law of the folds that it is not in.

        Args:
            reference: Reference images with at least 32 examples.

        Returns:
            (n,), float64; NaN throughout, without a fit, for inputs that are no images.

        Raises:
            ValueError: If there are no examples, or they do not differ.
        """
        images = reference.require_examples().images
        if not _are_images(images):
            return torch.full((len(images),), torch.nan, dtype=torch.float64)
        self.fit(reference)
        return self._distance(self._examples)

    def score(self, data: ScoredSet) -> Tensor:
        """Measure the distances.

        Args:
            data: The images and what is known of them.

        Returns:
            (B,), float64, at most 0.
        """
        return self._distance(_log_energy(self._law, data.images))

    def _distance(self, energies: Tensor) -> Tensor:
        return -((energies - self._centre) / self._scale).square()


def _are_images(images: Tensor) -> bool:
    return images.ndim == 4 and min(images.shape[2:]) >= _LEAST_SIDE


def _log_energy(law: FrequencyGaussian, images: Tensor) -> Tensor:
    parts = torch.split(images.flatten(1), 64)
    return torch.cat([law.whiten(part).square().mean(1) for part in parts]).log()
