"""Decoders of a recipe: a small one for words, or one of transformers'; how either reads pairs and writes expressions."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from jepa_monitor._extras import explained
from jepa_monitor.recipes.expressions import Pair, vocabulary

BEGIN, BETWEEN, END, PREDICT = "<begin>", "<between>", "<end>", "<predict>"
PREDICTORS = 4  # at most
_TOGETHER = 128  # prompts


class Codec(ABC):
    """Pairs as ids of tokens, and ids as expressions.

    Attributes:
        size: How many ids there are.
        end: The id that ends an expression.
        predictors: Ids of the tokens that make a predictor of the decoder.
    """

    size: int
    end: int
    predictors: list[int]

    @abstractmethod
    def description(self, pair: Pair) -> list[int]:
        """Write what an expression is asked for with.

        Args:
            pair: A pair.

        Returns:
            Ids, without predictors.
        """

    @abstractmethod
    def expression(self, pair: Pair) -> list[int]:
        """Write what is to be answered.

        Args:
            pair: A pair.

        Returns:
            Ids, the last of which ends it.
        """

    @abstractmethod
    def pattern(self, ids: Sequence[int]) -> str:
        """Read an answer.

        Args:
            ids: What was generated, up to the end or not.

        Returns:
            The expression without blanks.
        """

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """Cut off the end and what is behind it.

        Args:
            ids: What was generated.

        Returns:
            The rest.
        """
        kept = list(ids)
        return kept[: kept.index(self.end)] if self.end in kept else kept


class WordCodec(Codec):
    """One id for each word and each token of the grammar; no text has padding, nor is there a token for it."""

    def __init__(self) -> None:
        predictors = [f"{PREDICT}{number}" for number in range(PREDICTORS)]
        self.words = [BEGIN, BETWEEN, END, *predictors, *vocabulary()]
        self._ids = {word: number for number, word in enumerate(self.words)}
        self.size = len(self.words)
        self.end = self._ids[END]
        self.predictors = [self._ids[word] for word in predictors]

    def description(self, pair: Pair) -> list[int]:
        """Write what an expression is asked for with.

        Args:
            pair: A pair.

        Returns:
            Ids, without predictors.
        """
        return self._written(f"{BEGIN} {pair.description} {BETWEEN}")

    def expression(self, pair: Pair) -> list[int]:
        """Write what is to be answered.

        Args:
            pair: A pair.

        Returns:
            Ids, the last of which ends it.
        """
        return self._written(f"{pair.expression} {END}")

    def pattern(self, ids: Sequence[int]) -> str:
        """Read an answer.

        Args:
            ids: What was generated, up to the end or not.

        Returns:
            The expression without blanks.
        """
        return "".join(self.words[number] for number in self.until_end(ids))

    def _written(self, text: str) -> list[int]:
        return [self._ids[word] for word in text.split()]


class HubCodec(Codec):
    """The tokenizer of a decoder of transformers, with tokens for predictors of its own.

    Args:
        name: Of the decoder.

    Raises:
        ValueError: If the tokenizer has no token that ends a text.
    """

    def __init__(self, name: str) -> None:
        self.tokenizer = _transformers(name).AutoTokenizer.from_pretrained(name)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"decoder='hf/{name}' has a tokenizer without an end-of-text token.")
        added = [f"<|predictor_{number}|>" for number in range(1, PREDICTORS + 1)]
        self.tokenizer.add_tokens(added, special_tokens=True)
        self.size = len(self.tokenizer)
        self.end = int(self.tokenizer.eos_token_id)
        self.predictors = self.tokenizer.convert_tokens_to_ids(added)

    def description(self, pair: Pair) -> list[int]:
        """Write what an expression is asked for with.

        Args:
            pair: A pair.

        Returns:
            Ids, without predictors.
        """
        text = f"Convert natural language to regular expression: {pair.description}\n"
        ids: list[int] = self.tokenizer(text)["input_ids"]
        # Some tokenizers end every text.
        return ids[:-1] if ids[-1] == self.end else ids

    def expression(self, pair: Pair) -> list[int]:
        """Write what is to be answered.

        Args:
            pair: A pair.

        Returns:
            Ids, the last of which ends it.
        """
        ids = self.tokenizer(pair.pattern, add_special_tokens=False)["input_ids"]
        return [*ids, self.end]

    def pattern(self, ids: Sequence[int]) -> str:
        """Read an answer.

        Args:
            ids: What was generated, up to the end or not.

        Returns:
            The expression without blanks.
        """
        text: str = self.tokenizer.decode(self.until_end(ids), skip_special_tokens=True)
        return text.replace(" ", "")


class Block(nn.Module):
    """Causal attention and a perceptron, each after a norm and beside what came in.

    Args:
        width: Numbers of a state.
        heads: Of the attention; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pass states on.

        Args:
            x: (B, T, width).
            past: Keys and values of what came before, (2, B, heads, T', width/heads); then T is 1.

        Returns:
            The same shape as ``x``, and keys and values with those of ``x``.
        """
        parts = self.qkv(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, known = parts[0], parts[1:]
        if past is not None:
            known = torch.cat([past, known], 3)
        seen = F.scaled_dot_product_attention(query, known[0], known[1], is_causal=past is None)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x)), known


class WordDecoder(nn.Module):
    """A small decoder of words, with the interface of transformers' and tied output weights.

    Padding behind a text changes nothing before it, since attention is causal.

    Args:
        size: How many words there are.
        width: Numbers of a state.
        depth: Blocks.
        heads: Of the attention.
        context: Words of a text at most.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.
    """

    def __init__(self, size: int, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}.")
        self.context = context
        self.table = nn.Embedding(size, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        self.head.weight = self.table.weight

    def get_input_embeddings(self) -> nn.Module:
        """Give the table of words.

        Returns:
            It.
        """
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        """Give what makes logits of states.

        Returns:
            It.
        """
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Compute the states of texts.

        Args:
            input_ids: (B, T), or None where there are embeddings.
            attention_mask: Not needed: padding is behind the text.
            inputs_embeds: Embeddings of words, (B, T, width).

        Returns:
            (B, T, width).
        """
        if inputs_embeds is None:
            inputs_embeds = self.table(input_ids)
        states, _ = self._passed(inputs_embeds, [None] * len(self.blocks))
        return states

    @torch.no_grad()
    def generate(self, input_ids: Tensor, most: int, end: int) -> Tensor:
        """Go on with texts of one length, each time with the likeliest word.

        Args:
            input_ids: (B, T).
            most: Words to add at most.
            end: The word after which nothing counts.

        Returns:
            What was added, (B, n).
        """
        most = min(most, self.context - input_ids.shape[1])
        past: list[Tensor | None] = [None] * len(self.blocks)
        added, ended, ids = [], torch.zeros(len(input_ids), dtype=torch.bool), input_ids
        for _ in range(most):
            states, past = self._passed(self.table(ids), past)
            ids = self.head(states[:, -1:]).argmax(2)
            added.append(ids)
            ended |= (ids[:, 0] == end).cpu()
            if bool(ended.all()):
                break
        return torch.cat(added, 1)

    def _passed(
        self, x: Tensor, past: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        start = 0 if past[0] is None else past[0].shape[3]
        count = start + x.shape[1]
        if count > self.context:
            raise ValueError(f"context={self.context} is less than a text has words, {count}.")
        x = x + self.pos_embed[start:count]
        kept: list[Tensor | None] = []
        for block, known in zip(self.blocks, past, strict=True):
            x, known = block(x, known)
            kept.append(known)
        return self.norm(x), kept


def load_decoder(name: str, size: int) -> Any:
    """Load a decoder of transformers, with room for the tokens that its codec has added.

    Args:
        name: Of the decoder, or its folder.
        size: How many ids its codec has.

    Returns:
        The decoder, with its head.
    """
    found = _transformers(name).AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    if size > found.get_input_embeddings().weight.shape[0]:
        found.resize_token_embeddings(size)
    return found


def answers(decoder: Any, prompts: Sequence[Sequence[int]], most: int, end: int) -> list[list[int]]:
    """Answer prompts greedily. Prompts of one length go together, so that none is padded.

    Args:
        decoder: A :class:`WordDecoder`, or one of transformers.
        prompts: Ids.
        most: Tokens of an answer at most.
        end: The token that ends one.

    Returns:
        The answers, in the order of the prompts.
    """
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(row)
    parts = [
        rows[start : start + _TOGETHER]
        for _, rows in sorted(groups.items())
        for start in range(0, len(rows), _TOGETHER)
    ]
    found: list[list[int]] = [[] for _ in prompts]
    device = decoder.get_input_embeddings().weight.device
    for rows in tqdm(parts, desc="answers", leave=False, disable=None):
        ids = torch.tensor([prompts[row] for row in rows], device=device)
        if isinstance(decoder, WordDecoder):
            added = decoder.generate(ids, most, end)
        else:
            whole = decoder.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most,
                do_sample=False, eos_token_id=end, pad_token_id=end,
            )  # fmt: skip
            added = whole[:, ids.shape[1] :]
        for row, answer in zip(rows, added.tolist(), strict=True):
            found[row] = answer
    return found


def _transformers(name: str) -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise explained(f"decoder='hf/{name}'", "text", error) from error
