"""The engine: in go an encoder, images and settings, out come spectra, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.isolation import check_tf32
from jepa_monitor.encoders.texts import is_texts, text_lengths
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.deep import estimates
from jepa_monitor.jacobian.memory import adaptive_chunks, default_budget
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.rows import (
    check_samples_apart,
    embed_with_graph,
    jacobian_rows,
    measure,
    row_passes,
)
from jepa_monitor.jacobian.sketch import sketch_matrix
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.spectrum import (
    Spectrum,
    cross_gram,
    decompose,
    from_gram,
    noise_floor,
    power_of_two,
    refine,
    uncertain,
)

__all__ = ["Frame", "blockwise", "fold_of", "frame", "plan", "spectra"]

_GRAPH_COPIES = 2  # the graph, and what a backward pass allocates beside it
_BUSY_BYTES, _BUSY_IMAGES = 48 * 2**20, 64  # of a batch, where a CPU is, and a GPU is taken to be
_REFINED_SHARE = 32  # of all rows at most one in so many is computed once more, in float64


def plan(image: Tensor, graph: int, rows: int, budget: int) -> tuple[int, int]:
    """Say how many images fit at a time, and how many rows of a single one.

    Args:
        image: (1, ...).
        graph: Bytes of its graph.
        rows: R.
        budget: Bytes to use at most.

    Returns:
        Images at a time, and rows; fewer than R if those of one image do not all fit.
    """
    rank = min(rows, image.numel())
    fixed = _GRAPH_COPIES * graph + 3 * image.nbytes + 3 * 8 * rank**2
    images = budget // (fixed + rows * image.nbytes)
    return max(1, images), min(rows, max(1, (budget - fixed) // image.nbytes))


def fold_of(device: torch.device, images: int, chunk: int, rows: int, graph: int) -> int:
    """Say how many rows one backward pass should compute.

    A pass over a few small images is spent on calling kernels, not in them. So rows are folded into the
    batch: on a CPU until its graph takes :data:`_BUSY_BYTES` (with one image of 32 px 2.4 times as fast
    on a ViT-Ti/8, 2.5 times on a ResNet-18; ``benchmarks/cost.py``), on a GPU until it has :data:`_BUSY_IMAGES`,
    which has been measured on none (``benchmarks/gpu.py`` does). The forward pass grows with the fold,
    and is kept to an eighth of the rows.

    Args:
        device: Where the encoder is.
        images: How many are to be scored at a time.
        chunk: How many would fit.
        rows: R.
        graph: Bytes of the graph of an image.

    Returns:
        At least 1; of nearly as large folds that which leaves the fewest copies without a row.
    """
    busy = _BUSY_BYTES // max(1, graph) if device.type == "cpu" else _BUSY_IMAGES
    most = max(1, min(min(busy, chunk) // max(1, images), rows // 8))
    return min(
        range(max(1, most // 2), most + 1), key=lambda fold: (-(-rows // fold) * fold, -fold)
    )


class Frame(NamedTuple):
    """How the rows of images are computed within a budget of memory.

    Args:
        basis: The combinations of rows to compute, (R, K), float64; ``None`` for all as they are.
        cotangents: The same in the type that the encoder runs in.
        rows: R.
        chunk: Images at a time.
        block: Rows of a single image at a time; fewer than R if they do not all fit.
        graph: Bytes of the graph of an image.
    """

    basis: Tensor | None
    cotangents: Tensor | None
    rows: int
    chunk: int
    block: int
    graph: int


def frame(
    embedder: Embedder,
    image: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None,
    budget: int,
    graphs: int = 1,
) -> Frame:
    """Look at one image, and choose which rows to compute, how many of them and of images at a time.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        image: (1, ...), of its dtype.
        options: How to score.
        reference: Law of the embeddings, for a whitened sketch.
        budget: Bytes to use at most.
        graphs: How many graphs of a forward pass are held at a time.

    Returns:
        The frame.

    Raises:
        ValueError: As :func:`~jepa_monitor.jacobian.sketch.sketch_matrix`.
    """
    width, graph = measure(embedder, image)
    basis = sketch_matrix(options, width, image[0].numel(), reference)
    cotangents = None
    if basis is not None:
        basis = basis.to(image.device)
        cotangents = basis.to(image.dtype)
    count = width if basis is None else len(basis)
    return Frame(basis, cotangents, count, *plan(image, graphs * graph, count, budget), graph)


def blockwise(
    embedder: Embedder,
    image: Tensor,
    cotangents: Tensor | None,
    rows: int,
    block: int,
    tf32: bool = False,
) -> tuple[Tensor, Spectrum]:
    """Decompose the Jacobian of one image whose rows do not all fit: block against block.

    With b blocks this takes (b + 1) / 2 times the backward passes.

    Args:
        embedder: Inside its :meth:`~jepa_monitor.encoders.embedder.Embedder.run`.
        image: (1, ...).
        cotangents: See :func:`~jepa_monitor.jacobian.rows.selector`.
        rows: R.
        block: How many rows to hold at a time.
        tf32: Whether the backward passes may use TF32.

    Returns:
        The embedding (1, K), and singular values with left vectors.
    """
    leaf, embeddings = embed_with_graph(embedder, image)
    gram = torch.zeros(1, rows, rows, dtype=torch.float64, device=image.device)
    scale = image.new_ones(())  # of the first rows, so that squares neither overflow nor vanish
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        part = range(start, stop)
        kept = torch.stack([*row_passes(leaf, embeddings, cotangents, part, tf32=tf32)], 1)
        scale = scale if start else power_of_two(kept)
        kept = kept / scale
        gram[:, start:stop, start:stop] = cross_gram(kept, kept)
        rest = range(stop, rows)
        others = row_passes(leaf, embeddings, cotangents, rest, tf32=tf32)
        for k, row in zip(rest, others, strict=True):
            products = cross_gram(kept, row[:, None] / scale)
            gram[:, start:stop, k] = products[:, :, 0]
            gram[:, k, start:stop] = products[:, :, 0]
    found = from_gram(gram, min(rows, leaf[0].numel()))
    return embeddings.detach(), Spectrum(found.values * scale, found.vectors)


def _refined(
    precise: Embedder,
    images: Tensor,
    basis: Tensor | None,
    rows: Tensor,
    found: Spectrum,
    eps: float,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    """Recompute, in float64, the few singular values that float32, or TF32, cannot resolve.

    Args:
        precise: The encoder in float64.
        images: (B, ...).
        basis: The combinations that the rows are, (R, K), float64; ``None`` for all by themselves.
        rows: Their float32 Jacobians, (B, R, D).
        found: Their decomposition.
        eps: The clipping value.
        tf32: Whether the rows come of passes in TF32.

    Returns:
        All singular values, (B, min(K, D)), and which images have been refined, (B,).
    """
    values = found.values.clone()
    doubtful = uncertain(values, rows.dtype, eps, tf32=tf32)
    counts = doubtful.sum(1)
    most = max(2, rows.shape[1] // _REFINED_SHARE)
    chosen = ((counts > 0) & (counts <= most)).nonzero().flatten().tolist()
    refined = torch.zeros_like(counts, dtype=torch.bool)
    if not chosen or found.vectors is None:
        return values, refined
    vectors, firsts = found.vectors, doubtful.int().argmax(1).tolist()

    # A graph in float64 takes twice the memory of the one that the chunk was made for.
    size = max(1, len(images) // 2)

    def work() -> None:
        for part in (chosen[start : start + size] for start in range(0, len(chosen), size)):
            own = {i: vectors[i, :, firsts[i] : firsts[i] + int(counts[i])].T for i in part}
            if basis is not None:
                own = {i: directions @ basis for i, directions in own.items()}
            # Images that need fewer rows than another get zeros, which cost no pass of their own.
            asked = pad_sequence([own[i] for i in part])
            _, exact = jacobian_rows(precise, images[part].to(precise.dtype), asked)
            for place, i in enumerate(part):
                one = Spectrum(values[i : i + 1], vectors[i : i + 1])
                values[i] = refine(rows[i], one, firsts[i], exact[place, : len(own[i])])
                refined[i] = True

    precise.run(work, images.device)
    return values, refined


def spectra(
    embedder: Embedder,
    images: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None = None,
    progress: Callable[[int], None] | None = None,
    on_rows: Callable[[Tensor, Tensor], None] | None = None,
) -> Spectra:
    """Compute embeddings and singular values of the Jacobian of every image.

    Args:
        embedder: The encoder.
        images: (B, ...), or texts, checked, on the encoder's device.
        options: How to score.
        reference: Law of the embeddings, for a whitened sketch.
        progress: Called after each chunk with the number of images that it held.
        on_rows: Called with each chunk of images, not of texts, and its rows, (B, ...) and (B, R, D), in
            the order of the images. It may take as much memory as they do.

    Returns:
        Embeddings and singular values, or the estimates of ``"lanczos"``, in the order of the images.

    Raises:
        MemoryError: If ``on_rows`` is given and the rows of one image do not fit.
        ValueError: If ``on_rows`` is given and the rows are others for each image.
    """
    if is_texts(images):
        # The longest first: it says how many fit, and texts of like length share a batch.
        order = text_lengths(images).argsort(descending=True, stable=True)
        found = _spectra(embedder, images[order], options, reference, progress, on_rows)
        return found.take(order.argsort())
    return _spectra(embedder, images, options, reference, progress, on_rows)


def _spectra(
    embedder: Embedder,
    images: Tensor,
    options: ScoreOptions,
    reference: Gaussian | None,
    progress: Callable[[int], None] | None,
    on_rows: Callable[[Tensor, Tensor], None] | None,
) -> Spectra:
    if options.method == "lanczos" and on_rows is None:
        estimated = estimates(embedder, images, options, reference, progress)
        if estimated is not None:
            return estimated
        options = options.turned("exact")
    device = images.device
    # Who takes the rows themselves gets them in float32.
    tf32 = options.precision == "tf32" and embedder.dtype == torch.float32 and on_rows is None
    if tf32:
        check_tf32(device)
    budget = options.max_memory or default_budget(device)
    precise = None
    if embedder.dtype == torch.float32 and 4 * embedder.parameter_bytes <= budget:
        precise = embedder.to(torch.float64)

    def work() -> Spectra:
        if len(images) > 1:
            check_samples_apart(embedder, images)
        one = embedder.inputs(images[:1])
        basis, cotangents, count, chunk, block, graph = frame(
            embedder, one, options, reference, budget if on_rows is None else budget // 2
        )
        done: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        if on_rows is not None and block < count:
            raise MemoryError(
                f"{count} rows of {one.nbytes} bytes each do not fit twice into {budget} bytes: "
                "give `max_memory`, or sketch."
            )

        size = min(chunk, len(images))
        fold, tried = fold_of(device, size, chunk, count, graph), set[int]()

        def score(part: slice) -> None:
            nonlocal fold
            inputs, rows = embedder.inputs(images[part]), None
            if block < count:
                embeddings, found = blockwise(embedder, inputs, cotangents, count, block, tf32)
            else:
                fold = 1 if part.start in tried else fold  # memory ran out, and will again
                tried.add(part.start)
                embeddings, rows = jacobian_rows(embedder, inputs, cotangents, fold, tf32)
                found = decompose(rows)
            floors = noise_floor(found.values, embedder.dtype, squared=block < count, tf32=tf32)
            values, refined = found.values, torch.zeros_like(floors, dtype=torch.bool)
            if precise is not None and rows is not None:
                values, refined = _refined(precise, inputs, basis, rows, found, options.eps, tf32)
            # A NaN that was put in the place of an embedding leaves a Jacobian of zeros behind.
            finite = torch.isfinite(embeddings).all(1)
            values = torch.where(finite[:, None], values, torch.nan)
            under = (values < floors[:, None]).sum(1).masked_fill(refined, 0)
            if on_rows is not None and rows is not None:
                on_rows(inputs, rows)
            if is_texts(images):
                # The Jacobian of a shorter text has fewer columns, and as many rows.
                values = torch.nn.functional.pad(values, (0, count - values.shape[1]))
            done.append((embeddings, values, floors, under))

        for part, _ in adaptive_chunks(len(images), chunk, score):
            if progress is not None:
                progress(part.stop - part.start)
        embeddings, values, floors, under = (torch.cat(parts) for parts in zip(*done, strict=True))
        return Spectra(embeddings, values, floors, under, basis)

    return embedder.run(work, device)
