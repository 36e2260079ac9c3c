"""Products J v of an encoder's Jacobian: in go images and a direction for each, out come (B, K) products.

Three ways, each checked against a backward pass before it is used: differences of two forward passes, the
cheapest by far; forward-mode derivatives; and two backward passes, the second through the first. The products
only choose which rows are taken next, and the rows are exact: differences that are off by a hundredth do
(docs/sketching.md).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.jacobian.memory import is_out_of_memory
from jepa_monitor.jacobian.rows import embed_with_graph

__all__ = ["Difference", "ForwardProducts", "choose_products", "finite_difference"]

_MOST = 1e-2  # disagreement, of a product's length
_STEPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)  # of the root mean square of an image
_ROUNDING = 16.0  # machine epsilons by which two passes over an encoder may differ

_Product = Callable[[Tensor], Tensor]
_Way = Callable[[Embedder, Tensor], _Product]


class ForwardProducts(NamedTuple):
    """A way to take products J v.

    Args:
        name: ``"differences"``, ``"forward mode"`` or ``"double backward"``.
        begin: Takes a chunk of images, (B, ...), and gives a function from directions, (B, ...), to
            products, (B, K); only inside :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        error: By how much products and backward passes disagreed when it was chosen, relative to the
            length of the product.
    """

    name: str
    begin: Callable[[Tensor], _Product]
    error: float


class Difference(NamedTuple):
    """Products by differences.

    Args:
        product: J v, (B, K).
        bound: How far they may be off, (B,), float64, as a length: twice the difference from those of
            twice the step, which is the leading error of a smooth encoder, and the rounding of two passes.
    """

    product: Tensor
    bound: Tensor


def _length(rows: Tensor) -> Tensor:
    found: Tensor = rows.double().flatten(1).norm(dim=1)
    return found


def _step_lengths(images: Tensor, step: float) -> Tensor:
    """How far to go from each image, (B,); from one that is 0 everywhere a little."""
    size = step * _length(images) / math.sqrt(images[0].numel())
    return torch.where(size > 0, size, step)


def _difference(
    embedder: Embedder, images: Tensor, here: Tensor, directions: Tensor, step: float
) -> Tensor:
    """The difference from the embeddings at the images, over the step; directions of any length."""
    moved, size = _step_lengths(images, step), _length(directions)
    scale = (moved / size.clamp_min(torch.finfo(torch.float64).tiny)).to(images.dtype)
    with torch.no_grad():
        there = embedder(images + directions * scale.view(-1, *[1] * (images.ndim - 1)))
    product: Tensor = (there.double() - here.double()) * (size / moved)[:, None]
    return product


def finite_difference(
    embedder: Embedder, images: Tensor, directions: Tensor, step: float
) -> Difference:
    """Take products J v from forward passes, and say how far they may be off.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: (B, ...).
        directions: v, (B, ...), of any length.
        step: How far to go, in units of the root mean square of the image.

    Returns:
        The products and a bound of their error, for an encoder whose second derivative changes little
        over twice the step.
    """
    with torch.no_grad():
        here = embedder(images)
    product = _difference(embedder, images, here, directions, step)
    twice = _difference(embedder, images, here, directions, 2 * step)
    rounding = _ROUNDING * torch.finfo(images.dtype).eps * _length(here)
    share = _length(directions) / _step_lengths(images, step)
    return Difference(product, 2 * _length(product - twice) + rounding * share)


def _differences(step: float) -> _Way:
    def begin(embedder: Embedder, images: Tensor) -> _Product:
        with torch.no_grad():
            here = embedder(images)
        return lambda v: _difference(embedder, images, here, v, step).to(images.dtype)

    return begin


def _forward_mode(embedder: Embedder, images: Tensor) -> _Product:
    def product(directions: Tensor) -> Tensor:
        # Fused attention has no forward mode.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(images, directions)  # type: ignore[no-untyped-call]
            found = forward_ad.unpack_dual(embedder(dual))  # type: ignore[no-untyped-call]
            tangent: Tensor | None = found.tangent
            if tangent is None:
                raise RuntimeError("the encoder drops forward-mode derivatives")
            return tangent.clone()

    return product


def _double_backward(embedder: Embedder, images: Tensor) -> _Product:
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        leaf, embeddings = embed_with_graph(embedder, images)
    weights = torch.zeros_like(embeddings, requires_grad=True)
    # Jᵀw is linear in w, so that its derivative along v is J v whatever w is.
    (row,) = torch.autograd.grad(
        embeddings, leaf, weights, create_graph=True, materialize_grads=True
    )

    def product(directions: Tensor) -> Tensor:
        found: Tensor = torch.autograd.grad(
            row, weights, directions, retain_graph=True, materialize_grads=True
        )[0]
        return found

    return product


def _disagreement(embedder: Embedder, images: Tensor, begin: _Way, weights: Tensor | None) -> float:
    """Compare uᵀ(W J v) with (JᵀWᵀu)ᵀv, for v along JᵀWᵀu, as the products are used."""
    leaf, embeddings = embed_with_graph(embedder, images)
    generator = torch.Generator().manual_seed(0)
    product, worst = begin(embedder, images), 0.0
    for _ in range(2):
        u = torch.randn(embeddings.shape, generator=generator, dtype=torch.float64)
        u = torch.nn.functional.normalize(u, dim=1).to(embeddings.device)
        cotangent = (u if weights is None else u @ weights).to(embeddings.dtype)
        (row,) = torch.autograd.grad(
            embeddings, leaf, cotangent, retain_graph=True, materialize_grads=True
        )
        size = _length(row)
        used = torch.isfinite(size) & (size > 0)
        if not bool(used.any()):
            continue  # a flat encoder has no direction to be wrong in
        v = row / size.clamp_min(torch.finfo(row.dtype).tiny).to(row.dtype).view(
            -1, *[1] * (row.ndim - 1)
        )
        found = product(v).double()
        found = found if weights is None else found @ weights.mT
        off = ((u * found).sum(1) - size).abs() / _length(found).clamp_min(1e-300)
        worst = max(worst, float(off[used].nan_to_num(math.inf).max()))
    return worst


def choose_products(
    embedder: Embedder, images: Tensor, weights: Tensor | None = None
) -> ForwardProducts:
    """Choose the first way that works and agrees with backward passes, of differences the best step.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: A few of them, (B, ...), to try with.
        weights: W, (K, K), float64: coordinates in which the products are wanted; ``None`` for the
            embedding's own.

    Returns:
        The way, with how well it agreed.

    Raises:
        RuntimeError: If memory runs out.
        ValueError: If none does.
    """
    tried: dict[str, tuple[float, _Way]] = {}
    failed: list[str] = []
    for step in _STEPS:
        way = _differences(step)
        found = _disagreement(embedder, images, way, weights)
        if found < tried.get("differences", (math.inf, way))[0]:
            tried["differences"] = found, way
    for name, way in (("forward mode", _forward_mode), ("double backward", _double_backward)):
        if any(error <= _MOST for error, _ in tried.values()):
            break
        try:
            with warnings.catch_warnings():
                # Of torch about itself, where it compiles decompositions at the first forward mode.
                warnings.simplefilter("ignore", FutureWarning)
                tried[name] = _disagreement(embedder, images, way, weights), way
        except RuntimeError as problem:  # an operation has no such derivative: the next way may do
            if is_out_of_memory(problem):
                raise
            failed.append(f"{name}: {str(problem).partition(chr(10))[0]}")
    for name, (error, way) in tried.items():
        if error <= _MOST:
            return ForwardProducts(name, partial(way, embedder), error)
    found_errors = ", ".join(f"{name} {error:.2g}" for name, (error, _) in tried.items())
    found_errors = "; ".join([found_errors, *failed])
    raise ValueError(
        "`method` must be 'exact' or 'sketch' for this encoder, got 'lanczos': its products with "
        f"directions of the input disagree with its backward passes (relative errors: {found_errors})."
    )
