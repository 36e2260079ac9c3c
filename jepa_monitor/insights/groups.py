"""Groups: does the encoder tell patients, scanners or scenes, and is held-out accuracy owed to that?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_monitor.functional.grouping import group_leak, group_neighbors
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import GROUPS, PROBE_LABELS

__all__ = ["GroupKnowledge"]

_FEWEST = 16  # images of known groups


class GroupKnowledge(Insight):
    """``groups/<name>/*``, where ``groups`` are given."""

    name = "groups"
    wants = (GROUPS, PROBE_LABELS)
    rows = (
        Row(
            ("groups/<name>/neighbor",),
            "with `groups`: share of probe images whose nearest other one, by cosine, is of their own "
            "group: how well one neighbour tells the group",
            "0 … 1",
            "inside of the band that follows",
            "what tells patients or scanners apart",
            "O(N²K)",
            "`group_neighbors`",
        ),
        Row(
            tuple(f"groups/<name>/neighbor_{end}" for end in ("expected", "low", "high")),
            "the same for groups that are shuffled within classes 200 times: mean, and between which it "
            "lies in 95 %",
            "0 … 1",
            "",
            "the sizes of groups; groups of one class each",
            "with the former",
            "`group_neighbors`",
        ),
        Row(
            ("groups/<name>/shared",),
            "share of probe images of a group that the reference has too, as far as it is sampled",
            "0 … 1",
            "0 for what data are split by",
            "a split by images instead of by patients",
            "free",
        ),
        Row(
            ("groups/<name>/knn_across", "groups/<name>/knn_within"),
            "with labels: share of probe images that the other ones of the probe classify correctly, by "
            "k-NN, without their own group; and without as many images of the same classes of other groups",
            "0 … 1",
            "equal",
            "",
            "O(N²K)",
            "`group_leak`",
        ),
        Row(
            tuple(f"groups/<name>/leak{end}" for end in ("", "_low", "_high")),
            "the difference, within minus across, and the ends of its paired 95 % interval: accuracy that "
            "new groups will not have",
            "−1 … 1",
            "0 inside",
            "an encoder that knows patients in place of findings",
            "with the former",
            "`paired_interval`",
        ),
    )
    panels = (
        Panel(
            "groups",
            "nearest neighbours of the own group",
            ("groups/[^/]+/neighbor$",),
        ),
        Panel("groups", "k-NN accuracy owed to the own group", ("groups/[^/]+/leak$",)),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare neighbourhoods with groups.

        Args:
            look: What was gathered.

        Returns:
            ``groups/<name>/*``; nothing for a name with one group, or fewer than 16 images of known ones.
        """
        if GROUPS not in look.parts:
            return {}
        found: dict[str, float] = {}
        sets = look[GROUPS]
        labels = look.parts.get(PROBE_LABELS)
        for name, groups in sets.probe.items():
            numbers = _of_one(look.probe.embeddings, groups, labels)
            reference = sets.reference.get(name)
            if reference is not None and bool((groups >= 0).any()):
                shared = torch.isin(groups[groups >= 0], reference)
                numbers["shared"] = shared.double().mean().item()
            found |= {f"groups/{name}/{key}": value for key, value in numbers.items()}
        return found

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say which groups the encoder tells, and what of the accuracy is owed to that.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence for each name of groups that is told; nothing where none is.
        """
        said = []
        for name in (
            m[1] for tag in scalars if (m := re.fullmatch(r"groups/([^/]+)/neighbor", tag))
        ):
            at = {
                tag.rpartition("/")[2]: scalars[tag]
                for tag in scalars
                if tag.startswith(f"groups/{name}/")
            }
            if at["neighbor"] <= at["neighbor_high"]:
                continue
            words = (
                f"The embedding tells {name}: {at['neighbor']:.0%} of the images have a nearest neighbour of "
                f"their own, where {at['neighbor_low']:.0%} to {at['neighbor_high']:.0%} would be by class alone"
            )
            if at.get("leak_low", 0) > 0:
                words += (
                    f"; k-NN owes {100 * at['leak']:.0f} points of its accuracy to that "
                    f"({100 * at['leak_low']:.0f} to {100 * at['leak_high']:.0f})"
                )
            if at.get("shared", 0) > 0:
                words += f"; {at['shared']:.0%} of the probe are of a {name} that the training images have"
            said.append(f"{words}.")
        return " ".join(said)


def _of_one(embeddings: Tensor, groups: Tensor, labels: Tensor | None) -> dict[str, float]:
    known = (groups >= 0) & torch.isfinite(embeddings).all(1)
    z, own = embeddings[known], groups[known]
    if len(z) < _FEWEST or len(torch.unique(own)) < 2:
        return {}
    classes = None if labels is None else labels[known]
    near = group_neighbors(z, own, classes)
    found = {
        "neighbor": near.share,
        "neighbor_expected": near.expected,
        "neighbor_low": near.lower,
        "neighbor_high": near.upper,
    }
    if classes is not None and len(torch.unique(classes[classes >= 0])) > 1:
        of_class = classes >= 0
        leak = group_leak(z[of_class], own[of_class], classes[of_class])
        found |= {
            "knn_across": leak.across,
            "knn_within": leak.within,
            "leak": leak.leak,
            "leak_low": leak.lower,
            "leak_high": leak.upper,
        }
    return {key: value.item() for key, value in found.items() if math.isfinite(value)}
