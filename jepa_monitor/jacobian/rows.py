"""Rows of an encoder's Jacobian: in go images, out come rows, one backward pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.isolation import tensor_float32
from jepa_monitor.encoders.texts import is_texts, trim_texts
from jepa_monitor.jacobian.memory import graph_bytes

__all__ = [
    "check_samples_apart",
    "embed_with_graph",
    "jacobian_rows",
    "measure",
    "row_passes",
    "selector",
]


def embed_with_graph(embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed images so that gradients with respect to them can be taken.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: (B, ...).

    Returns:
        A copy of the images, and their embeddings (B, K) as a function of it.

    Raises:
        ValueError: If no gradient reaches the images.
    """
    # A fresh leaf: the caller's tensor must not start to require gradients.
    leaf = images.detach().clone().requires_grad_()
    embeddings = embedder(leaf)
    if not embeddings.requires_grad:
        raise ValueError(
            "`encoder` lets no gradient reach its input: its forward pass uses torch.no_grad, "
            "detaches, or does not depend on the images. Pass the part that is differentiable."
        )
    return leaf, embeddings


def check_samples_apart(embedder: Embedder, images: Tensor) -> None:
    """Refuse an encoder whose embedding of one image depends on another of the batch, or on padding.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: Two or more, of which two are looked at: of texts a shortest and a longest, which are last
            and first.

    Raises:
        ValueError: If it does.
    """
    few = images[[-1, 0]] if is_texts(images) else images[:2]
    leaf, embeddings = embed_with_graph(embedder, embedder.inputs(few))
    (gradient,) = torch.autograd.grad(embeddings[0].sum(), leaf)
    if is_texts(images):
        padding = trim_texts(few)[0, :, 1] == 0
        if bool((gradient[0, padding].nan_to_num(0.0) != 0).any()):
            raise ValueError(
                "`encoder` does not heed `attention_mask`: the embedding of a text depends on what pads "
                "it. A pool of your own must leave out what is not real."
            )
    # Not a number is 0 × ∞ of an image whose Jacobian is not finite, not another image's influence.
    if bool((gradient[1:].nan_to_num(0.0) != 0).any()):
        raise ValueError(
            "`encoder` mixes the samples of a batch: the embedding of one image depends on another "
            "(BatchNorm in train mode, attention across the batch). Put the encoder into eval mode; "
            "if it is wrapped in a function, pass the module itself so that this can be done for you."
        )


def measure(embedder: Embedder, image: Tensor) -> tuple[int, int]:
    """Find how wide embeddings are, and what the graph of one image takes.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        image: (1, ...).

    Returns:
        The width K, and bytes.
    """
    width = 0

    def forward() -> Tensor:
        nonlocal width
        _, embeddings = embed_with_graph(embedder, image)
        width = embeddings.shape[1]
        return embeddings

    graph = graph_bytes(forward, embedder.addresses)
    return width, graph


def selector(embeddings: Tensor, cotangents: Tensor | None, k: int) -> Tensor:
    """Give the cotangent of which a backward pass is the k-th row of all images.

    Args:
        embeddings: (B, K).
        cotangents: Combinations of rows, (R, K), or (R, B, K) where each image has its own; ``None`` for
            the K rows by themselves.
        k: Which row.

    Returns:
        (B, K).
    """
    if cotangents is not None:
        return cotangents[k].expand_as(embeddings)
    chosen = torch.zeros_like(embeddings)
    chosen[:, k] = 1
    return chosen


def row_passes(
    leaf: Tensor,
    embeddings: Tensor,
    cotangents: Tensor | None,
    indices: Sequence[int],
    fold: int = 1,
    tf32: bool = False,
) -> Iterator[Tensor]:
    """Take one backward pass for each of some rows, or for every ``fold`` of them.

    Samples do not interact, so that one pass of the k-th column of the embeddings gives the k-th
    row for all images (arXiv 2510.05949, app. B).

    Args:
        leaf: The images, (B, ...), of which ``embeddings`` is a function; ``fold`` times one after another.
        embeddings: Of all of these, (fold · B, K), with their graph, which is kept.
        cotangents: See :func:`selector`.
        indices: Which rows.
        fold: How many rows one backward pass computes, each from another copy of the images.
        tf32: Whether passes may use TF32; the embeddings, already computed, are not touched by it.

    Yields:
        The rows, (B, D), one by one.
    """
    size = len(embeddings) // fold
    for start in range(0, len(indices), fold):
        asked = indices[start : start + fold]
        chosen = torch.zeros_like(embeddings)  # copies that are left over compute nothing
        for copy, k in zip(torch.split(chosen, size), asked, strict=False):
            copy.copy_(selector(copy, cotangents, k))
        with tensor_float32() if tf32 else nullcontext():
            (gradient,) = torch.autograd.grad(
                embeddings, leaf, chosen, retain_graph=True, materialize_grads=True
            )
        yield from torch.split(gradient.flatten(1), size)[: len(asked)]


def jacobian_rows(
    embedder: Embedder,
    images: Tensor,
    cotangents: Tensor | None,
    fold: int = 1,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute rows of the Jacobians of a chunk of images.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        images: (B, ...).
        cotangents: See :func:`selector`.
        fold: How many rows one backward pass computes: the images are embedded so many times in one
            batch, each copy of them for another row. It changes how long that takes, and no row.
        tf32: Whether the backward passes may use TF32.

    Returns:
        The embeddings (B, K) and the rows (B, R, D).
    """
    size = len(images)
    leaf, embeddings = embed_with_graph(embedder, torch.cat([images] * fold))
    count = embeddings.shape[1] if cotangents is None else len(cotangents)
    rows = leaf.new_empty(size, count, leaf[0].numel())
    for k, row in enumerate(row_passes(leaf, embeddings, cotangents, range(count), fold, tf32)):
        rows[:, k] = row
    return embeddings[:size].detach(), rows
