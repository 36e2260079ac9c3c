"""Which rows to compute: in go settings and the law of the embeddings, out comes a matrix of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.options import ScoreOptions

__all__ = ["check_fixed_rows", "check_width", "row_count", "sketch_matrix"]

_SHARE = 16  # of the K rows, one in so many
_LEAST = 16  # fewer are too few where the spectrum is flat: docs/sketching.md
_STARTS = 6  # of Lanczos quadrature
_PER_START = 32  # K for each: the error in nats grows with √(K/n)


def row_count(options: ScoreOptions, width: int, inputs: int, whitened: bool) -> int | None:
    """Say how many rows a sketch or an estimate by ``"lanczos"`` has.

    Embeddings of more numbers than their inputs lie on a curved surface. Whitening blows up its thin
    directions, in which nothing is normal, and turns the order of the scores around: there is no
    whitened sketch of them.

    Args:
        options: How to score.
        width: K.
        inputs: D.
        whitened: Whether there is a law of the embeddings of a reference set.

    Returns:
        R; ``None`` if all K rows are computed, as also where ``"lanczos"`` would take no fewer.

    Raises:
        ValueError: If more rows are asked for than there are, or a whitened sketch with K > D.
    """
    method = options.method
    if method == "lanczos":
        starts = max(_STARTS, -(-min(width, inputs) // _PER_START))
        rows = options.rows or starts * options.depth
        return rows if rows < min(width, inputs) else None
    if method == "auto":
        method = "sketch" if whitened and 2 * _LEAST < width <= inputs else "exact"
    if method == "exact":
        return None
    if whitened and width > inputs:
        raise ValueError(
            f"`method` must be 'exact' for embeddings of more numbers ({width}) than their inputs "
            f"({inputs}), got {options.method!r} with `reference`: whitening turns their order around."
        )
    if options.rows is None:
        return min(width, max(_LEAST, -(-width // _SHARE)))
    if options.rows > width:
        raise ValueError(
            f"`rows` must be at most the width of the embeddings, {width}, got {options.rows}."
        )
    return options.rows


def check_width(reference: Gaussian | None, width: int) -> None:
    """Refuse a law of other embeddings.

    Args:
        reference: Law of the embeddings; ``None`` for none.
        width: K.

    Raises:
        ValueError: If it has another width.
    """
    if reference is not None and reference.width != width:
        raise ValueError(
            f"`reference` must be a law of embeddings of width {width}, got {reference.width}."
        )


def check_fixed_rows(options: ScoreOptions) -> None:
    """Refuse settings under which other rows are taken of each image.

    Args:
        options: How to score.

    Raises:
        ValueError: If they are such.
    """
    if options.may_be_deep:
        asked = "'lanczos'" if options.method == "lanczos" else "a tolerance"
        raise ValueError(
            "`method` must be 'exact' or 'sketch' where spectra, gradients, fibres or maps of pixels are "
            f"asked for, got {asked}: estimates take other rows of each image."
        )


def sketch_matrix(
    options: ScoreOptions, width: int, inputs: int, reference: Gaussian | None
) -> Tensor | None:
    r"""Choose the rows of the Jacobian to compute.

    With R orthonormal random rows P, :math:`P \Sigma^{-1/2} f` is Gaussian whenever f is, so that the
    log-volume of :math:`P \Sigma^{-1/2} J` is a density score of its own, at R instead of K backward
    passes. P depends on seed, R and K alone: it is the same for all images, evaluations and
    processes.

    Args:
        options: How to score.
        width: K.
        inputs: D.
        reference: Law of the embeddings of a reference set; whitens the sketch.

    Returns:
        (R, K), float64, on the CPU; ``None`` for all rows as they are.

    Raises:
        ValueError: If more rows are asked for than there are, the law has another width, the
            sketch is whitened and K > D, or ``"lanczos"`` chooses rows for each image by itself.
    """
    check_width(reference, width)
    count = row_count(options, width, inputs, reference is not None)
    if count is None:
        return None
    if options.method == "lanczos":
        check_fixed_rows(options)
    generator = torch.Generator().manual_seed(options.seed)
    normal = torch.randn(width, count, generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(normal).Q.T
    return torch.as_tensor(rows if reference is None else rows @ reference.whitening.cpu())
