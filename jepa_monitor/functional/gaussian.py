"""A normal law fitted to embeddings: Mahalanobis distances, log-densities and whitening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor.functional._checks import as_matrix, require_number

Shrinkage = Literal["leave_one_out", "ledoit_wolf"] | float

_LARGEST = 1e75  # of a coordinate; fourth powers of more, and sums of them, overflow
_INTENSITIES = tuple(10 ** (-halves / 2) for halves in range(17))  # 1 to 1e-8


@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""Normal law N(μ, Σ) of embeddings, in float64.

    Collapsed embeddings have a singular Σ, under which no density exists. Eigenvalues of Σ under
    :attr:`floor` are therefore *raised* to it, never dropped, and :attr:`floored` counts them:
    distances, log-densities and the whitening stay finite, and a point off the support is very
    far away. A point mass floors all K directions.

    Args:
        mean: μ, shape (K,).
        covariance: Σ after shrinkage, shape (K, K), symmetric.
        count: Number N of embeddings behind the fit.
        shrinkage: Share of the scaled identity in Σ, from 0 to 1.

    Example:
        >>> import torch
        >>> z = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3., 1])
        >>> gaussian = Gaussian.fit(z)
        >>> round(gaussian.shrinkage, 3), gaussian.floored
        (0.003, 0)
        >>> gaussian.mahalanobis_squared(z).mean()
        tensor(2.0, dtype=torch.float64)
    """

    mean: Tensor
    covariance: Tensor
    count: int
    shrinkage: float

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        shrinkage: Shrinkage = "leave_one_out",
    ) -> Gaussian:
        r"""Fit mean and shrunk covariance.

        Σ = (1 − s)·S + s·(tr S / K)·I with the empirical covariance S (divided by N). A positive s
        makes Σ regular unless the embeddings are constant, also for N ≤ K.

        By default s is the one under which each embedding is likeliest by the law of all others:
        what a density should be chosen by. Ledoit and Wolf's s minimises the expected Frobenius
        distance to the true covariance, which the largest directions decide. It drowns the many
        small directions of an encoder, whose held-out embeddings then seem far too central (mean
        squared Mahalanobis distance 0.6 K instead of K; docs/theory.md).

        Args:
            embeddings: Embeddings of the reference set, shape (N, K), N ≥ 2.
            shrinkage: ``"leave_one_out"``: from 1 to 1e-8, to half a decade; 1 for N = 2; where no law
                without one embedding exists, Ledoit and Wolf's. ``"ledoit_wolf"`` always. Or s itself,
                from 0 (empirical) to 1 (isotropic).

        Returns:
            The fitted law. Nothing of the embeddings' autograd graph is kept.

        Raises:
            ValueError: If an embedding is not finite, or further than 1e75 from the mean.

        Source:
            Hoffbeck & Landgrebe, Covariance matrix estimation and classification with limited
            training data (IEEE PAMI 18, 1996), for the leave-one-out likelihood; Ledoit & Wolf, A
            well-conditioned estimator for large-dimensional covariance matrices (J. Multivariate
            Analysis 88, 2004), Sec. 3.2.
        """
        z = as_matrix(embeddings, "embeddings", min_rows=2).detach()
        count = z.shape[0]
        mean = z.mean(dim=0)
        centred = z - mean
        largest = float(centred.abs().max())
        if not largest < _LARGEST:
            raise ValueError(
                f"`embeddings` must lie within {_LARGEST:g} of their mean, so that float64 holds the "
                f"fourth powers of distances, got {largest:.3g}: divide them by a constant."
            )
        empirical = centred.T @ centred / count
        scale = empirical.diagonal().mean()
        if isinstance(shrinkage, str):
            check_choice(shrinkage, "shrinkage", ("leave_one_out", "ledoit_wolf"))
            found = _leave_one_out(centred, empirical) if shrinkage == "leave_one_out" else None
            intensity = _ledoit_wolf(centred, empirical) if found is None else found
        else:
            intensity = require_number(shrinkage, "shrinkage", 0, 1)
        covariance = (1 - intensity) * empirical
        covariance.diagonal().add_(intensity * scale)
        return cls(mean, covariance, count, intensity)

    def mahalanobis_squared(self, z: Tensor) -> Tensor:
        """Squared Mahalanobis distance (z − μ)ᵀ Σ⁻¹ (z − μ).

        Args:
            z: Embeddings, shape (B, K).

        Returns:
            Distances in float64, shape (B,), at least 0; their mean is about K under the law.
        """
        return self.whiten(z).square().sum(dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density −½ (z − μ)ᵀ Σ⁻¹ (z − μ) − ½ log det(2πΣ), in nats.

        Args:
            z: Embeddings, shape (B, K).

        Returns:
            Log-densities in float64, shape (B,).
        """
        normalizer = self.log_det + self.width * math.log(2 * math.pi)
        return -0.5 * (self.mahalanobis_squared(z) + normalizer)

    def whiten(self, z: Tensor) -> Tensor:
        """Σ^(−½) (z − μ), which is N(0, I) under the law.

        Args:
            z: Embeddings, shape (B, K).

        Returns:
            Whitened embeddings in float64, shape (B, K).

        Raises:
            ValueError: If z has another width than the law.
        """
        matrix = as_matrix(z, "z", min_rows=0)
        if matrix.shape[1] != self.width:
            raise ValueError(f"`z` must have shape (B, {self.width}), got {tuple(z.shape)}.")
        return (matrix - self.mean) @ self.whitening

    def scale_rows(self, rows: Tensor) -> Tensor:
        """Change rows of a Jacobian to those with respect to whitened coordinates, J Σ^½.

        Args:
            rows: Shape (N, K).

        Returns:
            Rows in float64, shape (N, K).

        Raises:
            ValueError: If the rows have another width than the law.
        """
        matrix = as_matrix(rows, "rows", min_rows=0)
        if matrix.shape[1] != self.width:
            raise ValueError(f"`rows` must have shape (N, {self.width}), got {tuple(rows.shape)}.")
        _, vectors = self._eigen
        return (matrix @ vectors * self._variances.sqrt()) @ vectors.T

    @property
    def width(self) -> int:
        """Dimension K."""
        return self.mean.shape[0]

    @cached_property
    def whitening(self) -> Tensor:
        """Symmetric inverse square root Σ^(−½), shape (K, K)."""
        _, vectors = self._eigen
        return (vectors * self._variances.rsqrt()) @ vectors.T

    @cached_property
    def log_det(self) -> float:
        """Log-determinant of Σ, floored directions included."""
        return float(self._variances.log().sum())

    @cached_property
    def floor(self) -> float:
        """Smallest variance that counts as such: what float64 resolves beside Σ and μ."""
        eps = torch.finfo(torch.float64).eps * self.width
        largest = float(self._eigen[0][-1])
        return max(eps * largest, (eps * float(self.mean.abs().max())) ** 2, 1e-30)

    @cached_property
    def floored(self) -> int:
        """Number of directions whose variance was under the floor and was raised to it."""
        return int((self._eigen[0] < self.floor).sum())

    def to(self, device: torch.device | str) -> Gaussian:
        """Copy to a device.

        Args:
            device: Where the tensors shall live.

        Returns:
            The same law there.
        """
        mean, covariance = self.mean.to(device), self.covariance.to(device)
        return Gaussian(mean, covariance, self.count, self.shrinkage)

    def to_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers for a checkpoint.

        Returns:
            What :meth:`from_dict` takes; loads with ``weights_only=True``.
        """
        return {
            "mean": self.mean,
            "covariance": self.covariance,
            "count": self.count,
            "shrinkage": self.shrinkage,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Gaussian:
        """Restore a law from :meth:`to_dict`.

        Args:
            state: The dictionary.

        Returns:
            The law.
        """
        return cls(
            state["mean"], state["covariance"], int(state["count"]), float(state["shrinkage"])
        )

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    @cached_property
    def _variances(self) -> Tensor:
        return self._eigen[0].clamp(min=self.floor)


def _ledoit_wolf(centred: Tensor, empirical: Tensor) -> float:
    count, width = centred.shape
    norm = float(empirical.square().sum())
    distance = (norm - float(empirical.trace()) ** 2 / width) / width
    # Σ_ij of the mean of x_i² x_j² is the mean of ‖x‖⁴: no K×K product of squares is needed.
    error = (float(centred.square().sum(dim=1).square().mean()) - norm) / (width * count)
    error = min(max(error, 0.0), distance)
    return error / distance if error > 0 else 0.0


def _leave_one_out(centred: Tensor, empirical: Tensor) -> float | None:
    """Find the s under which each embedding is likeliest by the law of all others, if there is one."""
    # Without embedding i the covariance is N/(N − 1)·S − N/(N − 1)²·cᵢcᵢᵀ, and the embedding's
    # distance from the mean N/(N − 1)·cᵢ: one eigendecomposition and rank-one updates serve all.
    count, width = centred.shape
    scale = float(empirical.diagonal().mean())
    if count == 2:  # one difference: by Ledoit and Wolf's rule s is 0, and rounding decides on Σ⁻¹
        return 1.0
    if scale <= (torch.finfo(torch.float64).eps * float(centred.abs().max())) ** 2:
        return None
    values, vectors = torch.linalg.eigh(empirical)
    values, squares = values.clamp_min(0.0), (centred @ vectors).square()
    ratio = count / (count - 1)
    scales = ratio * scale - ratio / (count - 1) * squares.sum(dim=1, keepdim=True) / width
    best, chosen = -math.inf, None
    for s in _INTENSITIES:
        variances = (1 - s) * ratio * values + s * scales
        distance = (squares / variances).sum(dim=1)
        remaining = 1 - (1 - s) * ratio / (count - 1) * distance  # determinant of the update
        squared = ratio**2 * distance / remaining
        likelihood = -0.5 * (squared + variances.log().sum(dim=1) + remaining.log()).mean()
        if bool((remaining > 0).all()) and float(likelihood) > best:
            best, chosen = float(likelihood), s
    return chosen
