"""What a pass over Jacobians found: in go singular values or samples of log-volumes, out come scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.jacobian.spectrum import log_volume

__all__ = ["Spectra"]


class Spectra(NamedTuple):
    """What one pass over the Jacobians of a set of images yields.

    Args:
        embeddings: (B, K), in the type that the encoder ran in.
        singular_values: Of the rows that were computed, (B, min(R, D)), descending, float64.
        noise_floors: Size below which singular values are rounding error, (B,), float64.
        under_floor: Number of singular values below it that were not refined, (B,), int64; −1 where
            there are none.
        basis: The combinations of rows that were computed, (R, K), float64; ``None`` for all rows
            as they are.
        samples: What each start of ``"lanczos"`` says of the log-volume, and by how much the last step
            has changed that, (B, n, 2), float64, nats; ``None`` for other methods. With it there are no
            singular values, (B, 0), and no floors, NaN.
        products: How that took products J v, in words; empty if it took none.
    """

    embeddings: Tensor
    singular_values: Tensor
    noise_floors: Tensor
    under_floor: Tensor
    basis: Tensor | None
    samples: Tensor | None = None
    products: str = ""

    def scores(self, eps: float) -> Tensor:
        """Take the log-volumes, or what ``"lanczos"`` estimates of them.

        Args:
            eps: Singular values below it count as it.

        Returns:
            (B,), float64, nats; NaN where not finite.
        """
        if self.samples is not None:
            return self.samples[:, :, 0].mean(1)
        return log_volume(self.singular_values, eps)

    def take(self, which: Tensor) -> Spectra:
        """Give those of some images.

        Args:
            which: Their indices, (b,), int64.

        Returns:
            Of b images.
        """
        samples = None if self.samples is None else self.samples[which]
        embeddings, values, floors, under = (part[which] for part in self[:4])
        return Spectra(embeddings, values, floors, under, self.basis, samples, self.products)

    def joined(self, more: Spectra) -> Spectra:
        """Append those of other images, of the same rows.

        Args:
            more: What one pass over these has yielded.

        Returns:
            All, in this order.
        """
        return Spectra(
            torch.cat([self.embeddings, more.embeddings]),
            torch.cat([self.singular_values, more.singular_values]),
            torch.cat([self.noise_floors, more.noise_floors]),
            torch.cat([self.under_floor, more.under_floor]),
            self.basis,
            None
            if self.samples is None or more.samples is None
            else torch.cat([self.samples, more.samples]),
            self.products,
        )
