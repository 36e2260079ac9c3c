"""Quality: what a task of images and classes would get out of the embeddings, where there are labels."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jepa_monitor.insights._statistics import with_ends
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.labelled import ANSWERS, LABELLED, SHOTS, accuracies
from jepa_monitor.insights.look import Look

__all__ = ["Quality"]


class Quality(Insight):
    """``quality/*``, where the data yield labels."""

    name = "quality"
    wants = (LABELLED, ANSWERS)
    rows = (
        Row(
            with_ends("quality", "knn"),
            "with `labels`: share of held-out images that the weighted vote of the 20 nearest known images "
            "(half of the probe, or the images of a labelled `reference` that was given) classifies "
            "correctly, and the ends of its 95 % interval for these known images",
            "0 … 1",
            "above `quality/knn_pixels`, rising",
            "what embeddings have near to each other",
            "free",
            "`knn_predict`",
        ),
        Row(
            with_ends("quality", "linear"),
            "the same of a linear map: ridge regression, its penalty chosen without the held-out images",
            "0 … 1",
            "rising",
            "what can be read off the embeddings at all",
            "O(min(M, K)²·max(M, K))",
            "`ridge_predict`",
        ),
        *(
            Row(
                with_ends("quality", f"few_shot_{shots}"),
                f"the same of the vote of {shots} known image{'s' * (shots > 1)} of each class, mean "
                "over 10 draws; the interval counts draws and images",
                "0 … 1",
                "rising",
                "how compact classes are",
                "free",
                "`few_shot_accuracy`",
            )
            for shots in SHOTS
        ),
        Row(
            ("quality/chance", "quality/knn_pixels"),
            "share of the most frequent class, which is what constant embeddings get; and the k-NN of "
            "the raw pixels (averaged to at most 32 a side), measured once",
            "0 … 1",
            "below the others",
            "the data, not the encoder",
            "free",
        ),
    )
    panels = (
        Panel(
            "quality",
            "held-out images classified correctly",
            ("quality/(knn|linear|knn_pixels|chance)$",),
            healthy=("quality/chance", None),
        ),
        Panel("quality", "from 1, 5 and 10 images a class", ("quality/few_shot_[0-9]+$",)),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Classify held-out images by their embeddings.

        Args:
            look: What was gathered.

        Returns:
            ``quality/*``; nothing without labels. ``few_shot_n`` is absent where a class has fewer
            than n images to draw from.
        """
        if LABELLED not in look.parts:
            return {}
        sets = look[LABELLED]
        known, asked = (sets.known, sets.known_labels), (sets.asked, sets.asked_labels)
        scalars = accuracies("quality", known, asked, look[ANSWERS])
        most = sets.known_labels.mode().values
        scalars["quality/chance"] = (sets.asked_labels == most).double().mean().item()
        if math.isfinite(sets.pixels):
            scalars["quality/knn_pixels"] = sets.pixels
        return scalars

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether the embeddings are better than what they are made of.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence, or nothing.
        """
        low, high, pixels = (
            scalars.get(f"quality/{end}") for end in ("knn_low", "knn_high", "knn_pixels")
        )
        if low is None or high is None or pixels is None or low <= pixels <= high:
            return ""
        kind = "better" if low > pixels else "worse"
        return f"Neighbours tell the classes of held-out images {kind} than those of raw pixels."
