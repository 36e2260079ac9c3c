"""On which pixels a score rests: in go an encoder and images, out comes a map of each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_images
from jepa_monitor._settings import takes
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.engine import blockwise, frame
from jepa_monitor.jacobian.memory import adaptive_chunks, default_budget
from jepa_monitor.jacobian.options import ScoreArguments, ScoreOptions
from jepa_monitor.jacobian.prepared import prepared
from jepa_monitor.jacobian.rows import (
    check_samples_apart,
    embed_with_graph,
    jacobian_rows,
    row_passes,
)
from jepa_monitor.jacobian.sketch import check_fixed_rows
from jepa_monitor.jacobian.spectrum import (
    Spectrum,
    column_blocks,
    from_gram,
    left_vectors,
    noise_floor,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LeverageMap", "leverage_map", "leverages"]


class LeverageMap(NamedTuple):
    """On which pixels the scores of images rest.

    Args:
        leverage: (B, H, W) of images (B, C, H, W), from 0 to C; of other inputs one number from 0
            to 1 for each of theirs, (B, ...). float64; NaN where the Jacobian is not finite.
        dropped: How many singular values of each image have no part in it, (B,), int64: those below
            ``eps``, which the score clips, and those that are rounding error.
    """

    leverage: Tensor
    dropped: Tensor


def _weights(found: Spectrum, floors: Tensor) -> Tensor:
    """Combine rows to orthonormal ones, (B, r, R); directions below a floor become zeros."""
    assert found.vectors is not None
    kept = found.values >= floors[:, None]
    return found.vectors.mT / torch.where(kept, found.values, torch.inf)[:, :, None]


def _column_leverage(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the squares of each column of an orthonormal basis of what rows span.

    Args:
        rows: (B, R, D).
        weights: Combinations of them that are nearly orthonormal, or zero, (B, r, R), float64.

    Returns:
        (B, D), float64, and how many rows the basis has, (B,).
    """
    blocks = column_blocks(rows)
    gram = weights.new_zeros(len(rows), weights.shape[1], weights.shape[1])
    for block in blocks:
        product = weights @ block.double()
        gram.baddbmm_(product, product.mT)
    # Weights of small singular values carry rounding error of the large ones. The products of what
    # they give are near the identity: a second round is exact.
    again = from_gram(gram, weights.shape[1])
    kept = again.values > 0.5
    weights = _weights(again, torch.full_like(again.values[:, 0], 0.5)) @ weights
    squares = [(weights @ block.double()).square().sum(1) for block in blocks]
    return torch.cat(squares, 1), kept.sum(1)


def _rowwise(
    embedder: Embedder, image: Tensor, cotangents: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of one image whose rows do not all fit: each row of the basis is a backward pass."""
    weights = weights[0][weights[0].ne(0).any(1)]
    if cotangents is not None:
        weights = weights @ cotangents.double()
    leaf, embeddings = embed_with_graph(embedder, image)
    total = torch.zeros(1, leaf[0].numel(), dtype=torch.float64, device=image.device)
    passes = row_passes(leaf, embeddings, weights.to(image.dtype), range(len(weights)))
    for row in passes:
        squares = row.double().square()
        total += squares / squares.sum()
    return total, torch.full((1,), len(weights), device=image.device)


def leverages(
    embedder: Embedder, images: Tensor, options: ScoreOptions, reference: Gaussian | None = None
) -> LeverageMap:
    """Compute the map of every image.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device.
        options: How the images are scored.
        reference: Law of the embeddings, for a whitened sketch.

    Returns:
        The maps, in the order of the images.
    """
    budget = options.max_memory or default_budget(images.device)

    def work() -> LeverageMap:
        if len(images) > 1:
            check_samples_apart(embedder, images)
        one = images[:1].to(embedder.dtype)
        _, cotangents, count, chunk, block, _ = frame(embedder, one, options, reference, budget)
        done: list[tuple[Tensor, Tensor]] = []

        def take(part: slice) -> None:
            inputs, rows = images[part].to(embedder.dtype), None
            if block < count:
                embeddings, found = blockwise(embedder, inputs, cotangents, count, block)
            else:
                embeddings, rows = jacobian_rows(embedder, inputs, cotangents)
                found = left_vectors(rows)
            floors = noise_floor(found.values, embedder.dtype, squared=rows is None)
            weights = _weights(found, floors.clamp_min(options.eps))
            if rows is None:
                total, kept = _rowwise(embedder, inputs, cotangents, weights)
            else:
                total, kept = _column_leverage(rows, weights)
            finite = torch.isfinite(found.values).all(1) & torch.isfinite(embeddings).all(1)
            total = torch.where(finite[:, None], total, torch.nan)
            dropped = (found.values.shape[1] - kept).masked_fill(~finite, 0)
            done.append((total.reshape(inputs.shape), dropped))

        for _ in adaptive_chunks(len(images), chunk, take):
            pass
        totals, dropped = (torch.cat(parts) for parts in zip(*done, strict=True))
        return LeverageMap(totals.sum(1) if totals.ndim == 4 else totals, dropped)

    return embedder.run(work, images.device)


@takes(ScoreOptions)
def leverage_map(
    encoder: Any,
    images: Tensor,
    *,
    reference: Any = None,
    pool: Pool = "auto",
    **options: Unpack[ScoreArguments],
) -> LeverageMap:
    r"""On which pixels of an image its JEPA-SCORE rests.

    .. math:: L(p) = \sum_c P_{(c,p),(c,p)}, \qquad P = J^\top (J J^\top)^{-1} J

    P projects onto what the rows of the Jacobian span; its diagonal is the leverage of regression
    (Hoaglin & Welsch 1978). L sums to the number of rows (less the singular values that are dropped)
    and is exactly the derivative of the score with respect to the logarithm of a gain at pixel p: if
    the encoder saw that pixel amplified by :math:`1 + \delta`, the score of the same image would rise
    by :math:`L(p) \, \delta`. A map that is even everywhere is R/HW. It tells where the score looks,
    not how high it is, and it is no sum of which the parts are shares of the score.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them. If they were enlarged, pass the
            small ones and a function that enlarges them: the rows of an enlarged image lie in
            directions in which no small image can move.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader) or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`, which whitens the sketch.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        **options: See :class:`~jepa_monitor.ScoreOptions`. A sketch has the map of its own R rows.

    Returns:
        ``(leverage, dropped)``: maps, (B, H, W) of images (B, C, H, W) and (B, ...) otherwise,
        float64, and how many singular values have no part in them, (B,).

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, the images are not finite, or the encoder does
            not map each image by itself, differentiably, to one embedding.
        MemoryError: If a single image does not fit into memory.

    Example:
        >>> import torch
        >>> from jepa_monitor import leverage_map
        >>> encoder = torch.nn.Linear(3, 2, bias=False)
        >>> _ = encoder.weight.data.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
        >>> leverage_map(encoder, torch.zeros(1, 3)).leverage
        tensor([[1.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    how = ScoreOptions(**options)
    check_fixed_rows(how)
    embedder, images, law = prepared(encoder, check_images(images), how, reference, pool)
    return leverages(embedder, images, how, law)
