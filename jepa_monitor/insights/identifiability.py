"""Identifiability: up to which maps does the encoder agree with another?"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from jepa_monitor.functional.identifiability import (
    MAPS,
    map_agreement,
    mean_correlation,
    unbiased_cka,
)
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import OTHER_EMBEDDINGS

__all__ = ["Identifiability"]

_FEWEST = 64  # samples, half of which are fitted to
_NOTHING = 0.1  # a share that is not worth a sentence of its own
_UP_TO = {
    "permutation": "the order and signs of their coordinates",
    "rotation": "a rotation",
    "linear": "a linear map",
    "smooth": "a smooth map",
}


class Identifiability(Insight):
    """``identifiability/*``, with another encoder: what maps of one embedding explain of the other."""

    name = "identifiability"
    needs = (OTHER_EMBEDDINGS,)
    rows = (
        Row(
            tuple(f"identifiability/to/{kind}" for kind in MAPS),
            'with `insights=["identifiability"]` and `compare_with`: share of the variance of the other '
            "encoder's embeddings of the probe that the best map from this one's explains, on held-out "
            "images: one to one with signs, rotation (both with one scale), linear, smooth",
            "≤ 1",
            "high where two runs should learn the same; 0: nothing in common",
            "which class of maps the two agree up to",
            "O(N³ + K³)",
            "[arXiv 2504.13101](https://arxiv.org/abs/2504.13101)",
        ),
        Row(
            tuple(f"identifiability/from/{kind}" for kind in MAPS),
            "the other way: what this encoder's embeddings are explained by the other's",
            "≤ 1",
            "",
            "low in one direction alone: one knows more than the other",
            "the same",
            "the same",
        ),
        Row(
            tuple(f"identifiability/{way}_error/{kind}" for way in ("to", "from") for kind in MAPS),
            "half the width of their 95 % intervals",
            "≥ 0",
            "",
            "the number of images",
            "free",
        ),
        Row(
            ("identifiability/null",),
            "largest of the eight with the other's embeddings in another order",
            "≤ about 0",
            "0 or less",
            "maps that fit noise: too few images for so many dimensions",
            "the same",
        ),
        Row(
            ("identifiability/mcc", "identifiability/mcc_error"),
            "mean correlation, on held-out images, of coordinates matched one to one, and half the width of its "
            "95 % interval",
            "−1 … 1",
            "",
            "axes that mean the same in both; 0 by chance",
            "O(K³)",
            "Hyvärinen & Morioka 2016",
        ),
        Row(
            ("identifiability/cka",),
            "linear CKA without bias",
            "about 0 … 1",
            "",
            "the directions of most variance; 0 by chance",
            "O(N²K)",
            "[Nguyen 2021](https://arxiv.org/abs/2010.15327)",
        ),
    )
    panels = (
        Panel(
            "agreement",
            "What maps explain of the other encoder",
            tuple(f"identifiability/to/{kind}" for kind in MAPS),
        ),
        Panel(
            "agreement",
            "What maps explain of this encoder",
            tuple(f"identifiability/from/{kind}" for kind in MAPS),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Fit the maps.

        Args:
            look: What was gathered.

        Returns:
            ``identifiability/*``; nothing for fewer than 64 images that are finite in both, or where the
            embeddings of one do not vary.
        """
        mine, other = look.probe.embeddings.double(), look[OTHER_EMBEDDINGS].double()
        finite = torch.isfinite(mine).all(1) & torch.isfinite(other).all(1)
        mine, other = mine[finite], other[finite]
        if len(mine) < _FEWEST or not all(bool(z.var(0).sum() > 0) for z in (mine, other)):
            return {}
        scalars: dict[str, float] = {}
        draw = torch.Generator().manual_seed(0)
        strange = other[torch.randperm(len(other), generator=draw).to(other.device)]
        nulls = []
        for kind in MAPS:
            for way, z, y in (("to", mine, other), ("from", other, mine)):
                found = map_agreement(z, y, kind)
                scalars[f"identifiability/{way}/{kind}"] = found.value.item()
                scalars[f"identifiability/{way}_error/{kind}"] = found.error.item()
            nulls += [
                map_agreement(*pair, kind).value for pair in ((mine, strange), (strange, mine))
            ]
        matched = mean_correlation(mine, other)
        return scalars | {
            "identifiability/null": torch.stack(nulls).max().item(),
            "identifiability/mcc": matched.value.item(),
            "identifiability/mcc_error": matched.error.item(),
            "identifiability/cka": unbiased_cka(mine, other).item(),
        }

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say up to which maps the two agree.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence; nothing where there are no numbers.
        """
        if "identifiability/to/smooth" not in scalars:
            return ""
        shares = {kind: scalars[f"identifiability/to/{kind}"] for kind in MAPS}
        errors = {kind: scalars[f"identifiability/to_error/{kind}"] for kind in MAPS}
        best = max(MAPS, key=lambda kind: shares[kind])
        if shares[best] - errors[best] < _NOTHING:
            return (
                "The embeddings tell next to nothing of those of `compare_with` (at most "
                f"{shares[best]:.0%} ± {errors[best]:.0%} of their variance)."
            )
        # The simplest map that the best one does not beat by more than both are uncertain.
        simplest = next(
            kind for kind in MAPS if shares[kind] + errors[kind] >= shares[best] - errors[best]
        )
        return (
            f"Up to {_UP_TO[simplest]} the embeddings tell {shares[simplest]:.0%} ± {errors[simplest]:.0%} of "
            "the variance of those of `compare_with`, and no richer map tells more."
        )
