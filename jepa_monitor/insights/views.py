"""Augmented views of probe images, and whether an encoder finds them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional import neighbor_consistency, wilson_interval
from jepa_monitor.insights._drawing import is_drawable
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.labelled import thumbnails
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.probes.augmentations import augment, draw_distortions

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["CONSISTENT", "VIEWS", "Consistency", "Consistent", "ViewConsistency", "Views"]

_NEIGHBOURS = 10


@dataclass(frozen=True)
class Views(Part[Tensor]):
    """Embeddings of random views of the first probe images, (n, q, K): crops, mirrors, colours.

    The same views at every look; :func:`~jepa_monitor.probes.augmentations.augment` says which.

    Args:
        samples: How many images at most, n.
        views: Views of each, q.
    """

    samples: int = 128
    views: int = 2

    source = "images (B, C, H, W)"
    of_images = True

    def images(self, at: Gatherer) -> list[Tensor] | None:
        """Make the views.

        Args:
            at: What the monitor has.

        Returns:
            q times (n, C, H, W), or ``None`` if the inputs are no images.
        """
        images = at.sources.images[: self.samples]
        if not is_drawable(images):
            return None
        return [augment(images, draw_distortions(len(images), seed)) for seed in range(self.views)]

    def gather(self, at: Gatherer) -> Tensor | None:
        """Embed them.

        Args:
            at: What the monitor has.

        Returns:
            (n, q, K), or ``None`` if the inputs are no images.
        """
        views = self.images(at)
        return None if views is None else torch.stack([at.embeddings(view) for view in views], 1)


VIEWS = Views()


class ViewConsistency(NamedTuple):
    """How well two views of an image find each other; 1 is perfect, 0 chance.

    Args:
        retrieval: Share of first views that are nearest to their own second view.
        low: Lower end of its 95 % interval.
        high: Upper end.
        overlap: Share of the 10 neighbours that the views have in common.
        first: The retrieval at the run's first look; at that look itself, its own.
        pixels: The retrieval by raw pixels.
    """

    retrieval: float
    low: float
    high: float
    overlap: float
    first: float
    pixels: float


@dataclass(frozen=True)
class Consistent(Part[ViewConsistency]):
    """Neighbour consistency of two views of the first probe images.

    Args:
        views: Of which images.
    """

    views: Views = VIEWS

    source = "images (B, C, H, W), at least 12"
    of_images = True

    def gather(self, at: Gatherer) -> ViewConsistency | None:
        """Compare the views.

        Args:
            at: What the monitor has.

        Returns:
            What was found, or ``None`` for fewer than 12 images of finite embeddings.
        """
        embeddings = at.part(self.views)
        if embeddings is None:
            return None
        finite = embeddings[torch.isfinite(embeddings).flatten(1).all(1)]
        if len(finite) < _NEIGHBOURS + 2:
            return None
        memory = at.sources.memory
        if "retrieval_pixels" not in memory:
            memory["retrieval_pixels"] = self._by_pixels(at)
        found = neighbor_consistency(finite[:, 0], finite[:, 1], k=_NEIGHBOURS)
        retrieval = found.retrieval.item()
        chance = 1 / len(finite)
        hits = (found.retrieval * (1 - chance) + chance) * len(finite)
        ends = wilson_interval(hits, len(finite))
        low, high = ((end.item() - chance) / (1 - chance) for end in ends)
        first: float = memory.setdefault("first_retrieval", retrieval)
        pixels: float = memory["retrieval_pixels"]
        return ViewConsistency(retrieval, low, high, found.overlap.item(), first, pixels)

    def _by_pixels(self, at: Gatherer) -> float:
        views = self.views.images(at)
        small = None if views is None else [thumbnails(view) for view in views]
        if small is None or small[0] is None or small[1] is None:
            return torch.nan
        return neighbor_consistency(small[0], small[1], k=_NEIGHBOURS).retrieval.item()


CONSISTENT = Consistent()


class Consistency(Insight):
    """``views/*``: no labels needed."""

    name = "views"
    wants = (CONSISTENT,)
    rows = (
        Row(
            ("views/retrieval", "views/retrieval_low", "views/retrieval_high"),
            "share of 128 probe images of which one random view (crop, mirror, colours) is nearest to "
            "the other view of the same image, by cosine, corrected for chance, and the ends of its "
            "95 % interval",
            "about 0 … 1",
            "rising above its first value; 0 is chance",
            "what embeddings keep of an image whatever the view; encoders that copy pixels have some of "
            "it (`views/retrieval_pixels`), collapsed ones none",
            "256 images, forward",
            "`neighbor_consistency`",
        ),
        Row(
            ("views/overlap",),
            "share of the 10 nearest images that both views have in common, corrected for chance",
            "about 0 … 1",
            "rising; 0 is chance",
            "the same, of the neighbourhood",
            "free",
            "`neighbor_consistency`",
        ),
        Row(
            ("views/retrieval_pixels",),
            "the same retrieval by raw pixels (averaged to at most 32 a side), measured once",
            "about 0 … 1",
            "below `views/retrieval`",
            "the images, not the encoder",
            "free",
        ),
    )
    panels = (
        # The run's own, from `monitor/advice.py`, made of the retrieval.
        Panel(
            "advice",
            "advice: quality of the looks, and the best so far",
            ("advice/(quality|best)$",),
        ),
        Panel(
            "views",
            "views that find each other (0: chance)",
            ("views/(retrieval|overlap|retrieval_pixels)$",),
            healthy=("views/retrieval_pixels", None),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Say how well two views of an image find each other.

        Args:
            look: What was gathered.

        Returns:
            ``views/*``; nothing for inputs that are no images.
        """
        if CONSISTENT not in look.parts:
            return {}
        found = look[CONSISTENT]
        return {
            "views/retrieval": found.retrieval,
            "views/retrieval_low": found.low,
            "views/retrieval_high": found.high,
            "views/overlap": found.overlap,
            "views/retrieval_pixels": found.pixels,
        }
