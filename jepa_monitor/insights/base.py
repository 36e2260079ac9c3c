"""What an insight is: one group of tags, with what it needs, computes, draws and explains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Insight", "Panel", "Row"]


@dataclass(frozen=True)
class Row:
    """A row of the table of tags in ``docs/metrics.md``.

    Args:
        tags: The tags that it explains; ``<detector>`` and ``<name>`` stand for any.
        what: What they are.
        range: Which values are possible.
        healthy: Which ones are good.
        moved_by: What moves them.
        cost: What they cost: in backward passes of the encoder over the scored images, or in words.
        source: Where they are from.
    """

    tags: tuple[str, ...]
    what: str
    range: str = ""
    healthy: str = ""
    moved_by: str = ""
    cost: str = ""
    source: str = ""


@dataclass(frozen=True)
class Panel:
    """A chart on TensorBoard's custom-scalars page, and in the overview.

    Args:
        page: The heading that it stands under.
        title: Its own, with the unit.
        tags: Patterns of the tags of its lines; of a band the tags of the middle, the lower end and
            the upper one.
        band: Whether they are a line with a band instead of several lines.
        healthy: Lower and upper end of what is healthy: numbers, or tags of which the value at a
            look is the end at that look; ``None`` where there is no end.
    """

    page: str
    title: str
    tags: tuple[str, ...]
    band: bool = False
    healthy: tuple[float | str | None, float | str | None] = (None, None)


class Insight(ABC):
    """One group of tags: computes numbers, and maybe pictures, from a look at an encoder.

    A subclass gives :attr:`name` and :meth:`scalars`; the rest is optional. It keeps no state from
    one look to the next, calls no other process and draws no random numbers but from a generator of
    its own: every process asks it, all with the same look.

    Attributes:
        name: What it is asked for as.
        needs: Parts of the look beside the scored sets without which it has nothing to say; see
            :mod:`jepa_monitor.insights.parts`.
        wants: Parts that it makes use of where they can be had.
        rows: What its tags mean, as ``docs/metrics.md`` has it.
        panels: Its charts on TensorBoard's custom-scalars page.

    Example:
        >>> import torch
        >>> from jepa_monitor import DensityMonitor
        >>> class Lengths(Insight):
        ...     name = "lengths"
        ...
        ...     def scalars(self, look):
        ...         return {"lengths/mean": look.probe.embeddings.norm(dim=1).mean().item()}
        >>> monitor = DensityMonitor(torch.eye(3), insights=[Lengths()])
        >>> monitor.evaluate(lambda x: 2 * x).scalars["lengths/mean"]
        2.0
    """

    name: str
    needs: tuple[Part[Any], ...] = ()
    wants: tuple[Part[Any], ...] = ()
    rows: tuple[Row, ...] = ()
    panels: tuple[Panel, ...] = ()

    @abstractmethod
    def scalars(self, look: Look) -> dict[str, float]:
        """Compute the numbers.

        Args:
            look: What was gathered.

        Returns:
            Finite numbers by tag; what cannot be computed is absent.
        """

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say in words what the numbers mean.

        Args:
            scalars: Those of a look, by tag; not all that :meth:`scalars` may give are there.

        Returns:
            A sentence for the verdict; nothing where there is nothing to be said.
        """
        del scalars
        return ""

    def histograms(self, look: Look) -> dict[str, Tensor]:
        """Give what is to be shown as a distribution.

        Args:
            look: What was gathered.

        Returns:
            Finite values by tag, each (n,).
        """
        del look
        return {}

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw pictures.

        Args:
            look: What was gathered.

        Returns:
            Figures by tag.
        """
        del look
        return {}
