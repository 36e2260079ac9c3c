"""A small model of token ids with the interface of transformers', and texts for it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

VOCABULARY, WIDTH, PLACES = 40, 12, 24


class TinyText(nn.Module):
    """Two attention blocks and a last norm; a decoder if ``causal``."""

    def __init__(self, causal: bool = False, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.table, self.places = (
                nn.Embedding(VOCABULARY, width),
                nn.Embedding(PLACES, width),
            )
            self.segments = nn.Embedding(2, width)
            self.blocks = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(2))
            self.norm, self.drop = nn.LayerNorm(width, 1e-12), nn.Dropout(0.1)
        self.causal = causal

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> SimpleNamespace:
        if inputs_embeds is None:
            inputs_embeds = self.table(input_ids)
        count = inputs_embeds.shape[1]
        mask = torch.ones(inputs_embeds.shape[:2]) if attention_mask is None else attention_mask
        seen = mask.bool()[:, None].expand(-1, count, -1)
        if self.causal:
            seen = seen & torch.ones(count, count, dtype=torch.bool).tril()
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(mask, dtype=torch.long)
        x = inputs_embeds + self.places.weight[:count] + self.segments(token_type_ids)
        layers = [x]
        for block in self.blocks:
            q, k, v, gate = block(self.norm(x)).chunk(4, 2)
            weights = (q @ k.mT / math.sqrt(q.shape[2])).masked_fill(~seen, -1e30).softmax(2)
            x = x + self.drop(weights @ v) * torch.nn.functional.gelu(gate)
            layers.append(x)
        last = self.norm(x)
        hidden = (*layers[:-1], last) if output_hidden_states else None
        return SimpleNamespace(last_hidden_state=last, hidden_states=hidden)


def lists(count: int, seed: int = 1, longest: int = 9) -> list[list[int]]:
    """Texts of 1 to ``longest`` tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(1, VOCABULARY, (n,), generator=draw).tolist() for n in lengths]


class TextItems(Dataset):  # type: ignore[type-arg]
    """Items as a tokenizer without padding leaves them; of two classes."""

    def __init__(self, count: int, seed: int) -> None:
        self.texts = lists(count, seed)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.texts[index], "labels": self.texts[index][0] % 2}


def padded(texts: list[list[int]], side: str = "right") -> dict[str, Tensor]:
    """As a tokenizer pads them."""
    most = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), most).long(), torch.zeros(len(texts), most).long()
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(most - len(text), most)
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def jacobian_of_one(model: nn.Module, text: list[int], pool: str, **inputs: Any) -> Tensor:
    """Singular values of the float64 Jacobian of one text alone, by autograd and LAPACK."""
    model = model.double().eval()
    vectors = model.get_input_embeddings()(torch.tensor([text])).detach()  # type: ignore[operator]

    def pooled(point: Tensor) -> Tensor:
        found = model(inputs_embeds=point, attention_mask=torch.ones(1, len(text)).long(), **inputs)
        states = found.last_hidden_state[0]
        return {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pool]

    jacobian = torch.autograd.functional.jacobian(pooled, vectors)
    return torch.linalg.svdvals(jacobian.flatten(1))


def score_of_one(model: nn.Module, text: list[int], pool: str, **inputs: Any) -> float:
    """The sum of the logarithms, clipped at 1e-6; fewer columns than rows are zeros."""
    values = jacobian_of_one(model, text, pool, **inputs)
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator, union-attr]
    missing = width - len(values)
    return float(values.clamp_min(1e-6).log().sum()) + missing * math.log(1e-6)
