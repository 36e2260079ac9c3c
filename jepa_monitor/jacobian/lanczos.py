r"""Block Golub-Kahan: in go an encoder and images, out comes what a few starts say of their log-volumes.

With orthonormal starts :math:`u_i` the log-volume :math:`\frac12 \operatorname{tr} \log A`, A = W J Jᵀ Wᵀ, is
about :math:`\frac{K}{2n} \sum_i u_i^\top \log(A) \, u_i`. Each term is a Gauss quadrature over the block
Krylov space of the starts: rows uᵀW J by backward passes, the next block from W J v with v the part of
these rows that is new. Its nodes are singular values of the rows, taken in float64. A Gauss quadrature of
the logarithm is never too low, and what it is too high by falls with every step: as if by a half each time,
the change of the last step is added once more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.forward_products import ForwardProducts
from jepa_monitor.jacobian.rows import embed_with_graph
from jepa_monitor.jacobian.spectrum import left_vectors

__all__ = ["Basis", "balanced_starts", "krylov_basis", "quadrature", "start_samples"]


class Basis(NamedTuple):
    """The coordinates of a Krylov space, and where it starts.

    Args:
        weights: W, (K, K), of determinant ±1, so that W J has the volume of J; ``None`` for the identity.
        starts: Orthonormal rows, (n, K), or (n, D) where there are fewer inputs than embeddings have
            numbers; float64.
        steps: Blocks of rows.
        tall: Whether K > D; then the space is one of inputs.
    """

    weights: Tensor | None
    starts: Tensor
    steps: int
    tall: bool


def balanced_starts(count: int, width: int, seed: int) -> Tensor:
    """Draw orthonormal vectors that have the same share in every coordinate.

    Rows of a Fourier basis with random signs, in a random order of the coordinates; the squares of each
    pair, a cosine and a sine, add up to a constant. A matrix that is diagonal in these coordinates has its
    trace measured without error, whatever the draw.

    Args:
        count: n.
        width: Of the vectors, at least n.
        seed: Of the draw.

    Returns:
        (n, width), float64, on the CPU.

    Raises:
        ValueError: If there are more vectors than coordinates.
    """
    if count > width:
        raise ValueError(f"`count` must be at most the width, {width}, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    signs = 2 * torch.randint(2, (width,), generator=generator).double() - 1
    place = torch.randperm(width, generator=generator).double()
    waves = torch.randperm((width - 1) // 2, generator=generator) + 1
    rows = []
    for wave in waves[: count // 2].tolist():
        angle = 2 * math.pi * wave * place / width
        rows += [angle.cos() * math.sqrt(2 / width), angle.sin() * math.sqrt(2 / width)]
    flat = [torch.full((width,), width**-0.5, dtype=torch.float64)]
    if width % 2 == 0:
        flat.append((math.pi * place).cos() / math.sqrt(width))
    rows += flat[: count - len(rows)]
    return torch.stack(rows) * signs


def krylov_basis(
    starts: int, steps: int, width: int, inputs: int, law: Gaussian | None, seed: int
) -> Basis:
    """Choose the coordinates in which, and the vectors from which, Krylov spaces are built.

    Args:
        starts: n.
        steps: m.
        width: K.
        inputs: D.
        law: Whose covariance is made the identity: best of the response to noise
            (:mod:`~jepa_monitor.jacobian.response`); ``None`` for coordinates as they are.
        seed: Of the starts; the same for all images, evaluations and processes.

    Returns:
        The basis, on the CPU.
    """
    tall = width > inputs
    if law is None or tall:
        return Basis(None, balanced_starts(starts, min(width, inputs), seed), steps, tall)
    values, vectors = torch.linalg.eigh(law.covariance.cpu())
    logs = values.clamp_min(law.floor).log()
    weights = (0.5 * (logs.mean() - logs)).exp()[:, None] * vectors.mT
    return Basis(weights, balanced_starts(starts, width, seed), steps, False)


def _orthonormal(rows: Tensor, known: list[Tensor]) -> Tensor:
    """Make rows, (B, n, d), orthonormal and orthogonal to known ones; of an exhausted space any others."""
    for _ in range(2):  # once leaves rounding errors
        for block in known:
            rows = rows - (rows @ block.mT) @ block
        rows = torch.linalg.qr(rows.mT).Q.mT
    return rows


def _finite(block: Tensor, bad: Tensor) -> Tensor:
    """Replace what is not finite by zeros, and note of which images it was."""
    wrong = ~torch.isfinite(block).flatten(1).all(1)
    bad |= wrong
    return torch.where(wrong[:, None, None], 0.0, block)


def start_samples(
    embedder: Embedder, images: Tensor, basis: Basis, products: ForwardProducts | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Build the Krylov space of each image of a chunk, and take what each start says of its log-volume.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: (B, ...), of its dtype.
        basis: Coordinates, on the device of the images, starts and steps.
        products: How J v is taken; ``None`` for a single step of rows, which takes none.
        eps: Singular values below it count as it.

    Returns:
        The embeddings, (B, K), and the samples, (B, n, 2), float64, nats: what each start says, and by how
        much the last step has changed that; NaN where a Jacobian is not finite, and the change of a
        single step.
    """
    leaf, embeddings = embed_with_graph(embedder, images)
    ahead = None if products is None else products.begin(images)
    bad = ~torch.isfinite(embeddings).all(1)
    weights = basis.weights

    def back(block: Tensor) -> Tensor:
        """Rows uᵀW J, (B, n, D), in the encoder's type, of vectors u in float64, (B, n, K)."""
        cotangents = (block if weights is None else block @ weights).to(embeddings.dtype)
        rows = [
            torch.autograd.grad(
                embeddings, leaf, cotangent, retain_graph=True, materialize_grads=True
            )[0].flatten(1)
            for cotangent in cotangents.unbind(1)
        ]
        return torch.stack(rows, 1)

    def forth(block: Tensor) -> Tensor:
        """W J v, (B, n, K), float64, of directions v, (B, n, D)."""
        assert ahead is not None
        directions = block.to(images.dtype).unbind(1)
        found = [ahead(direction.view_as(images)) for direction in directions]
        stacked = torch.stack(found, 1).double()
        return stacked if weights is None else stacked @ weights.mT

    there, return_ = (forth, back) if basis.tall else (back, forth)
    starts = basis.starts.to(images.device)
    block = starts.expand(len(images), -1, -1)
    near, rows = [block], []
    far: list[Tensor] = []
    for step in range(basis.steps):
        taken = _finite(there(block), bad)
        rows.append(taken)
        if step + 1 < basis.steps:
            far.append(_orthonormal(taken, far))
            block = _orthonormal(_finite(return_(far[-1]), bad).double(), near)
            near.append(block)
    size, count = starts.shape[1], len(starts)
    found = quadrature(torch.cat(rows, 1), count, size, eps)
    change = torch.full_like(found, torch.nan)
    if basis.steps > 1:
        change = found - quadrature(torch.cat(rows[:-1], 1), count, size, eps)
    samples = torch.stack([found + change.nan_to_num(0.0), change], 2)
    return embeddings.detach(), torch.where(bad[:, None, None], torch.nan, samples)


def quadrature(rows: Tensor, count: int, size: int, eps: float) -> Tensor:
    r"""Take :math:`\frac{d}{2} u_i^\top \log(A) u_i` of the first rows, by Gauss quadrature.

    Args:
        rows: Products of orthonormal vectors of a Krylov space, its starts first, (B, r, D), r ≤ D.
        count: Starts, n.
        size: Dimension d of the space of the starts.
        eps: Singular values below it count as it.

    Returns:
        (B, n), float64.
    """
    found = left_vectors(rows)
    assert found.vectors is not None
    shares = found.vectors[:, :count].square()
    return size * (shares * found.values.clamp_min(eps).log()[:, None]).sum(2)
