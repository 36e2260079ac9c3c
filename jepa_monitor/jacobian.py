"""Jacobians of an encoder: in go images, out come rows, a chunk of images at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.encoders import Embedder
from jepa_monitor.memory import adaptive_chunks, default_budget, graph_bytes
from jepa_monitor.spectrum import singular_values

__all__ = ["Spectra", "spectra"]

_SINGLE_IMAGE_COPIES = 2  # of the graph: what a backward pass allocates beside it


class Spectra(NamedTuple):
    """What one pass over the Jacobians of a set of images yields.

    Args:
        embeddings: (B, K), in the type that the encoder ran in.
        singular_values: (B, min(K, D)), descending, float64.
    """

    embeddings: Tensor
    singular_values: Tensor


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
    leaf, embeddings = _embed_with_graph(embedder, images[:2])
    (gradient,) = torch.autograd.grad(embeddings[0].sum(), leaf)
    if bool((gradient[1:] != 0).any()):
        raise ValueError(
            "`encoder` mixes the samples of a batch: the embedding of one image depends on another "
            "(BatchNorm in train mode, attention across the batch). Put the encoder into eval mode; "
            "if it is wrapped in a function, pass the module itself so that this can be done for you."
        )


def jacobian(embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the Jacobians of a chunk of images, one backward pass a row.

    Samples do not interact, so that one pass of the k-th column of the embeddings gives the k-th
    row for all images (arXiv 2510.05949, app. B).

    Args:
        embedder: Ready to be called.
        images: (B, ...).

    Returns:
        The embeddings (B, K) and the Jacobians (B, K, D).
    """
    leaf, embeddings = _embed_with_graph(embedder, images)
    batch, width = embeddings.shape
    rows = images.new_empty(batch, width, leaf[0].numel())
    selector = torch.zeros_like(embeddings)
    for k in range(width):
        selector[:, k] = 1
        (gradient,) = torch.autograd.grad(
            embeddings, leaf, selector, retain_graph=k < width - 1, materialize_grads=True
        )
        rows[:, k] = gradient.flatten(1)
        selector[:, k] = 0
    return embeddings.detach(), rows


def _chunk_size(embedder: Embedder, images: Tensor, max_memory: int | None) -> int:
    """Say how many images fit: their graphs, what a backward pass adds, and their Jacobians."""
    budget = default_budget(images.device) if max_memory is None else max_memory
    one = images[:1].to(embedder.dtype)
    width = 0

    def forward() -> Tensor:
        nonlocal width
        _, embeddings = _embed_with_graph(embedder, one)
        width = embeddings.shape[1]
        return embeddings

    graph = graph_bytes(forward, embedder.addresses)
    rank = min(width, one[0].numel())
    jacobian_bytes = width * one.nbytes
    per_image = _SINGLE_IMAGE_COPIES * graph + jacobian_bytes + 3 * one.nbytes + 24 * rank**2
    return max(1, budget // per_image)


def spectra(
    embedder: Embedder,
    images: Tensor,
    max_memory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Spectra:
    """Compute embeddings and singular values of the Jacobian of every image.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device.
        max_memory: Bytes to use at most beyond the model.
        progress: Called after each chunk with the number of images that it held.

    Returns:
        Embeddings and singular values, in the order of the images.
    """
    embeddings: list[Tensor] = []
    values: list[Tensor] = []
    with embedder.ready(images.device):
        if len(images) > 1:
            _check_samples_apart(embedder, images[:2].to(embedder.dtype))

        def work(part: slice) -> None:
            chunk_embeddings, rows = jacobian(embedder, images[part].to(embedder.dtype))
            chunk_values = singular_values(rows)
            embeddings.append(chunk_embeddings)
            values.append(chunk_values)

        chunk = _chunk_size(embedder, images, max_memory)
        for part, _ in adaptive_chunks(len(images), chunk, work):
            if progress is not None:
                progress(part.stop - part.start)
    return Spectra(torch.cat(embeddings), torch.cat(values))
