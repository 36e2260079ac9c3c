"""How the Jacobian of an encoder lies to its own input: alignment, rank-one share, size.

An encoder that is piecewise affine is f(x) = J x + b around x. Its Jacobian is *aligned* at x if all
its rows point along x, which the GrokAlign paper finds where networks begin to generalise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor._checks import check_images, check_positive_int
from jepa_monitor.functional._checks import (
    as_matrix,
    as_views,
    require_same_rows,
    require_same_width,
)
from jepa_monitor.functional._directions import unit_rows


class Alignment(NamedTuple):
    """Alignment with one's own input, beside the level of inputs that are not one's own."""

    value: Tensor
    shuffled: Tensor


def centroid_alignment(
    centroids: Tensor, inputs: Tensor, others: Tensor | None = None
) -> Alignment:
    r"""Cosine between the sum of a Jacobian's rows and the input at which it was taken.

    .. math::
        \cos(\mu_x, x), \qquad \mu_x = J_x^\top \mathbf 1

    μ is one backward pass of the sum of the outputs. Range −1 to 1; it rises where a network
    generalises. Levels may stay low while they rise, and they depend on the centring of the inputs
    and on a constant added to all outputs: read the trend, beside ``shuffled``.

    Args:
        centroids: μ of each sample, shape (N, D) or (N, ...).
        inputs: x of each sample as the encoder took it, the same shape.
        others: Inputs (M, ...) to compare with for ``shuffled``; by default all inputs but one's
            own, which takes N ≥ 2.

    Returns:
        ``value`` and ``shuffled``, the mean cosine with other inputs; float64, shape (N,). 0 where
        the Jacobian or the input is zero.

    Source:
        Walker et al., GrokAlign (arXiv 2506.12284), centroid alignment.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> centroid_alignment(3 * x, x)
        Alignment(value=tensor([1., 1.], dtype=torch.float64),
                  shuffled=tensor([0., 0.], dtype=torch.float64))
    """
    x, y = _directions(inputs, others)
    mu = _directions_of(centroids, "centroids")
    _require_same_samples(mu, x, ("centroids", "inputs"))
    value = (mu * x).sum(1)
    if y is None:
        return Alignment(value, (mu @ x.sum(0) - value) / (len(x) - 1))
    return Alignment(value, mu @ y.mean(0))


def jacobian_alignment(
    jacobians: Tensor, inputs: Tensor, others: Tensor | None = None
) -> Alignment:
    r"""Share of a Jacobian that acts along the input at which it was taken.

    .. math::
        \lVert J_x x \rVert \big/ \bigl(\lVert J_x \rVert_F \, \lVert x \rVert\bigr)

    Range 0 to 1; 1 if and only if every row is parallel to x. A random Jacobian reads about 1/√D.
    Rows that are fixed combinations of the Jacobian's (a sketch) can stand for it; the value is
    then that of the combinations.

    Args:
        jacobians: Rows of each Jacobian, shape (N, R, D).
        inputs: x of each sample as the encoder took it, shape (N, D) or (N, ...).
        others: Inputs (M, ...) to compare with for ``shuffled``; by default all inputs but one's
            own, which takes N ≥ 2.

    Returns:
        ``value`` and ``shuffled``, the mean over other inputs in the place of x; float64, shape
        (N,). 0 where the Jacobian or the input is zero.

    Source:
        The Jacobian-aligned networks J = c xᵀ of Walker et al., GrokAlign (arXiv 2506.12284), as
        a number: the cosine between J and its projection onto matrices of that form.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 4.0], [-4.0, 3.0]])
        >>> jacobian_alignment(torch.stack([torch.outer(torch.ones(3), row) for row in x]), x)
        Alignment(value=tensor([1., 1.], dtype=torch.float64),
                  shuffled=tensor([0., 0.], dtype=torch.float64))
    """
    rows = as_views(jacobians, "jacobians", min_samples=1, min_views=1)
    x, y = _directions(inputs, others)
    _require_same_samples(rows, x, ("jacobians", "inputs"))
    # One Jacobian at a time: what it does to all the inputs is R × (N + M) numbers.
    pairs = [_gains(row, x[i], x if y is None else y) for i, row in enumerate(rows)]
    value, total = (torch.stack(part) for part in zip(*pairs, strict=True))
    if y is None:
        return Alignment(value, (total - value) / (len(x) - 1))
    return Alignment(value, total / len(y))


def rank_one_share(singular_values: Tensor) -> Tensor:
    r"""Share of a Jacobian's squared Frobenius norm that lies in its first direction.

    .. math::
        \sigma_1^2 \Big/ \sum_k \sigma_k^2

    Range 1/r to 1; 1 is rank one, which an aligned Jacobian is. The singular values are those
    that the score is made of.

    Args:
        singular_values: Of each Jacobian, shape (N, r), not negative, in any order.

    Returns:
        Float64 tensor, shape (N,); 0 for a Jacobian of zeros.

    Raises:
        ValueError: If a singular value is negative.

    Source:
        The explained variance of the first component in Walker et al., GrokAlign
        (arXiv 2506.12284).

    Example:
        >>> import torch
        >>> rank_one_share(torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        tensor([0.6667, 0.0000], dtype=torch.float64)
    """
    values = as_matrix(singular_values, "singular_values")
    if bool((values < 0).any()):
        raise ValueError("`singular_values` must not be negative.")
    largest = values.amax(1, keepdim=True)
    # Squares of shares, not of values: tiny values must not underflow.
    total = (values / torch.where(largest > 0, largest, 1.0)).square().sum(1)
    return torch.where(total > 0, 1 / total.clamp_min(1.0), 0.0)


def jacobian_frobenius_norm(
    encoder: Callable[[Tensor], Tensor],
    inputs: Tensor,
    num_probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Frobenius norm of the Jacobian at each input, differentiable in the encoder's parameters.

    .. math::
        \Bigl(\frac KP \sum_{p=1}^P \lVert v_p^\top J_x \rVert^2\Bigr)^{1/2}, \qquad
        v_p \text{ uniform on the unit sphere of } \mathbb R^K

    As a regulariser: ``loss + strength * jacobian_frobenius_norm(model, x).mean()``, one more
    backward pass for each probe and a second-order gradient. Its *square* is unbiased; the norm
    itself is biased low, the less the more probes. The only function here that computes in the
    dtype of the inputs. The encoder runs as it is, in train mode if it is: a BatchNorm then mixes
    samples, and the values are not those of single samples.

    Args:
        encoder: A differentiable function (N, ...) → (N, K).
        inputs: Shape (N, ...); left as they are.
        num_probes: P.
        generator: Of the probes; default: torch's global one.

    Returns:
        Shape (N,), with a graph; 0, with gradient 0, where the Jacobian is zero.

    Raises:
        ValueError: If the output is not (N, K), or no gradient reaches the inputs.

    Source:
        Walker et al., GrokAlign (arXiv 2506.12284), the regulariser; the estimator is that of
        Hoffman et al. (arXiv 1908.02729), Eq. 10.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(5, 1, bias=False)  # one output: no randomness is left
        >>> norm = jacobian_frobenius_norm(layer, torch.ones(2, 5))
        >>> torch.allclose(norm, layer.weight.norm().expand(2))
        True
    """
    check_positive_int(num_probes, "num_probes")
    leaf = check_images(inputs, "inputs").clone().requires_grad_()
    with torch.enable_grad():
        outputs = encoder(leaf)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(leaf):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"`encoder` must return ({len(leaf)}, K), got {got}.")
        width = outputs.shape[1]
        total = outputs.new_zeros(len(leaf))
        for _ in range(num_probes):
            device = outputs.device if generator is None else generator.device
            noise = torch.randn(outputs.shape, generator=generator, device=device)
            probe = F.normalize(noise, dim=1).to(outputs)
            gradient = None
            if outputs.requires_grad:
                (gradient,) = torch.autograd.grad(
                    outputs, leaf, probe, create_graph=True, allow_unused=True
                )
            if gradient is None:
                raise ValueError(
                    "`encoder` lets no gradient reach its input: its forward pass uses "
                    "torch.no_grad, detaches, or does not depend on the inputs."
                )
            total = total + gradient.flatten(1).square().sum(1)
        squared = total * (width / num_probes)
        # The gradient of √ is infinite at 0; there, take the root of 1 and drop it.
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _gains(jacobian: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """‖Jx‖/‖J‖ of one's own direction, and the sum of it over other directions."""
    unit = unit_rows(jacobian.flatten()[None]).view_as(jacobian)
    value = torch.linalg.vector_norm(unit @ own)
    return value, torch.linalg.vector_norm(unit @ others.T, dim=0).sum()


def _directions(inputs: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor | None]:
    x = _directions_of(inputs, "inputs", min_rows=2 if others is None else 1)
    if others is None:
        return x, None
    y = _directions_of(others, "others")
    require_same_width(x, y, ("inputs", "others"))
    return x, y


def _directions_of(value: Tensor, name: str, min_rows: int = 1) -> Tensor:
    flat = value.flatten(1) if isinstance(value, Tensor) and value.ndim > 2 else value
    return unit_rows(as_matrix(flat, name, min_rows))


def _require_same_samples(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    require_same_width(first, second, names)
    require_same_rows(first, second, names)
