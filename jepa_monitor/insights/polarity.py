"""Polarity: is a high score a likely image, or is the score inverted?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_monitor.functional.polarity import paired_polarity, severity_order
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Corrupted
from jepa_monitor.probes.corruptions import SEVERITIES

__all__ = ["Polarity", "SeverityOrder", "order_scalars", "polarity_scalars"]

_CHANCE = 0.5


class Polarity(Insight):
    """``density/polarity*``.

    Args:
        samples: How many probe images to score again in worse versions.
    """

    name = "polarity"
    rows = (
        Row(
            ("density/polarity", "density/polarity_low", "density/polarity_high"),
            "share of pairs of a probe image and its own worst corruption (three kinds) in which "
            "the image scores higher, and the ends of its 95 % interval",
            "0 … 1",
            "above 0.5",
            "**`_high` below 0.5: the score is inverted**, likely images score low; an interval "
            "that holds 0.5 says nothing yet",
            "`polarity_samples` × 3 images",
            "`paired_polarity`",
        ),
        Row(
            ("density/polarity_noise", "density/polarity_blur", "density/polarity_shuffle"),
            "the same for one kind",
            "0 … 1",
            "above 0.5",
        ),
    )
    panels = (
        Panel(
            "calibration",
            "polarity (below 0.5: inverted)",
            ("density/polarity", "density/polarity_low", "density/polarity_high"),
            band=True,
            healthy=(_CHANCE, None),
        ),
    )

    def __init__(self, samples: int = 8) -> None:
        self.part = Corrupted(samples)
        self.wants = (self.part,)

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare images with worse versions of themselves.

        Args:
            look: What was gathered.

        Returns:
            ``density/polarity*``; nothing for inputs that are no images.
        """
        if self.part not in look.parts:
            return {}
        return polarity_scalars(look.probe.scores[: self.part.samples], look[self.part])

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether the score is the right way up.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        low, high = (scalars.get(f"density/polarity_{end}") for end in ("low", "high"))
        if low is None or high is None:
            return ""
        if high < _CHANCE:
            return "The score is inverted: worse versions of images score higher than the images."
        if low > _CHANCE:
            return "The score is the right way up: worse versions of images score lower."
        return "Too few images to tell whether the score is the right way up."


def polarity_scalars(scores: Tensor, corrupted: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    """Say whether images that are outliers by construction score lower, as they must.

    Args:
        scores: Scores of some images, (B,).
        corrupted: Scores of the same images by corruption and severity.

    Returns:
        ``density/polarity``, the share of pairs of an image and its worst versions in which the
        image scores higher, with ``_low`` and ``_high``, the ends of its 95 % interval (inverted
        where ``_high`` is below 0.5), and each corruption's own share.
    """
    scalars: dict[str, float] = {}
    worst: list[Tensor] = []
    for name, versions in corrupted.items():
        worst.append(versions[max(versions)])
        pairs = torch.isfinite(torch.stack([scores, worst[-1]])).all(0)
        if pairs.any():
            share = paired_polarity(scores[pairs], worst[-1][None, pairs]).polarity
            scalars[f"density/polarity_{name}"] = share.item()
    if worst:
        everything = torch.stack([scores, *worst])
        finite = torch.isfinite(everything).all(0)
        if finite.any():
            found = paired_polarity(everything[0, finite], everything[1:, finite])
            scalars["density/polarity"] = found.polarity.item()
            scalars["density/polarity_low"] = found.lower.item()
            scalars["density/polarity_high"] = found.upper.item()
    return scalars


class SeverityOrder(Insight):
    """``density/order``: do scores fall as images get worse, step by step?

    Args:
        samples: How many probe images to score again in worse versions.
    """

    name = "severity"
    rows = (
        Row(
            ("density/order",),
            'with `insights=["severity"]`: minus the rank correlation (Kendall\'s τ) of severity and score '
            "within each image",
            "−1 … 1",
            "towards 1",
            "the score is inverted, or does not see how much worse an image is",
            "8 × 6 images, beside those of `density/polarity`",
            "`severity_order`",
        ),
    )

    def __init__(self, samples: int = 8) -> None:
        worst = max(SEVERITIES)
        self.worst = Corrupted(samples)  # which the polarity has, too
        self.milder = Corrupted(samples, tuple(each for each in SEVERITIES if each != worst))
        self.wants = (self.worst, self.milder)

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare images with versions that get worse.

        Args:
            look: What was gathered.

        Returns:
            ``density/order``; nothing for inputs that are no images.
        """
        if self.worst not in look.parts or self.milder not in look.parts:
            return {}
        worst, milder = look[self.worst], look[self.milder]
        corrupted = {name: milder[name] | worst[name] for name in worst}
        return order_scalars(look.probe.scores[: self.worst.samples], corrupted)


def order_scalars(scores: Tensor, corrupted: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    """Say whether scores fall with the severity of a corruption.

    Args:
        scores: Scores of some images, (B,).
        corrupted: Scores of the same images by corruption and severity.

    Returns:
        ``density/order``, minus the rank correlation of severity and score within an image; nothing if
        no image has finite scores in all versions.
    """
    order: list[Tensor] = []
    for versions in corrupted.values():
        levels = torch.stack([scores, *(versions[severity] for severity in sorted(versions))])
        finite = torch.isfinite(levels).all(0)
        if finite.any():
            order.append(severity_order(levels[:, finite]))
    return {"density/order": torch.stack(order).mean().item()} if order else {}
