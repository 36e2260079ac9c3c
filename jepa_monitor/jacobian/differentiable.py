"""The gradient of a score: in go an encoder and images, out comes a score that autograd can follow."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_monitor._warnings import warn
from jepa_monitor.encoders import Embedder
from jepa_monitor.encoders.texts import is_texts, text_lengths
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.engine import frame, spectra
from jepa_monitor.jacobian.memory import adaptive_chunks, default_budget
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.rows import embed_with_graph, jacobian_rows, selector
from jepa_monitor.jacobian.spectrum import left_vectors, log_volume, noise_floor, uncertain

__all__ = ["differentiable_score"]

_GRAPHS = 4  # a row with its graph, and what a second backward pass allocates, in forward graphs


def differentiable_score(
    embedder: Embedder, images: Tensor, options: ScoreOptions, reference: Gaussian | None
) -> Tensor:
    r"""Score images so that gradients flow to them and to the parameters of the encoder.

    With the pseudo-inverse :math:`J^+` held fixed,

    .. math:: \mathrm{d} \sum_k \log \sigma_k = \operatorname{tr}(J^+ \, \mathrm{d}J)

    so that the backward pass differentiates :math:`\langle (J^+)^\top, J \rangle`, row by row: each is a
    backward pass with a graph and one through that, and no graph of more than a few rows is ever held.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device, with their graph.
        options: How to score.
        reference: Law of the embeddings, for a whitened sketch; a constant.

    Returns:
        (B,), float64.

    Raises:
        ValueError: If the parameters are spread over processes, or the precision is TF32's.
        RuntimeError: In the backward pass, if an operation cannot be differentiated twice.
    """
    if options.precision == "tf32":
        raise ValueError(
            "`differentiable=True` takes `precision` 'float32' or 'float64', got 'tf32'."
        )
    kept = embedder.with_own_buffers()
    scores: Tensor = _Score.apply(kept, options, reference, images, *embedder.trainable)
    return scores


class _Score(torch.autograd.Function):
    """The log-volume, and its gradient. Nothing but the images is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        embedder: Embedder,
        options: ScoreOptions,
        reference: Gaussian | None,
        images: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.call = embedder, options, reference
        ctx.save_for_backward(images, *parameters)  # autograd tells if one has changed since
        found = spectra(embedder, images.detach(), options, reference)
        return log_volume(found.singular_values, options.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        embedder, options, reference = ctx.call
        images, *parameters = ctx.saved_tensors
        wanted = [t for t, asked in zip(parameters, ctx.needs_input_grad[4:], strict=True) if asked]
        of_images, found = _gradients(
            embedder, images.detach(), weights, options, reference, wanted
        )
        if ctx.needs_input_grad[3] and bool(weights.any()) and not bool(of_images.any()):
            _tell_of_steps()
        rest = iter(found)
        return (
            *(None, None, None),
            of_images if ctx.needs_input_grad[3] else None,
            *(next(rest) if asked else None for asked in ctx.needs_input_grad[4:]),
        )


def _targets(rows: Tensor, dtype: torch.dtype, eps: float) -> tuple[Tensor, int]:
    """The transposed pseudo-inverse of the rows, by which they move the score.

    Args:
        rows: (B, R, D).
        dtype: The type in which they were computed.
        eps: Singular values below it are clipped: the score does not move with them.

    Returns:
        (B, R, D), NaN where rows are not finite, and how many singular values rounding has blurred.
    """
    found = left_vectors(rows)
    assert found.vectors is not None
    floors = noise_floor(found.values, dtype)
    kept = found.values >= floors.clamp_min(eps)[:, None]
    blurred = (uncertain(found.values, dtype, eps) & (found.values >= eps)).sum()
    weights = torch.where(kept, found.values.square().reciprocal(), 0.0)
    finite = torch.isfinite(found.values).all(1)
    vectors = torch.where(finite[:, None, None], found.vectors, torch.nan)
    combined = (vectors * weights[:, None]) @ vectors.mT
    return (combined @ rows.double()).to(dtype), int(blurred)


def _check_twice_differentiable(row: Tensor) -> None:
    """Refuse operations without a second derivative.

    Autograd passes over them where it is asked for gradients to some tensors only: their part would
    be missing.

    Args:
        row: Of a Jacobian, with its graph.

    Raises:
        RuntimeError: If there is one.
    """
    nodes, seen = [row.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ in ("Error", "NotImplemented"):
            raise RuntimeError(
                "`encoder` has an operation that PyTorch cannot differentiate twice, such as a fused "
                "kernel or an autograd.Function with `once_differentiable`: its score has no gradient."
            )
        nodes += [after for after, _ in node.next_functions]


def _added(totals: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Add gradients, of which those that are not there are 0."""
    pairs = zip(totals, more, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def _gradients(
    embedder: Embedder,
    images: Tensor,
    weights: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None,
    parameters: list[Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Differentiate the weighted sum of the scores.

    Args:
        embedder: The encoder.
        images: (B, ...).
        weights: Of their scores, (B,).
        options: How they are scored.
        reference: Law of the embeddings, for a whitened sketch.
        parameters: Of the encoder, to which gradients are taken.

    Returns:
        The gradients to the images and to each of the parameters, in their types; ``None`` for
        those on which no row depends, such as the last bias.
    """
    budget = options.max_memory or default_budget(images.device)
    blurred = 0

    def work() -> tuple[Tensor, list[Tensor | None]]:
        longest = int(text_lengths(images).argmax()) if is_texts(images) else 0
        one = embedder.inputs(images[longest : longest + 1]).detach()
        _, cotangents, count, chunk, _, graph = frame(
            embedder, one, options, reference, budget, _GRAPHS
        )
        held = embedder.substitutes(parameters)
        for tensor in held:
            tensor.requires_grad_()
        totals: list[Tensor | None] = [None for _ in held]
        of_images = torch.zeros_like(images)
        together = max(1, budget // max(1, chunk * _GRAPHS * graph))

        def take(part: slice) -> None:
            nonlocal blurred
            inputs = embedder.inputs(images[part])
            _, rows = jacobian_rows(embedder, inputs, cotangents)
            targets, doubtful = _targets(rows, embedder.dtype, options.eps)
            targets *= weights[part, None, None].to(embedder.dtype)
            del rows
            leaf, embeddings = embed_with_graph(embedder, inputs)
            own: list[Tensor | None] = [None, *(None for _ in held)]
            for start in range(0, count, together):
                inner = embeddings.new_zeros(())
                for k in range(start, min(start + together, count)):
                    (row,) = torch.autograd.grad(
                        embeddings,
                        leaf,
                        selector(embeddings, cotangents, k),
                        create_graph=True,
                        materialize_grads=True,
                    )
                    if start == k == 0:
                        _check_twice_differentiable(row)
                    inner = inner + (row.flatten(1) * targets[:, k]).sum()
                if not inner.requires_grad:
                    continue  # linear in the images, and no parameter asked for
                moved = torch.autograd.grad(
                    inner, [leaf, *held], retain_graph=True, allow_unused=True
                )
                own = _added(own, moved)
            if own[0] is not None and is_texts(images):  # on to the table of the embeddings
                further = torch.autograd.grad(inputs, held, own[0], allow_unused=True)
                own = _added(own, [None, *further])
            elif own[0] is not None:
                of_images[part] = own[0].to(images.dtype)
            totals[:] = _added(totals, own[1:])
            blurred += doubtful

        for _ in adaptive_chunks(len(images), chunk, take):
            pass
        return of_images, [
            None if total is None else total.to(parameter.dtype)
            for total, parameter in zip(totals, parameters, strict=True)
        ]

    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        found = embedder.run(work, images.device)
    if blurred:
        _tell_of_rounding(embedder.dtype)
    return found


@functools.cache
def _tell_of_rounding(dtype: torch.dtype) -> None:
    """Warn once."""
    warn(
        f"the gradient of jepa_score has parts along singular values that are nearly rounding error in "
        f"{str(dtype).removeprefix('torch.')}, which may be off, or are left out if they are smaller "
        "still: use precision='float64'."
    )


@functools.cache
def _tell_of_steps() -> None:
    """Warn once."""
    warn(
        "the gradient of jepa_score to the images is 0 everywhere: `encoder` is piecewise linear "
        "(ReLU, max-pooling), and its score a step function of the image."
    )
