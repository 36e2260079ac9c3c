"""Jacobians of an encoder: in go images, out come their singular values, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.encoders import Embedder
from jepa_monitor.gaussian import Gaussian
from jepa_monitor.memory import adaptive_chunks, default_budget, graph_bytes
from jepa_monitor.options import ScoreOptions
from jepa_monitor.sketch import sketch_matrix
from jepa_monitor.spectrum import Spectrum, decompose, noise_floor, refine, uncertain

__all__ = ["Spectra", "spectra"]

_GRAPH_COPIES = 2  # the graph, and what a backward pass allocates beside it
_REFINED_SHARE = 32  # of all rows at most one in so many is computed once more, in float64


class Spectra(NamedTuple):
    """What one pass over the Jacobians of a set of images yields.

    Args:
        embeddings: (B, K), in the type that the encoder ran in.
        singular_values: Of the rows that were computed, (B, min(R, D)), descending, float64.
        noise_floors: Size below which singular values are rounding error, (B,), float64.
        under_floor: Number of singular values below it that were not refined, (B,), int64.
        basis: The combinations of rows that were computed, (R, K), float64; ``None`` for all rows
            as they are.
    """

    embeddings: Tensor
    singular_values: Tensor
    noise_floors: Tensor
    under_floor: Tensor
    basis: Tensor | None


def _embed_with_graph(embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor]:
    # A fresh leaf: the caller's tensor must not start to require gradients.
    leaf = images.detach().clone().requires_grad_()
    embeddings = embedder(leaf)
    if not embeddings.requires_grad:
        raise ValueError(
            "`encoder` lets no gradient reach its input: its forward pass uses torch.no_grad, "
            "detaches, or does not depend on the images. Pass the part that is differentiable."
        )
    return leaf, embeddings


def _check_samples_apart(embedder: Embedder, images: Tensor) -> None:
    """Refuse an encoder whose embedding of one image depends on another image of the batch."""
    leaf, embeddings = _embed_with_graph(embedder, images)
    (gradient,) = torch.autograd.grad(embeddings[0].sum(), leaf)
    # Not a number is 0 × ∞ of an image whose Jacobian is not finite, not another image's influence.
    if bool((gradient[1:].nan_to_num(0.0) != 0).any()):
        raise ValueError(
            "`encoder` mixes the samples of a batch: the embedding of one image depends on another "
            "(BatchNorm in train mode, attention across the batch). Put the encoder into eval mode; "
            "if it is wrapped in a function, pass the module itself so that this can be done for you."
        )


def _rows(embedder: Embedder, images: Tensor, cotangents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute rows of the Jacobians of a chunk of images, one backward pass a row.

    Samples do not interact, so that one pass of the k-th column of the embeddings gives the k-th
    row for all images (arXiv 2510.05949, app. B).

    Args:
        embedder: Ready to be called.
        images: (B, ...).
        cotangents: Combinations of rows to compute, (R, K), the same for all images; ``None`` for
            all rows by themselves.

    Returns:
        The embeddings (B, K) and the rows (B, R, D).
    """
    leaf, embeddings = _embed_with_graph(embedder, images)
    batch, width = embeddings.shape
    count = width if cotangents is None else len(cotangents)
    rows = leaf.new_empty(batch, count, leaf[0].numel())
    selector = torch.zeros_like(embeddings)
    for k in range(count):
        if cotangents is None:
            selector[:, k - 1 if k else 0] = 0
            selector[:, k] = 1
        else:
            selector = cotangents[k].expand_as(embeddings)
        (gradient,) = torch.autograd.grad(
            embeddings, leaf, selector, retain_graph=k < count - 1, materialize_grads=True
        )
        rows[:, k] = gradient.flatten(1)
    return embeddings.detach(), rows


def _measure(embedder: Embedder, image: Tensor) -> tuple[int, int]:
    """Find the width K of the embeddings, and the bytes that the graph of one image takes."""
    width = 0

    def forward() -> Tensor:
        nonlocal width
        _, embeddings = _embed_with_graph(embedder, image)
        width = embeddings.shape[1]
        return embeddings

    graph = graph_bytes(forward, embedder.addresses)
    return width, graph


def _chunk_size(image: Tensor, graph: int, rows: int, budget: int) -> int:
    """Say how many images fit: their graphs, what a backward pass adds, and their rows."""
    rank = min(rows, image.numel())
    per_image = _GRAPH_COPIES * graph + (rows + 3) * image.nbytes + 3 * 8 * rank**2
    return max(1, budget // per_image)


def _refined(
    precise: Embedder,
    images: Tensor,
    basis: Tensor | None,
    rows: Tensor,
    found: Spectrum,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Recompute, in float64, the few singular values that float32 cannot resolve.

    Args:
        precise: The encoder in float64.
        images: (B, ...).
        basis: The combinations that the rows are, (R, K), float64; ``None`` for all by themselves.
        rows: Their float32 Jacobians, (B, R, D).
        found: Their decomposition.
        eps: The clipping value.

    Returns:
        All singular values, (B, min(K, D)), and which images have been refined, (B,).
    """
    values = found.values.clone()
    doubtful = uncertain(values, rows.dtype, eps)
    counts = doubtful.sum(1)
    most = max(2, rows.shape[1] // _REFINED_SHARE)
    chosen = ((counts > 0) & (counts <= most)).nonzero().flatten().tolist()
    refined = torch.zeros_like(counts, dtype=torch.bool)
    if not chosen or found.vectors is None:
        return values, refined
    vectors, firsts = found.vectors, doubtful.int().argmax(1).tolist()

    def work() -> None:
        for i in chosen:
            first, count = firsts[i], int(counts[i])
            directions = vectors[i, :, first : first + count].T
            if basis is not None:
                directions = directions @ basis
            _, exact = _rows(precise, images[i : i + 1].to(precise.dtype), directions)
            one = Spectrum(values[i : i + 1], vectors[i : i + 1])
            values[i] = refine(rows[i], one, first, exact[0])
            refined[i] = True

    precise.run(work, images.device)
    return values, refined


def spectra(
    embedder: Embedder,
    images: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None = None,
    progress: Callable[[int], None] | None = None,
) -> Spectra:
    """Compute embeddings and singular values of the Jacobian of every image.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device.
        options: How to score.
        reference: Law of the embeddings, for a whitened sketch.
        progress: Called after each chunk with the number of images that it held.

    Returns:
        Embeddings and singular values, in the order of the images.
    """
    device = images.device
    budget = options.max_memory or default_budget(device)
    precise = None
    if embedder.dtype == torch.float32 and 4 * embedder.parameter_bytes <= budget:
        precise = embedder.to(torch.float64)

    def work() -> Spectra:
        if len(images) > 1:
            _check_samples_apart(embedder, images[:2].to(embedder.dtype))
        one = images[:1].to(embedder.dtype)
        width, graph = _measure(embedder, one)
        basis = sketch_matrix(options, width, reference)
        cotangents = None
        if basis is not None:
            basis = basis.to(device)
            cotangents = basis.to(embedder.dtype)
        done: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

        def score(part: slice) -> None:
            embeddings, rows = _rows(embedder, images[part].to(embedder.dtype), cotangents)
            found = decompose(rows)
            floors = noise_floor(found.values, rows.dtype)
            values, refined = found.values, torch.zeros_like(floors, dtype=torch.bool)
            if precise is not None:
                values, refined = _refined(precise, images[part], basis, rows, found, options.eps)
            under = (values < floors[:, None]).sum(1).masked_fill(refined, 0)
            done.append((embeddings, values, floors, under))

        chunk = _chunk_size(one, graph, width if basis is None else len(basis), budget)
        for part, _ in adaptive_chunks(len(images), chunk, score):
            if progress is not None:
                progress(part.stop - part.start)
        embeddings, values, floors, under = (torch.cat(parts) for parts in zip(*done, strict=True))
        return Spectra(embeddings, values, floors, under, basis)

    return embedder.run(work, device)
