"""Estimate scores by Lanczos quadrature: in go an encoder and images, out come estimates, within a budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.forward_products import choose_products
from jepa_monitor.jacobian.lanczos import krylov_basis, start_samples
from jepa_monitor.jacobian.memory import adaptive_chunks, default_budget
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.response import RespondingLaw
from jepa_monitor.jacobian.rows import check_samples_apart, measure
from jepa_monitor.jacobian.sketch import check_width, row_count
from jepa_monitor.jacobian.spectra import Spectra

__all__ = ["estimates"]

_GRAPHS = 4  # the graph, what a backward pass allocates, and a second graph or forward pass
_TRIED = 2  # images that forward products are tried with


def estimates(
    embedder: Embedder,
    images: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None = None,
    progress: Callable[[int], None] | None = None,
) -> Spectra | None:
    """Estimate the log-volume of the Jacobian of every image.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device.
        options: How to score, by ``"lanczos"``.
        reference: Law of the embeddings; one that knows their response to noise
            (:class:`~jepa_monitor.jacobian.response.RespondingLaw`) makes the estimates better by far.
        progress: Called after each chunk with the number of images that it held.

    Returns:
        Embeddings and samples, in the order of the images; ``None`` if as many rows would be taken as
        there are.

    Raises:
        ValueError: If the law has another width, or no products with directions of the input can be had.
    """
    device = images.device
    budget = options.max_memory or default_budget(device)

    def work() -> Spectra | None:
        if len(images) > 1:
            check_samples_apart(embedder, images)
        one = embedder.inputs(images[:1])
        width, graph = measure(embedder, one)
        inputs = one.numel()
        check_width(reference, width)
        rows = row_count(options, width, inputs, whitened=reference is not None)
        if rows is None:
            return None
        law = reference.response if isinstance(reference, RespondingLaw) else reference
        starts = rows // options.depth
        basis = krylov_basis(starts, options.depth, width, inputs, law, options.seed)
        if basis.weights is not None:
            basis = basis._replace(weights=basis.weights.to(device))
        products = None
        if basis.tall or basis.steps > 1:
            few = embedder.inputs(images[:_TRIED])
            products = choose_products(embedder, few, basis.weights)
        each = _GRAPHS * graph + 3 * rows * one.nbytes + 24 * rows * (width + rows)
        done: list[tuple[Tensor, Tensor]] = []

        def estimate(part: slice) -> None:
            chunk = embedder.inputs(images[part])
            done.append(start_samples(embedder, chunk, basis, products, options.eps))

        for part, _ in adaptive_chunks(len(images), max(1, budget // each), estimate):
            if progress is not None:
                progress(part.stop - part.start)
        embeddings, samples = (torch.cat(parts) for parts in zip(*done, strict=True))
        blank = samples.new_full((len(samples),), torch.nan)
        count = torch.full((len(samples),), -1, dtype=torch.int64, device=device)
        none = samples.new_zeros(len(samples), 0)
        return Spectra(
            embeddings, none, blank, count, None, samples, products.name if products else ""
        )

    return embedder.run(work, device)
