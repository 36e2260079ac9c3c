"""LoRA updates: in go the two factors, out comes how much of the update lies in one direction."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int

__all__ = ["lora_top_share", "random_lora_top_share"]

_DRAWS = 64


def lora_top_share(down: Tensor, up: Tensor) -> Tensor:
    r"""Share of a LoRA update's energy in its first singular value, :math:`\sigma_1^2(BA) / \|BA\|_F^2`.

    From 1/r, all r directions alike, to 1, one direction: what a shortcut that one word triggers needs. The product is never
    made: with :math:`B = Q_B R_B` and :math:`A^\top = Q_A R_A` its singular values are those of the r × r matrix
    :math:`R_B R_A^\top`. The scale :math:`\alpha / r` does not matter. Compare it with
    :func:`random_lora_top_share`, its value for factors without any structure.

    Args:
        down: A, (r, inputs).
        up: B, (outputs, r).

    Returns:
        0-dimensional, float64; NaN for an update of zero, as B is before training.

    Raises:
        ValueError: If shapes do not fit, or a number is not finite.

    Cost:
        O((inputs + outputs) r²).

    Source:
        LoRA: arXiv 2106.09685; the share as a sign of a shortcut is ours.

    Example:
        >>> import torch
        >>> lora_top_share(torch.eye(2, 5), torch.eye(4, 2) * torch.tensor([3.0, 1.0]))
        tensor(0.9000, dtype=torch.float64)
    """
    for name, value in (("down", down), ("up", up)):
        if value.ndim != 2 or not value.is_floating_point() or value.numel() == 0:
            raise ValueError(
                f"`{name}` must be a matrix of floating-point numbers, got {value.dtype} of shape "
                f"{tuple(value.shape)}."
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"`{name}` must be finite.")
    if len(down) != up.shape[1]:
        raise ValueError(
            f"`up` must have {len(down)} columns, as many as `down` has rows, got {up.shape[1]}."
        )
    inner = _triangle(up.detach().double()) @ _triangle(down.detach().double().mT).mT
    return _share(torch.linalg.svdvals(inner))


def random_lora_top_share(
    rank: int, inputs: int, outputs: int, *, draws: int = _DRAWS, seed: int = 0
) -> Tensor:
    """Mean of :func:`lora_top_share` over factors of independent normal numbers: its chance level.

    Only the r × r triangles of the factors are drawn, by Bartlett's decomposition: a χ on the diagonal, normal
    numbers above it.

    Args:
        rank: r, at most ``inputs`` and ``outputs``.
        inputs: Columns of A.
        outputs: Rows of B.
        draws: How many updates to draw.
        seed: Of the draws.

    Returns:
        0-dimensional, float64; 1 for rank 1.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If one is less than 1, or the rank is above ``inputs`` or ``outputs``.

    Cost:
        O(draws · r³).

    Source:
        Bartlett (Proc. Royal Society of Edinburgh 53, 260, 1933).

    Example:
        >>> random_lora_top_share(1, 384, 384)
        tensor(1., dtype=torch.float64)
        >>> random_lora_top_share(32, 384, 384)
        tensor(0.0604, dtype=torch.float64)
    """
    for name, value in (("rank", rank), ("inputs", inputs), ("outputs", outputs), ("draws", draws)):
        check_positive_int(value, name)
    if rank > min(inputs, outputs):
        raise ValueError(
            f"`rank` must be at most `inputs` and `outputs`, {inputs} and {outputs}, got {rank}."
        )
    generator = torch.Generator().manual_seed(seed)

    def triangles(rows: int) -> Tensor:
        normal = torch.randn(draws, rank, rank, generator=generator, dtype=torch.float64).triu(1)
        degrees = rows - torch.arange(rank, dtype=torch.float64)
        # χ² of n degrees is Γ(n/2) doubled; this sampler takes no generator, so it is made of normals.
        squares = torch.stack(
            [
                torch.randn(draws, int(n), generator=generator, dtype=torch.float64).square().sum(1)
                for n in degrees
            ],
            1,
        )
        return normal + torch.diag_embed(squares.sqrt())

    values = torch.linalg.svdvals(triangles(outputs) @ triangles(inputs).mT)
    return _share(values).mean()


def _triangle(matrix: Tensor) -> Tensor:
    triangle: Tensor = torch.linalg.qr(matrix, mode="r").R
    return triangle


def _share(values: Tensor) -> Tensor:
    return values[..., 0].square() / values.square().sum(-1)
