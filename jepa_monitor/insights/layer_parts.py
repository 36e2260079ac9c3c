"""What leaves each block of the encoder, and the scores that images have there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_monitor.encoders.layers import LayerEncoder, layer_embeddings
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.collapse import effective_rank, normalized_std
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.functional.isotropic import isotropic_baseline
from jepa_monitor.functional.mutual_neighbors import mutual_knn
from jepa_monitor.insights._drawing import is_drawable
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.parts import Part
from jepa_monitor.probes.corruptions import CORRUPTIONS, SEVERITIES

__all__ = ["MEASURES", "LayerScores", "LayerSet", "Layers", "ScoredLayers", "measure_layer"]

MEASURES = ("effective_rank_relative", "normalized_std", "gaussianity_effect", "neighbors")
_NEIGHBORS = 10
_ROWS = 16  # of a sketched score
_REMEMBERED = 128  # looks; of more than that every other one is forgotten


@dataclass(frozen=True)
class LayerSet:
    """The probe at each of L layers.

    Args:
        widths: Numbers of an embedding by layer, the first one of the pass first.
        measures: By layer, the value of each of :data:`MEASURES` as far as it can be had.
        history: The same of earlier looks and of this one, (looks, L, measures), float32; NaN where there was
            none.
    """

    widths: dict[str, int]
    measures: tuple[dict[str, float], ...]
    history: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers, in the same order."""
        return tuple(self.widths)


@dataclass(frozen=True)
class Layers(Part[LayerSet]):
    """Embeddings of the probe at each layer, of one pass, in numbers.

    Args:
        samples: How many images at most.
    """

    samples: int = 512

    source = "an encoder that is a chain of blocks"
    of_images = True

    def gather(self, at: Gatherer) -> LayerSet:
        """Pass the images through the encoder.

        Args:
            at: The encoder, the probe, and what earlier looks kept.

        Returns:
            What there is at each layer.

        Raises:
            LayerError: If the encoder is no chain of blocks.
        """
        images = at.sources.images[: self.samples]
        first = _pass(at, images[:1].to(at.device))
        names = tuple(first)

        def work(part: Tensor) -> tuple[Tensor, ...]:
            found = _pass(at, part)
            return tuple(found[name].cpu() for name in names)

        measured: list[dict[str, float]] = []
        before: Tensor | None = None
        for z in at.map(work, images):
            measured.append(measure_layer(z, before))
            before = z
        widths = {name: z.shape[1] for name, z in first.items()}
        return LayerSet(widths, tuple(measured), _remember(at, names, measured))


@dataclass(frozen=True)
class LayerScores:
    """Scores of images and of worse versions at one layer.

    Args:
        scores: Of the images, (n,), float64, nats.
        worse: Of their worst versions, one row a kind, (kinds, n).
    """

    scores: Tensor
    worse: Tensor


@dataclass(frozen=True)
class ScoredLayers(Part[dict[str, LayerScores]]):
    """Scores of the first probe images, and of their worst versions, at some layers, sketched by 16 rows.

    Args:
        layers: The layers.
        samples: How many images.
        most: How many layers at most, evenly spread, the first and the last among them.
    """

    layers: Layers
    samples: int = 8
    most: int = 6

    source = "images (B, C, H, W) of 1 or 3 channels"
    of_images = True

    def gather(self, at: Gatherer) -> dict[str, LayerScores] | None:
        """Score them.

        Args:
            at: The encoder and the probe.

        Returns:
            Scores by layer, or ``None`` if the inputs are no images.

        Raises:
            LayerError: If the encoder is no chain of blocks.
        """
        images = at.sources.images[: self.samples]
        if not is_drawable(images):
            return None
        layers = at.part(self.layers)
        assert layers is not None
        names, widths = layers.names, layers.widths
        places = torch.linspace(0, len(names) - 1, min(self.most, len(names))).round().int()
        worst = max(SEVERITIES)
        versions = [corrupt(images, worst) for corrupt in CORRUPTIONS.values()]
        found = {}
        for place in places.tolist():
            name = names[place]
            rows = min(_ROWS, widths[name])
            options = at.options.turned("sketch", rows)
            layer = at.other(LayerEncoder(at.encoder, name), options)
            scores = layer.scores(torch.cat([images, *versions])).view(-1, len(images))
            found[name] = LayerScores(scores[0], scores[1:])
        return found


def measure_layer(embeddings: Tensor, before: Tensor | None = None) -> dict[str, float]:
    """Measure what leaves a layer.

    Args:
        embeddings: (N, d); rows that are not finite are left out.
        before: What left the layer before it, (N, d').

    Returns:
        Of :data:`MEASURES` those that can be had: the effective rank of the unit embeddings over that of isotropic
        ones of the same N and d, their normalised standard deviation, the effect size of the sliced
        Epps-Pulley test of the whitened embeddings (of more samples than numbers), and the share of
        neighbours that the layer before has too, corrected for chance.
    """
    finite = torch.isfinite(embeddings).all(1)
    if before is not None:
        finite &= torch.isfinite(before).all(1)
    z = embeddings[finite].double()
    count, width = z.shape
    if count < 2:
        return {}
    unit = unit_rows(z)
    most = isotropic_baseline(count - 1, width).effective_rank
    found = {
        "effective_rank_relative": effective_rank(unit).item() / most,
        "normalized_std": normalized_std(unit).item(),
    }
    if count > 2 * width:
        found["gaussianity_effect"] = sliced_epps_pulley(
            embeddings[finite], standardized="whitened"
        ).effect_size.item()
    if before is not None and count >= _NEIGHBORS + 2:
        found["neighbors"] = mutual_knn(z, before[finite], _NEIGHBORS).item()
    return found


def _pass(at: Gatherer, images: Tensor) -> dict[str, Tensor]:
    def work() -> list[dict[str, Tensor]]:
        with torch.no_grad():
            return at.embedder.inside(images.to(at.embedder.dtype), layer_embeddings)

    parts = at.embedder.run(work, images.device)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _remember(at: Gatherer, names: tuple[str, ...], measured: list[dict[str, float]]) -> Tensor:
    """Keep the numbers of this look behind those of earlier ones of the same layers."""
    row = torch.tensor([[each.get(name, torch.nan) for name in MEASURES] for each in measured])
    kept = at.sources.memory.get("layers", {})
    table = row[None]
    if kept.get("names") == list(names):
        table = torch.cat([kept["table"], table])
    if len(table) > _REMEMBERED:
        table = table[::2] if len(table) % 2 else table[1::2]  # this look stays
    at.sources.memory["layers"] = {"names": list(names), "table": table}
    return table
