"""Classifiers of texts by whatever signature, their attention and their LoRA updates, against numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from text_models import TinyClassifier, lists, padded
from torch import Tensor, nn

from jepa_monitor.encoders.text_classifier import TextClassifier, lora_factors
from jepa_monitor.encoders.texts import as_texts


class Dicts(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.model(batch["input_ids"], batch["attention_mask"]).logits}


class Tuples(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(inputs["input_ids"], inputs["attention_mask"]).logits, inputs["input_ids"]


@pytest.mark.parametrize("wrap", [lambda m: m, Dicts, Tuples])
def test_padding_and_signature_change_nothing(wrap: Any) -> None:
    model, texts = TinyClassifier().eval(), lists(12)
    found = TextClassifier(wrap(model))(as_texts(padded(texts, "left")))
    for row, text in zip(found, texts, strict=True):
        alone = model(torch.tensor([text]), torch.ones(1, len(text)).long()).logits[0]
        torch.testing.assert_close(row, alone)


class NoPadding(TinyClassifier):
    """As GPT-2's classifier: without a padding token it takes one text at a time."""

    config = SimpleNamespace(pad_token_id=None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        assert len(input_ids) == 1
        return super().forward(input_ids, attention_mask)


def test_a_model_without_a_padding_token_takes_texts_one_by_one() -> None:
    texts = as_texts(padded(lists(6)))
    one, other = (kind().eval() for kind in (NoPadding, TinyClassifier))
    torch.testing.assert_close(TextClassifier(one)(texts), TextClassifier(other)(texts))


def test_attention_entropy_is_that_of_the_softmax_of_each_text() -> None:
    model, texts = TinyClassifier().eval(), [text for text in lists(9) if len(text) > 1]
    texts.sort(key=len)
    with torch.no_grad():
        model.attention.mix.weight.mul_(8)
    found = TextClassifier(model).attention_entropy(as_texts(padded(texts)))
    assert found is not None
    table = model.table.weight.detach().double().numpy()
    weight, bias = (getattr(model.attention.mix, n).detach().double().numpy() for n in ("weight", "bias"))  # fmt: skip
    for value, text in zip(found, texts, strict=True):
        q, k = np.split(table[text] @ weight.T + bias, 2, axis=1)
        heads = []
        for part in (slice(0, 6), slice(6, 12)):
            scores = q[:, part] @ k[:, part].T / np.sqrt(6)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            heads.append(-(p * np.log(p)).sum(1).mean() / np.log(len(text)))
        assert float(value) == pytest.approx(np.mean(heads), abs=1e-6)
    assert found.std() > 1e-3
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_returns_no_weights_has_no_entropy() -> None:
    class Plain(TinyClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(12, 12)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(self.attention(self.table(input_ids)).mean(1))

    assert TextClassifier(Plain()).attention_entropy(as_texts(padded(lists(4)))) is None
    model = TextClassifier(TinyClassifier())
    assert model.attention_entropy(as_texts({"input_ids": [[3], [4]]})) is None  # one token each


def test_lora_factors_are_found_as_peft_and_as_loralib_keep_them() -> None:
    model = TinyClassifier()
    layer = nn.Linear(4, 5)
    layer.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
    layer.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})
    found = lora_factors([nn.ModuleList([model, layer]), model])
    assert [(tuple(a.shape), tuple(b.shape)) for a, b in found] == [
        ((3, 12), (12, 3)),
        ((2, 4), (5, 2)),
    ]
    assert torch.equal(found[1][0], layer.lora_A["default"].weight)
    assert not found[0][0].requires_grad


class Takes(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return ids


class NoMask(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids


class OneLogit(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.zeros(len(input_ids), 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "`classifier` must be a module, got int"),
        (Takes(), "that of Takes takes ids, mask"),
        (NoMask(), "must take an `attention_mask`.*NoMask does not"),
        (OneLogit(), r"logits \(B, C\) of at least two classes for 2 texts, got \(2, 1\)"),
    ],
)
def test_what_is_no_classifier_is_told(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TextClassifier(model)(as_texts(padded(lists(2))))
