"""Perception: do directions of a text model that tell the next token tell the class?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_monitor.encoders.texts import is_texts, trim_texts
from jepa_monitor.functional.next_token import next_token_perception
from jepa_monitor.insights.base import Insight, Row
from jepa_monitor.insights.gathering import Gatherer
from jepa_monitor.insights.look import Look
from jepa_monitor.insights.parts import Part
from jepa_monitor.insights.text_states import STATE_NUMBERS, text_states

__all__ = ["Perception", "StateSet", "TokenStates"]

_K = 16


@dataclass(frozen=True)
class StateSet:
    """States of the tokens of texts whose class is known.

    Args:
        states: (n, T, K), finite.
        real: Which tokens are no padding, (n, T), bool.
        labels: Classes, (n,), int64.
    """

    states: Tensor
    real: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TokenStates(Part[StateSet]):
    """States of the first labelled probe texts.

    Args:
        samples: How many texts at most; fewer where states are many or wide.
        layer: Which of the model's ``hidden_states``; ``None`` for the last.
    """

    samples: int = 512
    layer: int | None = None

    source = "texts (`input_ids`) with one class each"

    def gather(self, at: Gatherer) -> StateSet | None:
        """Pass the texts through the encoder.

        Args:
            at: The encoder and the probe.

        Returns:
            The states; ``None`` if the data are no texts or have no classes.
        """
        texts, labels = at.sources.images, at.sources.labels
        if not is_texts(texts) or labels is None:
            return None
        known = (labels >= 0).nonzero().flatten()
        texts = trim_texts(texts)
        width = at.probe.embeddings.shape[1]
        known = known[: min(self.samples, max(1, STATE_NUMBERS // (texts.shape[1] * width)))]
        if not len(known):
            return None
        states, real = at.map(lambda part: text_states(at.embedder, part, self.layer), texts[known])
        finite = torch.isfinite(states).flatten(1).all(1)
        return StateSet(states[finite], real[finite], labels[known][finite])


class Perception(Insight):
    """``perception/*``, of the last layer and 16 directions."""

    name = "perception"
    needs = (TokenStates(),)
    rows = (
        Row(
            ("perception/ntps", "perception/chance", "perception/excess"),
            f'with `insights=["perception"]`, texts and classes: overlap of the {_K} directions of the last layer that '
            "tell the next state with those that tell the class; k/d; what is above that, of what can be",
            "0 … 1",
            "above `perception/null`",
            "classes that differ where tokens do",
            "forward, O(nTd² + d³)",
            "[arXiv 2505.17169](https://arxiv.org/abs/2505.17169)",
        ),
        Row(
            ("perception/null", "perception/null_sd"),
            "the same with classes shuffled 20 times, mean and standard deviation: chance is not k/d",
            "0 … 1",
            "",
            "directions in which all texts differ",
            "with the former",
            "[docs/perception.md](perception.md)",
        ),
    )

    def scalars(self, look: Look) -> dict[str, float]:
        """Compare the directions.

        Args:
            look: What was gathered.

        Returns:
            ``perception/*``; what is not determined is absent.

        Raises:
            LookupError: If there is one class, or no text of two tokens.
        """
        found = look[TokenStates()]
        if len(torch.unique(found.labels)) < 2 or not bool((found.real.sum(1) > 1).any()):
            raise LookupError("it needs 2 classes and a text of 2 tokens, which were not given")
        known = next_token_perception(found.states, found.real, found.labels, k=_K)
        values = {
            "ntps": float(known.value),
            "chance": known.chance,
            "excess": float(known.excess),
            "null": float(known.null),
            "null_sd": float(known.null_std),
        }
        return {f"perception/{n}": value for n, value in values.items() if math.isfinite(value)}
