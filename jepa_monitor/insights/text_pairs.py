"""Pairs of texts: is what two views of one thing share theirs, or is it what all texts share?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_monitor.encoders.texts import is_texts, text_lengths, trim_texts
from jepa_monitor.functional import (
    common_share,
    draw_spans,
    map_agreement,
    pair_gap,
    pair_retrieval,
    path_curvature,
    rankme,
    tube_loss,
)
from jepa_monitor.insights.base import Insight, Panel, Row
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.insights.text_states import STATE_NUMBERS, text_states

if TYPE_CHECKING:
    from jepa_monitor.insights.gathering import Gatherer

__all__ = ["PAIRED", "PairSet", "PairedTexts", "TextPairs", "check_text_pairs"]

_FEWEST = 3  # pairs, of which a gap has an error
_FITTED = 64  # pairs, half of which a map is fitted to
_LEAST_TOKENS = 3  # between which there are two steps


@dataclass(frozen=True)
class PairSet:
    """Both views of n things, of which all embeddings are finite, and the paths of their tokens.

    Args:
        first: Embeddings of one view, (n, K).
        second: Of the other, (n, K).
        curvature: Of the states of each text of either view, (m,).
        tube: The loss of one random span of each, (m,).
    """

    first: Tensor
    second: Tensor
    curvature: Tensor
    tube: Tensor


@dataclass(frozen=True)
class PairedTexts(Part[PairSet]):
    """Embeddings of the monitor's ``text_pairs``, pooled as the probe's are, and states of their tokens.

    Args:
        samples: How many pairs at most.
    """

    samples: int = 512

    source = "`text_pairs`"

    def gather(self, at: Gatherer) -> PairSet | None:
        """Pass both views through the encoder.

        Args:
            at: The encoder, and what the monitor has.

        Returns:
            The pairs; ``None`` if none were given.
        """
        if at.sources.text_pairs is None:
            return None
        views = [trim_texts(view[: self.samples]) for view in at.sources.text_pairs]
        first, second = (at.embeddings(view) for view in views)
        finite = torch.isfinite(first).all(1) & torch.isfinite(second).all(1)
        paths = [_paths(at, view, first.shape[1]) for view in views]
        curvature, tube = (torch.cat(each) for each in zip(*paths, strict=True))
        return PairSet(first[finite], second[finite], curvature, tube)


def _paths(at: Gatherer, texts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Measure how straight the states of texts follow one another, of those that are long enough."""
    texts = texts[text_lengths(texts) >= _LEAST_TOKENS]
    texts = texts[: max(1, STATE_NUMBERS // (texts.shape[1] * width))]
    if not len(texts):
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    states, real = at.map(lambda part: text_states(at.embedder, part), texts)
    finite = torch.isfinite(states).flatten(1).all(1)
    states, real = states[finite].double(), real[finite]
    if not len(states):
        return states.new_empty(0), states.new_empty(0)
    spans = draw_spans(real.sum(1), torch.Generator().manual_seed(0))
    curvature = path_curvature(states, real)
    # A path that never moves has no direction.
    moves = torch.isfinite(curvature)
    return curvature[moves], tube_loss(states, spans)[moves]


PAIRED = PairedTexts()


def check_text_pairs(probe: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Check two views of pairs.

    Args:
        probe: What the encoder is watched on.
        first: One view of each pair.
        second: The other.

    Returns:
        Both.

    Raises:
        TypeError: If they, or the probe, are no texts.
        ValueError: If they are not as many, or fewer than 3.
    """
    for name, data in (("probe", probe), ("text_pairs[0]", first), ("text_pairs[1]", second)):
        if not is_texts(data):
            raise TypeError(
                f"`{name}` must be texts (`input_ids`) where there are `text_pairs`, got inputs of shape "
                f"{tuple(data.shape[1:])}."
            )
    if len(first) != len(second) or len(first) < _FEWEST:
        raise ValueError(
            f"`text_pairs` must be as many first as second texts, at least {_FEWEST}, got {len(first)} and "
            f"{len(second)}."
        )
    return first, second


class TextPairs(Insight):
    """``text/*``, with ``text_pairs``."""

    name = "text"
    wants = (PAIRED,)
    rows = (
        Row(
            ("text/aligned", "text/shuffled", "text/pairs"),
            "with `text_pairs`: mean cosine of the embeddings of the two views of a held-out pair (1 minus the loss of "
            "LLM-JEPA on them), the same of views of different pairs, and the number of pairs",
            "−1 … 1",
            "aligned well above shuffled",
            "shuffled, and aligned with it: a direction that all texts share",
            "forward, 2N texts",
            "`pair_gap`, [arXiv 2509.14252](https://arxiv.org/abs/2509.14252)",
        ),
        Row(
            ("text/pair_gap", "text/pair_gap_error"),
            "aligned minus shuffled, and half the width of its 95 % interval",
            "−2 … 2",
            "rising with aligned",
            "what the views of a pair share that others do not; 0 by chance",
            "free",
            "`pair_gap`",
        ),
        Row(
            ("text/retrieval", "text/retrieval_low", "text/retrieval_high"),
            "share of first views of which the nearest second view is their own, and the ends of its 95 % interval",
            "0 … 1",
            "above 1/`text/pairs`, which is chance",
            "the same, by ranks",
            "free",
            "`pair_retrieval`",
        ),
        Row(
            ("text/common_share",),
            "share of the energy of the embeddings of both views that lies in their mean",
            "0 … 1",
            "far below 1",
            "a direction that all texts share: a shortcut of every loss 1 − cos",
            "free",
            "`common_share`",
        ),
        Row(
            (
                "text/rank_first",
                "text/rank_second",
                "text/rank_difference",
                "text/rank_difference_shuffled",
            ),
            "RankMe of the first views, of the second, of their differences, and of differences of shuffled pairs",
            "1 … K",
            "`rank_difference` below the shuffled one where the views are predicted from one another",
            "directions in which the views differ",
            "free",
            "`rankme`",
        ),
        Row(
            ("text/linear_r2", "text/linear_r2_error", "text/linear_r2_null"),
            "share of the variance of second views that a linear map of the first explains on pairs that it has not seen, half "
            "the width of its 95 % interval, and the same of shuffled pairs",
            "≤ 1",
            "above the null",
            "what the views share whether their cosine says so or not: means are taken off",
            "O(N³)",
            "`map_agreement`",
        ),
        Row(
            ("text/curvature", "text/stp"),
            "how much the last layer's states turn from token to token in either view, and over random spans (the loss of "
            "STP); of texts of 3 tokens or more",
            "0 … 2",
            "",
            "0 straight on, 1 a random walk, 1.5 states that know nothing of one another, 2 back and forth",
            "forward, 2N texts",
            "`path_curvature`, `tube_loss`, [arXiv 2602.22617](https://arxiv.org/abs/2602.22617)",
        ),
    )
    panels = (
        Panel(
            "pairs",
            "cosine of pairs, and of shuffled pairs",
            ("text/(aligned|shuffled|common_share)$",),
        ),
        Panel(
            "pairs",
            "pairs that find each other",
            ("text/retrieval", "text/retrieval_low", "text/retrieval_high"),
            band=True,
        ),
        Panel("pairs", "gap between pairs and shuffled pairs", ("text/pair_gap$",)),
        Panel("pairs", "RankMe of the views and of their differences", ("text/rank_",)),
        Panel("pairs", "paths of token states (1: random walk)", ("text/(curvature|stp)$",)),
        Panel(
            "pairs",
            "what a linear map explains",
            ("text/linear_r2$", "text/linear_r2_null$"),
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare pairs with shuffled pairs.

        Args:
            look: What was gathered.

        Returns:
            ``text/*``; nothing without pairs, or where fewer than 3 are finite.
        """
        if PAIRED not in look.parts:
            return {}
        found = look[PAIRED]
        first, second = found.first.double(), found.second.double()
        if len(first) < _FEWEST:
            return {}
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(len(second), generator=draw)
        strange = torch.empty_like(second)
        strange[order] = second[order.roll(1)]  # nobody keeps their own
        gap, retrieval = pair_gap(first, second), pair_retrieval(first, second)
        values = {
            "aligned": gap.aligned,
            "shuffled": gap.shuffled,
            "pair_gap": gap.gap,
            "pair_gap_error": gap.error,
            "retrieval": retrieval.share,
            "retrieval_low": retrieval.low,
            "retrieval_high": retrieval.high,
            "common_share": common_share(torch.cat([first, second])),
            "rank_first": rankme(first),
            "rank_second": rankme(second),
            "rank_difference": rankme(first - second),
            "rank_difference_shuffled": rankme(first - strange),
        }
        if len(first) >= _FITTED and bool(second.var(0).sum() > 0):
            known = map_agreement(first, second, "linear")
            values["linear_r2"], values["linear_r2_error"] = known
            values["linear_r2_null"] = map_agreement(first, strange, "linear").value
        if len(found.curvature):
            values["curvature"], values["stp"] = found.curvature.mean(), found.tube.mean()
        scalars = {f"text/{name}": float(value) for name, value in values.items()}
        scalars["text/pairs"] = float(len(first))
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}

    def says(self, scalars: Mapping[str, float]) -> str:
        """Say whether pairs are nearer than shuffled ones.

        Args:
            scalars: Those of a look, by tag.

        Returns:
            A sentence; nothing where there are no pairs.
        """
        names = ("aligned", "pair_gap", "pair_gap_error", "retrieval", "pairs")
        if any(f"text/{name}" not in scalars for name in names):
            return ""
        aligned, gap, error, found, pairs = (scalars[f"text/{name}"] for name in names)
        told = (
            f"The two texts of a pair have a cosine of {aligned:.2f}, {gap:+.3f} ± {error:.3f} above those of "
            "shuffled pairs"
        )
        return f"{told}; {found:.0%} find each other among {pairs:.0f}."
