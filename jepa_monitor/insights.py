"""What else Jacobians and embeddings tell: in go the probe's, out come numbers under tags.

All of it is off by default. Every function leaves out what it cannot compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional import (
    centroid_alignment,
    jacobian_alignment,
    mutual_knn,
    separation,
    task_prior_performance,
)
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.rows import embed_with_graph, row_passes
from jepa_monitor.jacobian.sketch import sketch_matrix

__all__ = [
    "INSIGHTS",
    "alignment_of",
    "alignment_scalars",
    "check_insights",
    "check_labels",
    "label_scalars",
    "neighbour_agreement",
]

INSIGHTS = ("alignment", "tasks", "separation", "neighbors")
NEED_LABELS = ("tasks", "separation")
_NEIGHBOURS = 10


def check_insights(insights: Any, labels: Any) -> tuple[str, ...]:
    """Check which insights are asked for, and that they can be had.

    Args:
        insights: Names.
        labels: ``None`` if there are none.

    Returns:
        The names.

    Raises:
        TypeError: If ``insights`` is no collection of names.
        ValueError: If a name is unknown, or needs labels.
    """
    if isinstance(insights, str) or not isinstance(insights, Iterable):
        raise TypeError(f"`insights` must be a collection of names, got {insights!r}.")
    names = tuple(insights)
    for name in names:
        if name not in INSIGHTS:
            raise ValueError(f"`insights` must be among {', '.join(INSIGHTS)}, got {name!r}.")
        if name in NEED_LABELS and labels is None:
            raise ValueError(f"`insights` names {name!r}, which needs `labels`, got None.")
    return names


def check_labels(labels: Tensor, count: int) -> Tensor:
    """Check the classes of the probe images.

    Args:
        labels: Of each image, (N,).
        count: Number of probe images that are embedded; labels beyond it are not needed.

    Returns:
        (count,), int64.

    Raises:
        ValueError: If they are too few, not whole numbers, of one class, or of a class with a
            single image.
    """
    if labels.ndim != 1 or len(labels) < count:
        raise ValueError(
            f"`labels` must have shape (N,), one for each of the {count} probe images, got "
            f"{tuple(labels.shape)}."
        )
    whole = labels[:count].cpu().long()
    if not bool((whole == labels[:count].cpu()).all()):
        raise ValueError(f"`labels` must be whole numbers, got {labels.dtype} with fractions.")
    counts = torch.bincount(whole - whole.min())
    counts = counts[counts > 0]
    if len(counts) < 2 or int(counts.min()) < 2:
        raise ValueError(
            "`labels` must name at least 2 classes, each of at least 2 probe images, got "
            f"{len(counts)} classes, the smallest with {int(counts.min())}."
        )
    return whole


def alignment_of(embedder: Embedder, images: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Measure how far Jacobians act along their own inputs.

    Takes as many passes as a sketch of unwhitened rows, which stand for all, and one for the
    centroid; one image at a time.

    Args:
        embedder: The encoder.
        images: (B, ...), on its device.
        others: Inputs to compare with, (M, ...), on its device.

    Returns:
        Jacobian alignment and centroid alignment, each of the image and of the others in its place;
        four times (B,), float64; NaN where the Jacobian is not finite.
    """
    inputs, compared = images.to(embedder.dtype), others.to(embedder.dtype)
    found: list[list[Tensor]] = []

    def work() -> None:
        for image in torch.split(inputs, 1):
            leaf, embeddings = embed_with_graph(embedder, image)
            basis = sketch_matrix(ScoreOptions("sketch"), embeddings.shape[1], None)
            assert basis is not None
            sums = basis.new_ones(1, basis.shape[1])
            cotangents = torch.cat([basis, sums]).to(embeddings)
            rows = torch.stack(
                [*row_passes(leaf, embeddings, cotangents, range(len(cotangents)))], 1
            )
            if not bool(torch.isfinite(rows).all()):
                found.append([rows.new_full((1,), torch.nan, dtype=torch.float64)] * 4)
                continue
            along = jacobian_alignment(rows[:, :-1], image, compared)
            centroid = centroid_alignment(rows[:, -1], image.flatten(1), compared.flatten(1))
            found.append([*along, *centroid])

    embedder.run(work, images.device)
    return tuple(torch.cat(values) for values in zip(*found, strict=True))


def alignment_scalars(measured: tuple[Tensor, ...]) -> dict[str, float]:
    """Average alignments over the images that have one; the others count in ``monitor/nonfinite``.

    Args:
        measured: From :func:`alignment_of`.

    Returns:
        ``jacobian/alignment``, ``jacobian/centroid_alignment`` and their ``_shuffled`` values.
    """
    tags = ("alignment", "alignment_shuffled", "centroid_alignment", "centroid_alignment_shuffled")
    return {
        f"jacobian/{tag}": values.nanmean().item()
        for tag, values in zip(tags, measured, strict=True)
        if not bool(values.isnan().all())
    }


def label_scalars(
    insights: tuple[str, ...], embeddings: Tensor, labels: Tensor
) -> dict[str, float]:
    """Ask how well embeddings serve tasks, and keep classes apart.

    Args:
        insights: Which.
        embeddings: (N, K).
        labels: (N,).

    Returns:
        ``tasks/*`` and ``separation/*``; nothing if an embedding is not finite.
    """
    if not bool(torch.isfinite(embeddings).all()):
        return {}
    scalars: dict[str, float] = {}
    if "tasks" in insights:
        found = task_prior_performance(embeddings, labels)
        scalars["tasks/mean"] = found.mean.item()
        scalars["tasks/sd"] = found.variance.sqrt().item()
        scalars["tasks/best"] = found.best.item()
    if "separation" in insights:
        numbers = separation(embeddings, labels)._asdict()
        scalars |= {f"separation/{name}": value.item() for name, value in numbers.items()}
    # The gap between classes that are points is infinite.
    return {tag: value for tag, value in scalars.items() if abs(value) < float("inf")}


def neighbour_agreement(first: Tensor, second: Tensor) -> float | None:
    """Compare the neighbourhoods of two embeddings of the same images.

    Args:
        first: (N, K₁).
        second: (N, K₂).

    Returns:
        Mutual 10-nearest-neighbour alignment, chance-corrected; ``None`` for fewer than 12 images
        and for embeddings that are not finite.
    """
    finite = bool(torch.isfinite(first).all()) and bool(torch.isfinite(second).all())
    if not finite or len(first) < _NEIGHBOURS + 2:
        return None
    return mutual_knn(first, second, k=_NEIGHBOURS).item()
