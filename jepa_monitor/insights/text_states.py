"""States of the tokens of texts: in go an encoder of texts and texts, out come all states, padding last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.token_encoder import TokenEncoder

__all__ = ["STATE_NUMBERS", "text_states"]

STATE_NUMBERS = 2**24  # of all states: 64 MiB in float32
_BATCH = 32


def text_states(
    embedder: Embedder, texts: Tensor, layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the states of all tokens, for :meth:`~jepa_monitor.insights.gathering.Gatherer.map`.

    Args:
        embedder: Of a :class:`~jepa_monitor.encoders.token_encoder.TokenEncoder`.
        texts: (B, T, 2), on its device.
        layer: Which of the model's ``hidden_states``; ``None`` for the last.

    Returns:
        (B, T, K), 0 for padding, and which tokens are real, (B, T), bool; both on the CPU.
    """

    def find(_: Callable[[Tensor], Any], modules: Sequence[nn.Module], inputs: Tensor) -> Tensor:
        encoder = modules[0]
        assert isinstance(encoder, TokenEncoder)
        found, kept = encoder.states(inputs, layer)
        # Texts of one batch are as long as the longest of it.
        missing = texts.shape[1] - found.shape[1]
        found = found.masked_fill(~kept[..., None], 0.0)
        return torch.nn.functional.pad(found, (0, 0, 0, missing)).cpu()

    def work() -> Tensor:
        with torch.no_grad():
            inputs = (embedder.inputs(part) for part in torch.split(texts, _BATCH))
            return torch.cat([found for some in inputs for found in embedder.inside(some, find)])

    return embedder.run(work, texts.device), texts[..., 1].cpu() > 0
