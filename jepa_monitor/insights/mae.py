"""Influence: from how far patch tokens, and reconstructed pixels, take what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_monitor.functional._intervals import ratio_interval
from jepa_monitor.insights._drawing import for_display, is_drawable
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.mae_parts import Filled, Influences, Reach, Reconstruction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Influence", "plot_filled"]

_DOC = "[docs/recipes/mae.md](recipes/mae.md#what-the-monitor-adds)"


class Influence(Insight):
    """``mae/*``: how far off the pixels are that tokens and reconstructions depend on.

    Args:
        samples: How many probe images at most.
        mask: Share of the patches that is hidden where the encoder reconstructs images. The same for all
            runs, whatever mask they train with: what is hidden decides on distances too.
    """

    name = "mae"
    rows = (
        Row(
            tuple(
                f"mae/influence_{kind}" for kind in ("length", "length_low", "length_high", "even")
            ),
            'with `insights=["mae"]`: mean distance in pixels between the patch of a token and the pixels '
            "that it depends on, weighted by the size of the derivative; the ends of its 95 % interval over "
            "images; and what it is if all derivatives are equal",
            "≥ 0",
            "none is known: it is a scale, and no quality",
            "falls: tokens become local; rises: they take in the image; grows with mask and patch in linear "
            "autoencoders",
            "32 images, a backward pass for each of up to 64 tokens",
            _DOC,
        ),
        Row(
            tuple(f"mae/in_patch_{kind}" for kind in ("share", "share_low", "share_high", "even")),
            "share of the sizes of these derivatives that lies in the token's own patch, the ends of its "
            "95 % interval, and what it is if all are equal: one over the number of patches",
            "0 … 1",
            "none is known",
            "near 1: tokens that do not look at each other",
            "the same",
            _DOC,
        ),
        Row(
            tuple(
                f"mae/reconstruction_{kind}"
                for kind in ("length", "length_low", "length_high", "even")
            ),
            "of an encoder with a method `reconstruct(images, hidden)`: the mean distance between a hidden "
            "pixel and the pixels that its reconstruction depends on, weighted likewise, under random masks "
            "of 75 %",
            "> 0",
            "none is known",
            "falls as details are filled in from nearby",
            "32 images, 32 backward passes",
            _DOC,
        ),
    )
    panels = (
        Panel(
            "tokens",
            "influence length of tokens (px)",
            ("mae/influence_length", "mae/influence_length_low", "mae/influence_length_high"),
            band=True,
        ),
        Panel(
            "tokens",
            "influence length of reconstructed pixels (px)",
            (
                "mae/reconstruction_length",
                "mae/reconstruction_length_low",
                "mae/reconstruction_length_high",
            ),
            band=True,
        ),
    )

    def __init__(self, samples: int = 32, mask: float = 0.75) -> None:
        if not 0 < mask < 1:
            raise ValueError(f"`mask` must be in (0, 1), got {mask}.")
        self.tokens = Influences(samples)
        self.hidden = Reconstruction(samples, mask)
        self.needs = (self.tokens,)
        self.wants: tuple[Any, ...] = (self.hidden,)

    def scalars(self, look: Look) -> dict[str, float]:
        """Say from how far, on average.

        Args:
            look: What was gathered.

        Returns:
            ``mae/*``; nothing of fewer than two images on which anything depends.
        """
        found: Reach = look[self.tokens]
        scalars = _mean("mae/influence_length", found, found.far)
        if scalars:
            scalars |= _mean("mae/in_patch_share", found, found.own)
            scalars |= {"mae/influence_even": found.even, "mae/in_patch_even": 1 / found.patches}
        if self.hidden in look.parts:
            hidden: Reach = look[self.hidden].reach
            if told := _mean("mae/reconstruction_length", hidden, hidden.far):
                scalars |= told | {"mae/reconstruction_even": hidden.even}
        return scalars

    def figures(self, look: Look) -> dict[str, Figure]:
        """Draw images that the encoder has filled in.

        Args:
            look: What was gathered.

        Returns:
            ``mae/filled_in``, where the encoder reconstructs and the inputs are images.
        """
        if self.hidden not in look.parts or not is_drawable(look[self.hidden].images):
            return {}
        return {"mae/filled_in": plot_filled(look[self.hidden])}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say from how far tokens take what they hold.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        if "mae/influence_length" not in scalars:
            return ""
        length, even, share = (
            scalars[f"mae/{name}"]
            for name in ("influence_length", "influence_even", "in_patch_share")
        )
        return (
            f"Tokens depend on pixels {length:.1f} px off on average, where {even:.1f} px would be all of "
            f"the image alike; {share:.0%} of that lies in their own patch."
        )


def plot_filled(found: Filled, count: int = 6) -> Figure:
    """Draw images, what is seen of them, and how they are filled in: one below the other.

    Args:
        found: Images of 1 or 3 channels.
        count: How many.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    images, seen = found.images[:count].double(), found.seen[:count]
    low, high = (end((0, 2, 3), keepdim=True) for end in (images.amin, images.amax))
    # What is filled in may leave the range of the images, which decides on the colours of all.
    made = found.made[:count].double().clamp(low, high)
    both = for_display(torch.cat([images, made])).expand(-1, -1, -1, 3)
    as_given, filled = both[: len(images)], both[len(images) :]
    shown = [as_given, torch.where(seen[..., None], as_given, 0.5), filled]
    figure = Figure(figsize=(0.9 + 1.2 * len(images), 3.9), layout="constrained")
    panels = figure.subplots(3, len(images), squeeze=False)
    for line, pictures, title in zip(panels, shown, ("image", "seen", "filled in"), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    return figure


def _mean(tag: str, found: Reach, sums: Tensor) -> dict[str, float]:
    """A mean weighted by the sizes of derivatives, with its interval over images."""
    known = torch.isfinite(found.total) & torch.isfinite(found.far) & (found.total > 0)
    if int(known.sum()) < 2:
        return {}
    mean, (low, high) = ratio_interval(sums[known], found.total[known])
    return {tag: mean.item(), f"{tag}_low": low.item(), f"{tag}_high": high.item()}
