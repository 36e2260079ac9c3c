"""How embeddings respond to noise: in go reference images, out comes a law that knows it.

The covariance of J u, u white noise in the pixels, is an estimate of the mean of J Jᵀ. Coordinates in which
it is the identity make the spectra of single images flat, so that few steps of
:mod:`~jepa_monitor.jacobian.lanczos` see all of them (docs/sketching.md). It takes forward passes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from jepa_monitor.functional.gaussian import Gaussian

__all__ = ["RESPONSES", "Nudges", "RespondingLaw", "responding_law"]

RESPONSES = 1000  # images that are nudged at most
_SIZE = 1e-2  # of the nudge, in units of the root mean square of the first images


@dataclass(frozen=True, eq=False)
class RespondingLaw(Gaussian):
    """A law of embeddings, and that of their response to noise in the pixels.

    Args:
        response: Law of J u of reference images for white noise u.
    """

    response: Gaussian = field(kw_only=True)

    def to(self, device: torch.device | str) -> RespondingLaw:
        """Copy to a device.

        Args:
            device: Where the tensors shall live.

        Returns:
            The same law there.
        """
        law = super().to(device)
        response = self.response.to(device)
        return RespondingLaw(law.mean, law.covariance, law.count, law.shrinkage, response=response)


class Nudges:
    """Moves images there and back along white noise, batch by batch; the same noise every time."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._left = RESPONSES
        self.step: float | None = None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Move the next images, as many of them as are still wanted.

        Args:
            images: (B, ...).

        Returns:
            Those moved there, and those moved back, (b, ...), b ≤ B.
        """
        some = images[: self._left]
        self._left -= len(some)
        if self.step is None:
            self.step = _SIZE * max(float(some.double().square().mean().sqrt()), 1e-6)
        noise = torch.randn(some.shape, generator=self._generator).to(some)
        return some + self.step * noise, some - self.step * noise

    def response(self, ahead: Tensor, behind: Tensor) -> Tensor:
        """Give J u from the embeddings of what was moved.

        Args:
            ahead: Of the images moved there, (b, K).
            behind: Of those moved back.

        Returns:
            (b, K), float64.
        """
        assert self.step is not None
        return (ahead.double() - behind.double()) / (2 * self.step)


def responding_law(law: Gaussian, responses: Tensor) -> Gaussian:
    """Join a law and responses to noise.

    Args:
        law: Of the embeddings.
        responses: J u of images, (M, K); those that are not finite are left out.

    Returns:
        A law that knows of them; ``law`` itself if there are fewer than two, or none is different from 0.
    """
    finite = responses[torch.isfinite(responses).all(1)].double()
    if len(finite) < 2 or not bool(finite.any()):
        return law
    response = Gaussian.fit(finite)
    return RespondingLaw(law.mean, law.covariance, law.count, law.shrinkage, response=response)
