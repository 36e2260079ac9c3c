"""From Jacobians to numbers: in go matrices, out come singular values and log-volumes in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive

__all__ = ["clipped_count", "log_volume", "singular_values"]

_BLOCK_BYTES = 64 * 2**20  # of float64 copies at a time


def _column_blocks(matrices: Tensor) -> list[Tensor]:
    batch, rows, columns = matrices.shape
    width = max(rows, _BLOCK_BYTES // (8 * batch * rows))
    return [matrices[:, :, start : start + width] for start in range(0, columns, width)]


def singular_values(matrices: Tensor) -> Tensor:
    r"""Singular values of a batch of matrices, at the cost of one pass over them.

    float32 matrices: the square roots of the eigenvalues of :math:`J J^\top`, which is accumulated
    in float64. Its rounding error, :math:`\sqrt{2^{-53}}\,\sigma_1 \approx 10^{-8} \sigma_1`, is
    below that of the matrices themselves, so nothing is lost, unlike in a float32 decomposition,
    whose smallest values are rounding error. float64 matrices: a QR decomposition, block of columns
    by block of columns, and the singular values of its triangle, exact to about
    :math:`10^{-16} \sigma_1`.

    Args:
        matrices: (B, K, D), float32 or float64.

    Returns:
        (B, min(K, D)), descending, float64; NaN where a matrix holds NaN or infinity.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    batch, rows, _ = matrices.shape
    if matrices.dtype == torch.float64:
        triangle = matrices.new_zeros(batch, 0, rows)
        for block in _column_blocks(matrices):
            stacked = torch.cat([triangle, block.mT], dim=1)
            triangle = torch.linalg.qr(stacked.nan_to_num(0.0, 0.0, 0.0), mode="r").R
        values = torch.linalg.svdvals(triangle)
    else:
        gram = matrices.new_zeros(batch, rows, rows, dtype=torch.float64)
        for block in _column_blocks(matrices):
            double = block.double()
            gram.baddbmm_(double, double.mT)
        eigenvalues = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0))
        # Rounding leaves an eigenvalue of 0 on either side of 0.
        values = eigenvalues.clamp_min(0.0).sqrt().flip(-1)
    finite = torch.isfinite(matrices).flatten(1).all(1)
    return torch.where(finite[:, None], values, torch.nan)


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

    Applied to the Jacobian of an encoder this is JEPA-SCORE (arXiv 2510.05949, eq. 5 and app. B).

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
