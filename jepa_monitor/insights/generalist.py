"""Generalist: is this run worth more yet than an encoder that somebody else has trained?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_monitor.functional import (
    auroc,
    auroc_gain,
    knn_score,
    paired_interval,
    rankme,
)
from jepa_monitor.insights._statistics import with_ends
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.labelled import ANSWERS, LABELLED, SHOTS, accuracies, classify
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import OTHER_SETS

__all__ = ["AgainstGeneralist"]

_NEIGHBOURS = 10
_WORDS = {"knn": "k-NN", "linear": "linear"}


class AgainstGeneralist(Insight):
    """``generalist/*``, with another encoder: what it makes of the same images."""

    name = "generalist"
    needs = (OTHER_SETS,)
    wants = (LABELLED, ANSWERS)
    rows = (
        Row(
            with_ends("generalist", "knn", "linear", *(f"few_shot_{shots}" for shots in SHOTS)),
            'with `insights=["generalist"]`, `compare_with` and labels: as `quality/*`, of the other '
            "encoder, by the same images",
            "0 … 1",
            "",
            "the data and the other encoder; constant if that is frozen",
            "forward, once",
            "`knn_predict`, `ridge_predict`",
        ),
        Row(
            with_ends("generalist", "knn_gain", "linear_gain"),
            "accuracy of this run's encoder minus the other's, of the same images, and the ends of the "
            "paired 95 % interval",
            "−1 … 1",
            "lower end above 0",
            "what training on one's own data is worth",
            "free",
            "`paired_interval`",
        ),
        Row(
            ("generalist/rankme",),
            "RankMe of the other's embeddings of the probe; this run's is `collapse/rankme`",
            "1 … min(N, L)",
            "",
            "the width of the other encoder",
            "free",
            "[arXiv 2210.02885](https://arxiv.org/abs/2210.02885)",
        ),
        Row(
            ("generalist/<name>/auroc", *with_ends("generalist/<name>", "auroc_gain")),
            "with `ood` and a reference: how well the distance to the 10th nearest training image, of unit "
            "embeddings, tells the set from the probe by the other encoder; what this run's has over it, and "
            "the ends of the paired 95 % interval",
            "0 … 1; −1 … 1",
            "",
            "",
            "O(N·M·K)",
            "`auroc_gain`",
        ),
    )
    panels = (
        Panel(
            "generalist",
            "accuracy above the other encoder's, k-NN",
            with_ends("generalist", "knn_gain"),
            band=True,
            healthy=(0.0, None),
        ),
        Panel(
            "generalist",
            "accuracy above the other encoder's, linear",
            with_ends("generalist", "linear_gain"),
            band=True,
            healthy=(0.0, None),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Ask both encoders the same.

        Args:
            look: What was gathered.

        Returns:
            ``generalist/*``; accuracies with labels alone, AUROC with a reference and ``ood`` alone, and
            nothing where an embedding of the other is not finite.
        """
        other = look[OTHER_SETS]
        if not all(bool(torch.isfinite(z).all()) for z in (other.probe, *other.ood.values())):
            return {}
        found = {"generalist/rankme": rankme(other.probe).item()}
        if LABELLED in look.parts:
            found |= _accuracies(look)
        if look.reference is not None and other.reference is not None:
            mine = look.reference.embeddings
            base = other.reference[-len(mine) :]
            for name, data in look.ood.items():
                if bool(torch.isfinite(base).all()):
                    found |= _told_apart(name, look, mine, base, data.embeddings)
        return found

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether the run is ahead.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence; nothing where there are no classes.
        """
        parts = [
            f"{words} {_standing(*(100 * scalars[tag] for tag in with_ends('generalist', f'{key}_gain')))}"
            for key, words in _WORDS.items()
            if f"generalist/{key}_gain" in scalars
        ]
        return f"Against the encoder to compare with: {', '.join(parts)}." if parts else ""


def _standing(gain: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return f"level ({low:+.1f} to {high:+.1f} points)"
    word = "ahead" if low > 0 else "behind"
    ends = (low, high) if low > 0 else (-high, -low)
    return f"{word} by {abs(gain):.1f} points ({ends[0]:.1f} to {ends[1]:.1f})"


def _accuracies(look: Look) -> dict[str, float]:
    """Classify by the other encoder as ``quality/*`` does by this one."""
    sets, other = look[LABELLED], look[OTHER_SETS]
    bank = other.probe if sets.halves else other.reference
    assert bank is not None
    if not bool(torch.isfinite(bank[sets.known_rows]).all()):
        return {}
    known = bank[sets.known_rows], sets.known_labels
    asked = other.probe[sets.asked_rows], sets.asked_labels
    mine, its = look[ANSWERS], classify(known, asked)
    found = accuracies("generalist", known, asked, its)
    for key, own, others in zip(mine._fields, mine, its, strict=True):
        gain, ends = paired_interval(own, others)
        tags = with_ends("generalist", f"{key}_gain")
        found |= {t: value.item() for t, value in zip(tags, (gain, *ends), strict=True)}
    return found


def _told_apart(
    name: str, look: Look, mine: Tensor, base: Tensor, outside: Tensor
) -> dict[str, float]:
    """Compare how well both tell a set from the probe by their neighbours."""
    other = look[OTHER_SETS]
    k = min(_NEIGHBOURS, len(mine), len(base))
    pairs = ((look.probe.embeddings, other.probe), (outside, other.ood[name]))
    own, its = [], []
    for z, theirs in pairs:
        finite = torch.isfinite(z).all(1)
        if int(finite.sum()) < 2:
            return {}
        own.append(knn_score(z[finite], mine, k))
        its.append(knn_score(theirs[finite], base, k))
    gain = auroc_gain(*own, *its)
    tags = with_ends(f"generalist/{name}", "auroc_gain")
    found = {tag: value.item() for tag, value in zip(tags, gain, strict=True)}
    return {f"generalist/{name}/auroc": auroc(*its).item(), **found}
