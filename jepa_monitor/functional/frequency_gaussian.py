"""A normal law of images that has a variance for each spatial frequency, and nothing more to estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jepa_monitor._checks import check_images
from jepa_monitor.functional._checks import as_matrix, require_number

__all__ = ["FrequencyGaussian"]

_BATCH = 64


@dataclass(frozen=True, eq=False)
class FrequencyGaussian:
    r"""Normal law N(μ, Σ) of images, Σ diagonal in spatial frequency, in float64.

    A covariance of D pixels has D²/2 numbers, far more than a reference set determines. Images look
    much the same wherever one cuts them out, and then Σ is diagonal in frequency: one covariance of
    the C channels for each cosine of the two-dimensional DCT-II, and one mean a channel. Cosines
    reflect an image at its borders where Fourier's waves wrap it around, whose jumps would leak into
    all frequencies.

    Variances under :attr:`floor` are raised to it, never dropped, and :attr:`floored` counts them:
    images that were enlarged have no fine detail at all.

    Args:
        channel_mean: (C,).
        spectrum: Covariance of the channels at each frequency, (H, W, C, C), before any floor.
        count: Number N of images behind the fit.
        relative_floor: Smallest variance that counts as such, as a share of the largest. The largest
            is that of brightness, with H·W: at 32 pixels half of CIFAR-10 lies under 1e-6 of it.

    Example:
        >>> import torch
        >>> images = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> law = FrequencyGaussian.fit(images)
        >>> law.width, law.floored
        (192, 0)
        >>> law.whiten(images.flatten(1)).square().mean()
        tensor(1.0000, dtype=torch.float64)
    """

    channel_mean: Tensor
    spectrum: Tensor
    count: int
    relative_floor: float = 1e-9

    @classmethod
    def fit(cls, images: Tensor, relative_floor: float = 1e-9) -> FrequencyGaussian:
        """Fit the mean of each channel and the variances of all frequencies.

        Held-out images of the same law read a white energy of D (1 + C/N), about: a variance from N
        images is off by √(2/N), and too small where it matters.

        Args:
            images: Reference images, (N, C, H, W), N ≥ 2.
            relative_floor: Smallest variance that counts as such, as a share of the largest.

        Returns:
            The fitted law.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If they are no images, less than two, not finite or all constant and equal.
        """
        check_images(images)
        if images.ndim != 4 or len(images) < 2:
            raise ValueError(
                f"`images` must have shape (N, C, H, W), N ≥ 2, got {tuple(images.shape)}."
            )
        require_number(relative_floor, "relative_floor", 0, 1, closed=False)
        parts = torch.split(images, _BATCH)
        mean = torch.cat([part.double().mean((2, 3)) for part in parts]).mean(0)
        channels, height, width = images.shape[1:]
        total = mean.new_zeros(height, width, channels, channels)
        for part in parts:
            waves = _cosines(part.double() - mean[:, None, None])
            total += torch.einsum("nchw,ndhw->hwcd", waves, waves)
        if not float(total.abs().max()) > 0:
            raise ValueError(
                "`images` must differ from each other's mean, got equal constant ones."
            )
        return cls(mean, total / len(images), len(images), relative_floor)

    def scale_rows(self, rows: Tensor) -> Tensor:
        """Change rows to those of a Jacobian with respect to white coordinates, J Σ^½.

        The coordinates are those of :meth:`whiten`.

        Args:
            rows: (N, D).

        Returns:
            (N, D), float64.

        Raises:
            ValueError: If the rows have another width than the law.
        """
        waves = _cosines(self._as_images(rows, "rows"))
        return self._mixed(waves, self._variances.sqrt()).flatten(1)

    def whiten(self, z: Tensor) -> Tensor:
        """White coordinates of images, N(0, I) under the law.

        Args:
            z: Images, (B, D), D = C·H·W.

        Returns:
            (B, D), float64.

        Raises:
            ValueError: If the images have another width than the law.
        """
        waves = _cosines(self._as_images(z, "z") - self.channel_mean[:, None, None])
        return self._mixed(waves, self._variances.rsqrt()).flatten(1)

    @property
    def width(self) -> int:
        """Dimension D."""
        return self.spectrum[..., 0].numel()

    @property
    def mean(self) -> Tensor:
        """μ, (D,)."""
        height, width = self.spectrum.shape[:2]
        return self.channel_mean.repeat_interleave(height * width)

    @cached_property
    def log_det(self) -> float:
        """Log-determinant of Σ, floored directions included."""
        return float(self._variances.log().sum())

    @cached_property
    def floor(self) -> float:
        """Smallest variance that counts as such."""
        return self.relative_floor * float(self._eigen[0].max())

    @cached_property
    def floored(self) -> int:
        """Number of directions whose variance was under the floor and was raised to it."""
        return int((self._eigen[0] < self.floor).sum())

    def to(self, device: torch.device | str) -> FrequencyGaussian:
        """Copy to a device.

        Args:
            device: Where the tensors shall live.

        Returns:
            The same law there.
        """
        mean, spectrum = self.channel_mean.to(device), self.spectrum.to(device)
        return FrequencyGaussian(mean, spectrum, self.count, self.relative_floor)

    def _as_images(self, flat: Tensor, name: str) -> Tensor:
        matrix = as_matrix(flat, name, min_rows=0)
        if matrix.shape[1] != self.width:
            raise ValueError(
                f"`{name}` must have shape (B, {self.width}), got {tuple(flat.shape)}."
            )
        height, width, channels = self.spectrum.shape[:3]
        return matrix.view(-1, channels, height, width)

    def _mixed(self, waves: Tensor, scales: Tensor) -> Tensor:
        """Multiply the channels by the symmetric matrix of these eigenvalues, at each frequency."""
        vectors = self._eigen[1]
        matrices = (vectors * scales[..., None, :]) @ vectors.mT
        return torch.einsum("hwcd,ndhw->nchw", matrices, waves)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.spectrum)
        return values, vectors

    @cached_property
    def _variances(self) -> Tensor:
        return self._eigen[0].clamp(min=self.floor)


def _cosines(images: Tensor) -> Tensor:
    """The orthonormal two-dimensional DCT-II of images (N, C, H, W)."""
    height, width = (_basis(size, images) for size in images.shape[2:])
    return height @ images @ width.T


def _basis(size: int, like: Tensor) -> Tensor:
    index = torch.arange(size, dtype=like.dtype, device=like.device)
    basis = torch.cos(math.pi / size * index[:, None] * (index + 0.5)) * math.sqrt(2 / size)
    basis[0] = 1 / math.sqrt(size)
    return basis
