"""Intrinsic dimension of the embeddings, while it can mean anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from jepa_monitor.functional import mst_dimension, two_nn
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.insights.views import CONSISTENT

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["Dimension", "IsotropicDimension", "Withheld"]

_LEAST = 48  # embeddings, of which the smallest spanning tree has 3
_ESTIMATES: dict[str, Any] = {
    "mst": mst_dimension,
    "mst_raw": lambda z: mst_dimension(z, normalized=False),
    "two_nn": two_nn,
}
_SHOWN, _COLLAPSED, _NOT_LEARNED = 0, 1, 2
_Z = 1.96  # standard errors


@dataclass(frozen=True)
class Withheld(Part[int]):
    """Why a dimension would mislead: 0 it would not, 1 collapse, 2 views find each other no better."""

    def gather(self, at: Gatherer) -> int:
        """Look at the state of the embeddings, and at how well views find each other.

        Args:
            at: What the monitor has.

        Returns:
            0, 1 or 2.
        """
        state = at.sources.state
        if state is None or state(at.probe.embeddings) != 0:
            return _COLLAPSED
        views = at.part(CONSISTENT)
        return _SHOWN if views is not None and views.low > views.first else _NOT_LEARNED


@dataclass(frozen=True)
class IsotropicDimension(Part[dict[str, float]]):
    """What isotropic normal embeddings of as many dimensions read, by estimate; drawn once."""

    def gather(self, at: Gatherer) -> dict[str, float]:
        """Draw some and measure them.

        Args:
            at: What the monitor has.

        Returns:
            Dimensions by name; empty for fewer than 48 embeddings.
        """
        count, width = at.probe.finite_embeddings.shape
        known: dict[str, float] = at.sources.memory.get("isotropic_dimension", {})
        if count < _LEAST or (known.get("count"), known.get("width")) == (count, width):
            return known
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(count, width, generator=generator, dtype=torch.float64)
        found = {name: estimate(z).dimension.item() for name, estimate in _ESTIMATES.items()}
        found |= {"count": float(count), "width": float(width)}
        at.sources.memory["isotropic_dimension"] = found
        return found


_WITHHELD, _ISOTROPIC = Withheld(), IsotropicDimension()


def _with_ends(name: str) -> tuple[str, ...]:
    return tuple(f"dimension/{name}{end}" for end in ("", "_low", "_high", "_isotropic"))


class Dimension(Insight):
    """``dimension/*``; lower foretells better encoders only while nothing collapses."""

    name = "dimension"
    needs = (_WITHHELD, _ISOTROPIC)
    rows = (
        Row(
            _with_ends("mst") + _with_ends("mst_raw"),
            'with `insights=["dimension"]`: intrinsic dimension of the probe\'s embeddings by how their '
            "minimum spanning tree grows, of unit length and as they are; the ends of its 95 % interval "
            "over subsets; and what isotropic normal embeddings of the same N and K read",
            "1 …",
            "falling slowly, far below isotropic; compare at one N and K only",
            "absent while `dimension/withheld` is not 0: a collapse lowers it as good features do; "
            "classes that move apart lower it too",
            "O(N²K)",
            "[IdEst](https://arxiv.org/abs/2606.03338)",
        ),
        Row(
            _with_ends("two_nn"),
            "the same by the ratio of the distances to the two nearest neighbours",
            "> 0",
            "the same",
            "the same",
            "O(N²K)",
            "Facco 2017",
        ),
        Row(
            ("dimension/withheld",),
            "why there is no dimension: 0 there is one; 1 the embeddings have collapsed, or are too few "
            "to tell; 2 views of an image find each other no better than at the first look "
            "(`views/retrieval_low` is not above the first `views/retrieval`)",
            "0, 1, 2",
            "0 after the first looks",
            "",
            "free",
        ),
    )
    panels = (
        Panel("views", "intrinsic dimension", _with_ends("mst")[:3], band=True),
        Panel(
            "views",
            "intrinsic dimension, and isotropic",
            ("dimension/(mst|two_nn)(_isotropic)?$",),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Estimate the dimension, if it can be told from a collapse.

        Args:
            look: What was gathered.

        Returns:
            ``dimension/withheld``, and unless it has a reason the dimensions that are finite; nothing
            for fewer than 48 finite embeddings.
        """
        z = look.probe.finite_embeddings
        if len(z) < _LEAST:
            return {}
        reason = look[_WITHHELD]
        scalars = {"dimension/withheld": float(reason)}
        if reason != _SHOWN:
            return scalars
        isotropic = look[_ISOTROPIC]
        for name, estimate in _ESTIMATES.items():
            found = estimate(z)
            value, error = found.dimension.item(), found.error.item()
            ends = (value, value - _Z * error, value + _Z * error, isotropic[name])
            scalars |= dict(zip(_with_ends(name), ends, strict=True))
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say why there is no dimension.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        why = {
            _COLLAPSED: "a collapse lowers them as good features do",
            _NOT_LEARNED: "views of an image find each other no better than at the first look",
        }.get(int(scalars.get("dimension/withheld", _SHOWN)))
        return f"Intrinsic dimensions are withheld: {why}." if why else ""
