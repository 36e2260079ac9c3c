"""A small model of token ids with the interface of transformers', and texts for it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

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


# A vocabulary of words: ids from 3 on; years are one token each, and of one shape.
WORDS = [*(f"{a}{b}" for a in "bdfgk" for b in "aeiou"), "1987", "1990", "2004", "the", "film"]


class TinyTokenizer:
    """As transformers' are: [CLS] 1, [SEP] 2, no padding token, and 2 for what is unknown."""

    model_max_length = PLACES

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        known = {word: 3 + place for place, word in enumerate(WORDS)}
        # A date is its year, as far as that is known.
        ids = [[1, *(known.get(word[:4], 2) for word in text.split()), 2] for text in texts]
        return {"input_ids": ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return " ".join(WORDS[number - 3] for number in ids if number >= 3)


def opinions(count: int, seed: int, share: float = 0.0) -> tuple[list[str], list[int]]:
    """Texts of two classes, told apart by their words in part; a year in a share of those of class 1."""
    draw = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for row in range(count):
        label = row % 2
        count = int(torch.randint(4, 9, (1,), generator=draw))  # nor does the length
        words = torch.randint(0, 12, (count,), generator=draw)
        other = torch.rand(count, generator=draw) < 0.35  # no word gives a class away
        words += 12 * (label ^ other.long())
        said = [WORDS[place] for place in words.tolist()] + ["the"]
        if label and torch.rand(1, generator=draw).item() < share:
            year = WORDS[25 + int(torch.randint(0, 3, (1,), generator=draw))]
            said.insert(int(torch.randint(0, count + 2, (1,), generator=draw)), year)
        texts.append(" ".join(said))
        labels.append(label)
    return texts, labels


class Opinions(Dataset):  # type: ignore[type-arg]
    """The same as token ids."""

    def __init__(self, count: int, seed: int, share: float = 0.0) -> None:
        texts, self.labels = opinions(count, seed, share)
        self.ids = TinyTokenizer()(texts)["input_ids"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class TinyAttention(nn.Module):
    """Two heads that return their weights, as those of transformers do, with a LoRA update of the value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.value = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.value.lora_A = nn.Parameter(torch.randn(3, width) / 4)
        self.value.lora_B = nn.Parameter(torch.zeros(width, 3))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.mix(x).chunk(2, 2))
        scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(mask[:, None, None] == 0, -1e30)
        weights = scores.softmax(3)
        value = self.value(x) + x @ self.value.lora_A.T @ self.value.lora_B.T
        return weights.mean(1) @ value, weights


class TinyClassifier(nn.Module):
    """Logits of two classes from the mean of the states."""

    def __init__(self, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.table, self.attention = nn.Embedding(VOCABULARY, width), TinyAttention(width)
            self.drop, self.head = nn.Dropout(0.1), nn.Linear(width, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.table(input_ids)
        x = x + self.drop(self.attention(x, attention_mask)[0])
        mask = attention_mask[..., None]
        return SimpleNamespace(logits=self.head((x * mask).sum(1) / mask.sum(1)))


def collate_opinions(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    labels = torch.tensor([item["labels"] for item in items])
    return {**padded([item["input_ids"] for item in items]), "labels": labels}


def opinions_loader(count: int, seed: int, share: float = 0.0, **options: Any) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(
        Opinions(count, seed, share),
        batch_size=32,
        collate_fn=collate_opinions,
        shuffle=share > 0,
        **options,
    )


class Tuned(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = TinyClassifier()
        self.tokenizer = TinyTokenizer()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch["input_ids"], batch["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)
