"""Jacobian alignment: does the encoder act along its own input?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.functional.jacobian_alignment import centroid_alignment, jacobian_alignment
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.rows import embed_with_graph, row_passes
from jepa_monitor.jacobian.sketch import sketch_matrix

__all__ = ["Alignment", "Alignments"]

_TAGS = ("alignment", "alignment_shuffled", "centroid_alignment", "centroid_alignment_shuffled")


@dataclass(frozen=True)
class Alignments(Part[tuple[Tensor, ...]]):
    """Alignments of the first probe images, four times (n,), float64, in the order of the tags.

    Args:
        samples: How many images, n; each is compared with all of them.
    """

    samples: int = 16
    of_images = True

    def gather(self, at: Gatherer) -> tuple[Tensor, ...]:
        """Measure them.

        Args:
            at: The encoder and the probe.

        Returns:
            Alignment and centroid alignment, each of the image and of the others.
        """
        images = at.sources.images[: self.samples]
        others = images.to(at.device)
        return at.map(lambda part: _alignments_of(at.embedder, part, others), images)


class Alignment(Insight):
    """``jacobian/alignment`` and ``/centroid_alignment``, each also of other inputs."""

    name = "alignment"
    needs = (Alignments(),)
    rows = (
        Row(
            tuple(f"jacobian/{tag}" for tag in _TAGS),
            'with `insights=["alignment"]`: ‖Jx‖/(‖J‖‖x‖) and cos(Jᵀ1, x) of 16 probe images, and '
            "with other images in the place of x",
            "0 … 1; −1 … 1",
            "above the shuffled value, growing",
            "Jacobians that act along their own input",
            "16 images × (max(16, K/16) + 1) passes",
            "[GrokAlign](https://arxiv.org/abs/2506.12284)",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Average over the images that have a finite Jacobian.

        Args:
            look: What was gathered.

        Returns:
            ``jacobian/alignment``, ``jacobian/centroid_alignment`` and their ``_shuffled`` values.
        """
        measured: tuple[Tensor, ...] = look[Alignments()]
        return {
            f"jacobian/{tag}": values.nanmean().item()
            for tag, values in zip(_TAGS, measured, strict=True)
            if not bool(values.isnan().all())
        }


def _alignments_of(embedder: Embedder, images: Tensor, others: Tensor) -> tuple[Tensor, ...]:
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
            basis = sketch_matrix(ScoreOptions("sketch"), embeddings.shape[1], image.numel(), None)
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
