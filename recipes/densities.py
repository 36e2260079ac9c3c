"""Distributions whose log-density is known in closed form: draw points, and ask for the truth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

_LOG_2PI = math.log(2 * math.pi)


class Density(ABC):
    """A distribution of points in D dimensions, which is its attribute ``dim``."""

    if TYPE_CHECKING:  # a field of some, a property of others

        @property
        def dim(self) -> int:
            """Dimension D."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw independent points.

        Args:
            count: Number N of points.
            generator: Source of all randomness, on the CPU.

        Returns:
            The points, (N, D), float32.
        """

    @abstractmethod
    def log_prob(self, points: Tensor) -> Tensor:
        """Exact log-density.

        Args:
            points: (N, D).

        Returns:
            Log-densities in nats, (N,), float64.
        """


def _at_least_a_plane(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"`dim` must be at least 2, got {dim}.")


def _normal(count: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, dim, generator=generator)


def _log_standard_normal(points: Tensor) -> Tensor:
    return -0.5 * (points.square().sum(-1) + points.shape[-1] * _LOG_2PI)


@dataclass(frozen=True, eq=False)
class GaussianMixture(Density):
    """Round Gaussians of different places, widths and weights.

    Args:
        means: (C, D).
        scales: Standard deviation of each component in all directions, (C,).
        weights: Positive, summing to 1, (C,).
    """

    means: Tensor
    scales: Tensor
    weights: Tensor

    @classmethod
    def random(cls, dim: int, components: int = 5, seed: int = 0) -> GaussianMixture:
        """Draw a mixture of overlapping components with a variance of about 1 a dimension.

        Args:
            dim: Dimension D.
            components: Number C of components.
            seed: Of the draw.

        Returns:
            The mixture.
        """
        generator = torch.Generator().manual_seed(seed)
        # Apart by about 1.3 whatever D: in high dimensions, random means are far apart otherwise.
        means = torch.randn(components, dim, generator=generator) * math.sqrt(2 / dim)
        # Widths that move the log-density by as much between components as a Gaussian moves it
        # within one, whose standard deviation is √(D/2).
        scales = 0.5 * torch.exp(torch.linspace(-1.5, 1.5, components) / math.sqrt(2 * dim))
        weights = torch.linspace(1.0, 2.0, components)
        return cls(means - means.mean(0), scales, weights / weights.sum())

    @property
    def dim(self) -> int:
        """Dimension D."""
        return self.means.shape[1]

    @override
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = _normal(count, self.dim, generator)
        return self.means[chosen] + self.scales[chosen, None] * noise

    @override
    def log_prob(self, points: Tensor) -> Tensor:
        means, scales = self.means.double(), self.scales.double()
        standard = (points.double()[:, None] - means) / scales[:, None]
        components = _log_standard_normal(standard) - self.dim * scales.log()
        return torch.logsumexp(components + self.weights.double().log(), dim=1)


@dataclass(frozen=True)
class Ring(Density):
    r"""A circle blurred by a Gaussian in the first two dimensions, times a Gaussian in the others.

    A uniform point of the circle of radius R plus N(0, τ² I) has a density that depends on the
    distance r from the centre only, with the exact normaliser (the law of r is Rice's):

    .. math:: p(x) = \frac1{2\pi\tau^2} \exp\Bigl(-\frac{r^2 + R^2}{2\tau^2}\Bigr)
        I_0\Bigl(\frac{rR}{\tau^2}\Bigr)

    Args:
        dim: Dimension D, at least 2.
        radius: R.
        thickness: τ.
    """

    dim: int
    radius: float = 1.4
    thickness: float = 0.3

    def __post_init__(self) -> None:
        _at_least_a_plane(self.dim)

    @override
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        points = _normal(count, self.dim, generator)
        angle = 2 * math.pi * torch.rand(count, generator=generator)
        circle = self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        points[:, :2] = circle + self.thickness * points[:, :2]
        return points

    @override
    def log_prob(self, points: Tensor) -> Tensor:
        x = points.double()
        r, variance = torch.linalg.vector_norm(x[:, :2], dim=1), self.thickness**2
        # i0e is exp(−a)·I₀(a): the exponents are joined before anything overflows.
        bessel = torch.special.i0e(r * self.radius / variance).log()
        plane: Tensor = (
            bessel - (r - self.radius).square() / (2 * variance) - math.log(variance) - _LOG_2PI
        )
        return plane + _log_standard_normal(x[:, 2:])


@dataclass(frozen=True)
class Bananas(Density):
    r"""A Gaussian bent by a shear of unit determinant: pairs of coordinates become bananas.

    :math:`(u, v) \mapsto (u, v + b(u^2 - 1))` has the inverse :math:`(u, v) \mapsto
    (u, v - b(u^2 - 1))` and keeps volumes, so the density is that of the Gaussian at the inverse.
    A last coordinate without partner stays Gaussian.

    Args:
        dim: Dimension D, at least 2.
        bend: b.
        thickness: Standard deviation of v; that of u is 1.
    """

    dim: int
    bend: float = 0.6
    thickness: float = 0.5

    def __post_init__(self) -> None:
        _at_least_a_plane(self.dim)

    @override
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        points = _normal(count, self.dim, generator)
        bent = self.thickness * points[:, 1::2] + self._shift(points)
        points[:, 1::2] = bent
        return points

    @override
    def log_prob(self, points: Tensor) -> Tensor:
        x = points.double().clone()
        x[:, 1::2] = (x[:, 1::2] - self._shift(x)) / self.thickness
        return _log_standard_normal(x) - (self.dim // 2) * math.log(self.thickness)

    def _shift(self, points: Tensor) -> Tensor:
        first = points[:, 0::2][:, : self.dim // 2]
        return self.bend * (first.square() - 1)


NAMES = ("mixture", "ring", "bananas")


def make_density(name: str, dim: int, seed: int = 0) -> Density:
    """Build a distribution by name.

    Args:
        name: ``"mixture"``, ``"ring"`` or ``"bananas"``.
        dim: Dimension D, at least 2.
        seed: Of the places of the mixture's components; the others have nothing random.

    Returns:
        The distribution.

    Raises:
        ValueError: If there is none of that name.
    """
    if name == "mixture":
        return GaussianMixture.random(dim, seed=seed)
    if name == "ring":
        return Ring(dim)
    if name == "bananas":
        return Bananas(dim)
    raise ValueError(f"`name` must be one of {', '.join(NAMES)}, got {name!r}.")
