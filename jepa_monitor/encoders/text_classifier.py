"""A classifier of texts as a function: in go token ids, out come logits, and how its layers weigh tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jepa_monitor.encoders.attention import returned_attention
from jepa_monitor.encoders.modules import unwrap
from jepa_monitor.encoders.texts import text_lengths, trim_texts

__all__ = ["TextClassifier", "lora_factors"]


class TextClassifier(nn.Module):
    """A model that is called with token ids and returns logits, one row a text.

    Args:
        model: Its forward pass takes ``input_ids`` and ``attention_mask`` by name, as models of Hugging Face do,
            or one dict with both, as many a LightningModule's does; it returns logits (B, C): a tensor, the field
            ``logits``, or the first of a tuple.

    Raises:
        TypeError: If ``model`` is no module, or its forward pass takes neither.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = unwrap(model)
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"`classifier` must be a module, got {type(model).__name__}.")
        taken = inspect.signature(self.model.forward).parameters
        anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
        self._named = anything or "input_ids" in taken
        self._segments = anything or "token_type_ids" in taken
        if self._named and not (anything or "attention_mask" in taken):
            raise TypeError(
                "`classifier` must take an `attention_mask` beside `input_ids`, or padding would be text: "
                f"{type(self.model).__name__} does not."
            )
        needed = [
            each
            for each in taken.values()
            if each.default is each.empty
            and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        ]
        if not self._named and (not taken or len(needed) > 1):
            raise TypeError(
                "`classifier` must have a forward pass that takes `input_ids` and `attention_mask`, or one "
                f"batch; that of {type(self.model).__name__} takes {', '.join(taken) or 'nothing'}."
            )
        self._vocabulary = _vocabulary(self.model)
        config = getattr(self.model, "config", None)
        # Without a padding token such models refuse batches, or cannot tell where a text ends.
        self._alone = config is not None and getattr(config, "pad_token_id", 0) is None

    def forward(self, texts: Tensor) -> Tensor:
        """Classify texts.

        Args:
            texts: (B, T, 2), as of :func:`~jepa_monitor.encoders.texts.as_texts`.

        Returns:
            Logits, (B, C).

        Raises:
            TypeError: If the model returns none.
            ValueError: If an id is beyond the vocabulary.
        """
        if self._alone:
            return torch.cat([self._logits(trim_texts(text[None])) for text in texts])
        return self._logits(trim_texts(texts))

    def attention_entropy(self, texts: Tensor) -> Tensor | None:
        """Say how evenly the layers weigh the tokens of texts.

        Args:
            texts: (B, T, 2).

        Returns:
            Entropy of the weights that a token gives to the others, over log of their number, mean over layers,
            heads and tokens, float64, of the texts of two tokens and more, short ones first; ``None`` where there
            is none, or the model's layers do not return weights.
        """
        lengths = text_lengths(texts)
        found = []
        # Texts of one length together, without padding; one token has no choice.
        for length in sorted(set(lengths[lengths > 1].tolist())):
            same = texts[lengths == length]
            for batch in torch.split(same, 1) if self._alone else [same]:
                layers = returned_attention(self.model, partial(self, batch))
                if not layers:
                    return None
                found.append(torch.stack([entropy for entropy, _, _ in layers]).mean(0))
        return torch.cat(found) if found else None

    def _logits(self, texts: Tensor) -> Tensor:
        ids, kinds = texts.unbind(2)
        if self._vocabulary is not None and int(ids.max()) >= self._vocabulary:
            raise ValueError(
                f"`texts` must have ids below {self._vocabulary}, the size of the model's vocabulary, got "
                f"{int(ids.max())}: another tokenizer's?"
            )
        real = kinds > 0
        pad = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        batch = {
            "input_ids": ids.masked_fill(~real, pad if isinstance(pad, int) else 0),
            "attention_mask": real.long(),
        }
        if self._segments and bool((kinds > 1).any()):
            batch["token_type_ids"] = (kinds - 1).clamp_min(0)
        output = self.model(**batch) if self._named else self.model(batch)
        found: Any = output.get("logits") if isinstance(output, Mapping) else output
        found = getattr(found, "logits", found)
        found = found[0] if isinstance(found, tuple | list) and found else found
        if not isinstance(found, Tensor) or not _are_logits(found, len(texts)):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"`classifier` must return logits (B, C) of at least two classes for {len(texts)} texts, "
                f"got {got}. Pass a module that does, or a function of the LightningModule that returns one."
            )
        return found


def _vocabulary(model: nn.Module) -> int | None:
    """Count the ids that a model has embeddings for, where it says which these are."""
    for module in model.modules():
        find: Any = getattr(module, "get_input_embeddings", None)
        weight = getattr(find(), "weight", None) if callable(find) else None
        if isinstance(weight, Tensor) and weight.ndim == 2:
            return len(weight)
    return None


def _are_logits(found: Tensor, count: int) -> bool:
    return (
        found.is_floating_point()
        and found.ndim == 2
        and len(found) == count
        and found.shape[1] >= 2
    )


def lora_factors(modules: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Find the LoRA updates of linear maps in modules, as peft and loralib keep them.

    Args:
        modules: Where to look, with all that they hold.

    Returns:
        Of each update A, (r, inputs), and B, (outputs, r).
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for root in modules:
        for module in root.modules():
            down, up = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
            if isinstance(down, Mapping | nn.ModuleDict) and isinstance(
                up, Mapping | nn.ModuleDict
            ):
                pairs = [(down[name], up[name]) for name in down if name in up]
            else:
                pairs = [(down, up)]
            for one, other in pairs:
                a, b = (getattr(each, "weight", each) for each in (one, other))
                if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim == 2:
                    found.setdefault(id(a), (a.detach(), b.detach()))
    return list(found.values())
