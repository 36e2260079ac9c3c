"""From Jacobians to numbers: in go matrices, out come singular values and log-volumes in float64."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive
from jepa_monitor.encoders.threads import using_threads

__all__ = [
    "Spectrum",
    "clipped_count",
    "column_blocks",
    "cross_gram",
    "decompose",
    "from_gram",
    "left_vectors",
    "log_volume",
    "noise_floor",
    "power_of_two",
    "refine",
    "uncertain",
]

_ONE_THREAD = 128  # rows
_TF32 = (
    2.0**-13
)  # what zeros come out with, in largest singular values: an eighth of its machine epsilon
_DOUBTFUL_FLOORS = {False: 32, True: 2}  # of TF32 more would be most of a spectrum
_BLOCK_BYTES = 64 * 2**20  # of float64 copies at a time


def _threads_for(matrices: Tensor) -> AbstractContextManager[None]:
    """Decompose small matrices with one thread: several would mostly wait for one another."""
    small = matrices.shape[-2] <= _ONE_THREAD and matrices.device.type == "cpu"
    return using_threads(1 if small else torch.get_num_threads())


def column_blocks(matrices: Tensor) -> tuple[Tensor, ...]:
    """Cut matrices into blocks of columns of which float64 copies are small.

    Args:
        matrices: (B, K, D).

    Returns:
        Views, (B, K, d).
    """
    batch, rows, _ = matrices.shape
    return torch.split(matrices, max(rows, _BLOCK_BYTES // (8 * batch * rows)), dim=2)


def cross_gram(first: Tensor, second: Tensor) -> Tensor:
    """Accumulate the products of all pairs of rows in float64, without float64 copies of it all.

    Args:
        first: (B, K, D).
        second: (B, L, D); may be ``first`` itself.

    Returns:
        (B, K, L), float64.
    """
    gram = first.new_zeros(len(first), first.shape[1], second.shape[1], dtype=torch.float64)
    blocks = column_blocks(first)
    others = blocks
    if second is not first:
        others = torch.split(second, blocks[0].shape[2], dim=2)
    for block, other in zip(blocks, others, strict=True):
        double = block.double()
        gram.baddbmm_(double, double.mT if other is block else other.double().mT)
    return gram


def from_gram(gram: Tensor, rank: int) -> Spectrum:
    """Find singular values and left vectors from the products of all pairs of rows.

    Args:
        gram: (B, K, K), float64.
        rank: How many values to keep at most.

    Returns:
        Values, NaN where ``gram`` is not finite, and vectors.
    """
    finite = torch.isfinite(gram).flatten(1).all(1)
    if not bool(finite.all()):  # LAPACK would raise, and spoil the whole batch
        gram = torch.where(finite[:, None, None], gram, 0.0)
    with _threads_for(gram):
        eigenvalues, vectors = torch.linalg.eigh(gram)
    # Rounding leaves an eigenvalue of 0 on either side of 0.
    values = eigenvalues.clamp_min(0.0).sqrt().flip(-1)[:, :rank]
    return Spectrum(torch.where(finite[:, None], values, torch.nan), vectors.flip(-1)[:, :, :rank])


def _orthogonalised(matrices: Tensor) -> Tensor:
    """The triangle of a QR decomposition of the transposes, block of columns by block of columns."""
    triangle = matrices.new_zeros(matrices.shape[0], 0, matrices.shape[1])
    for block in column_blocks(matrices):
        triangle = torch.linalg.qr(torch.cat([triangle, block.mT], dim=1), mode="r").R
    return triangle


class Spectrum(NamedTuple):
    """Singular values of a batch of matrices.

    Args:
        values: (B, min(K, D)), descending, float64; NaN where a matrix is not finite.
        vectors: Left singular vectors in the same order, (B, K, min(K, D)), float64; ``None`` for
            float64 matrices and for K > D.
    """

    values: Tensor
    vectors: Tensor | None


def decompose(matrices: Tensor) -> Spectrum:
    r"""Find the singular values of a batch of matrices in float64.

    float32 matrices: the square roots of the eigenvalues of :math:`J J^\top`, which is accumulated
    in float64. Its rounding error, :math:`\sqrt{2^{-53}}\,\sigma_1 \approx 10^{-8} \sigma_1`, is
    below that of the matrices themselves, so nothing is lost. float64 matrices: a QR decomposition
    and the singular values of its triangle, exact to about :math:`10^{-16} \sigma_1`.

    Args:
        matrices: (B, K, D), float32 or float64.

    Returns:
        Values and, where they come free, left vectors.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    short = matrices if wide else matrices.mT
    if matrices.dtype != torch.float64:
        found = from_gram(cross_gram(short, short), short.shape[1])
        return found if wide else Spectrum(found.values, None)
    finite = torch.isfinite(matrices).flatten(1).all(1)
    short = torch.where(finite[:, None, None], short, 0.0)
    with _threads_for(short):
        values = torch.linalg.svdvals(_orthogonalised(short))
    return Spectrum(torch.where(finite[:, None], values, torch.nan), None)


def left_vectors(matrices: Tensor) -> Spectrum:
    """Find singular values with their left vectors, as :func:`decompose` does, of any shape and type.

    Args:
        matrices: (B, K, D), float32 or float64.

    Returns:
        min(K, D) values and vectors; the latter are of no use where the values are NaN.
    """
    if matrices.dtype != torch.float64:
        return from_gram(cross_gram(matrices, matrices), min(matrices.shape[1:]))
    finite = torch.isfinite(matrices).flatten(1).all(1)
    filled = torch.where(finite[:, None, None], matrices, 0.0)
    with _threads_for(filled):
        _, values, vectors = torch.linalg.svd(_orthogonalised(filled), full_matrices=False)
    return Spectrum(torch.where(finite[:, None], values, torch.nan), vectors.mT)


def power_of_two(matrices: Tensor) -> Tensor:
    """Find the power of two at the largest entry, division by which is exact.

    Args:
        matrices: Any shape.

    Returns:
        A number of their type; 1 where the largest entry is 0 or not finite.
    """
    largest = matrices.abs().max()
    _, exponent = torch.frexp(largest)
    scale = torch.ldexp(torch.ones_like(largest), exponent - 1)
    return torch.where(torch.isfinite(largest) & (largest > 0), scale, 1.0)


def noise_floor(
    values: Tensor, dtype: torch.dtype, *, squared: bool = False, tf32: bool = False
) -> Tensor:
    r"""The size below which singular values of a computed Jacobian are rounding error.

    :math:`2 \, \epsilon_\text{machine} \, \sigma_1`. Directions in which the Jacobian is exactly zero
    (behind a LayerNorm, say) come out of a float32 backward pass with 0.6 to 1.3 machine epsilons
    times :math:`\sigma_1`, measured on ViTs, a ConvNeXt and an MLP (``benchmarks/noise_floor.py``). Those
    of passes in TF32, whose operands have 10 bits, with 0.01 to 0.18 of its machine epsilon
    :math:`2^{-10}` (``benchmarks/tf32.py``); the floor is a quarter of it.

    Args:
        values: Singular values, (B, r), descending.
        dtype: The type in which the Jacobian was computed.
        squared: Whether the values come of the products of its rows, whose rounding counts for
            float64: the square root of its machine epsilon.
        tf32: Whether backward passes used TF32.

    Returns:
        (B,), float64.
    """
    rounding = _TF32 if tf32 else torch.finfo(dtype).eps
    if squared:
        rounding = max(rounding, math.sqrt(torch.finfo(torch.float64).eps))
    return 2 * rounding * values[:, 0]


def uncertain(values: Tensor, dtype: torch.dtype, eps: float, *, tf32: bool = False) -> Tensor:
    """Find the singular values that rounding may have moved by more than a part in ten thousand.

    Rounding error adds to a singular value in quadrature, so that 32 floors suffice. Of TF32, two are
    taken, beyond which a value is off by some percent at most. Values that are clipped at ``eps`` whatever their rounding error is do not count.

    Args:
        values: Singular values, (B, r), descending.
        dtype: The type in which the Jacobian was computed.
        eps: The clipping value.
        tf32: Whether backward passes used TF32.

    Returns:
        (B, r), bool; in each row one run, maybe empty.
    """
    floor = noise_floor(values, dtype, tf32=tf32)[:, None]
    return (values < _DOUBTFUL_FLOORS[tf32] * floor) & (values + floor > eps)


def refine(matrix: Tensor, spectrum: Spectrum, first: int, rows: Tensor) -> Tensor:
    r"""Replace a run of uncertain singular values of one matrix by exact ones.

    The uncertain left vectors :math:`U_t` span a space in which the float32 matrix is noise. Given
    exact rows :math:`T = U_t^\top J` from a few float64 backward passes, the singular values of T
    with the row space of all larger directions projected out (the Schur complement) are those of J
    up to second order in the noise: :math:`\det(JJ^\top)` factorises in just this way.

    Args:
        matrix: (K, D), float32.
        spectrum: Its decomposition, (1, ...).
        first: Index of the first uncertain value.
        rows: T, (m, D), float64.

    Returns:
        The values, (min(K, D),), descending.
    """
    assert spectrum.vectors is not None
    values, large = spectrum.values[0].clone(), spectrum.vectors[0, :, :first]
    blocks = column_blocks(matrix[None])
    widths = [block.shape[2] for block in blocks]
    products = rows.new_zeros(len(rows), len(matrix))
    for block, target in zip(blocks, torch.split(rows, widths, dim=1), strict=True):
        products += target @ block[0].double().mT
    weights = (products @ large / values[:first].square()) @ large.mT
    residual = rows.clone()
    for block, target in zip(blocks, torch.split(residual, widths, dim=1), strict=True):
        target -= weights @ block[0].double()
    with _threads_for(rows):
        exact = torch.linalg.svdvals(_orthogonalised(residual[None]))[0]
    values[first : first + len(rows)] = exact
    return values.sort(descending=True).values


def _check_singular_values(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"`singular_values` must be a torch.Tensor, got {type(values).__name__}.")
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(
            "`singular_values` must be floating point of shape (B, r), got "
            f"{values.dtype} of shape {tuple(values.shape)}."
        )
    if bool((values < 0).any()):
        raise ValueError("`singular_values` must not be negative.")
    return values.double()


def log_volume(singular_values: Tensor, eps: float = 1e-6) -> Tensor:
    r"""The sum of the logarithms of singular values, :math:`\sum_k \log \max(\sigma_k, \epsilon)`.

    Applied to the Jacobian of an encoder this is JEPA-SCORE (arXiv 2510.05949, app. B).

    Args:
        singular_values: (B, r), not negative.
        eps: Values below it count as it.

    Returns:
        (B,), float64, in nats; NaN where a singular value is NaN.

    Raises:
        TypeError: If ``singular_values`` is no tensor or ``eps`` no number.
        ValueError: If the shape, the type or a value is not as described.

    Example:
        >>> import torch
        >>> from jepa_monitor import log_volume
        >>> log_volume(torch.tensor([[2.0, 0.5], [1.0, 0.0]]))
        tensor([  0.0000, -13.8155], dtype=torch.float64)
    """
    check_positive(eps, "eps")
    return _check_singular_values(singular_values).clamp_min(eps).log().sum(1)


def clipped_count(singular_values: Tensor, eps: float = 1e-6) -> Tensor:
    """Count the singular values that :func:`log_volume` clips, image by image.

    Scores of images with different counts differ by about 13.8 nats a value for that reason alone.

    Args:
        singular_values: (B, r), not negative.
        eps: The clipping value.

    Returns:
        (B,), int64.

    Raises:
        TypeError: If ``singular_values`` is no tensor or ``eps`` no number.
        ValueError: If the shape, the type or a value is not as described.
    """
    check_positive(eps, "eps")
    return (_check_singular_values(singular_values) < eps).sum(1)
