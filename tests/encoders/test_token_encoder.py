"""Models of token ids are scored at the embeddings of their tokens, and padding changes nothing."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from text_models import VOCABULARY, WIDTH, TinyText, jacobian_of_one, lists, padded, score_of_one
from torch import Tensor, nn

from jepa_monitor import (
    ScoreOptions,
    audit_precision,
    jacobian_spectrum,
    jepa_score,
    leverage_map,
    log_density,
)
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.encoders.embedder import Embedder
from jepa_monitor.encoders.texts import as_texts, is_texts, join_texts
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian import estimate_scores

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [7], [8, 9, 7, 9, 3]]


@pytest.mark.parametrize("pool", ["mean", "last", "first"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_text_has_the_score_of_the_unpadded_one(
    pool: str, causal: bool, side: str
) -> None:
    model = TinyText(causal)
    truth = [score_of_one(copy.deepcopy(model), text, pool) for text in TEXTS]
    encoder = TokenEncoder(model, pool)
    together = jepa_score(encoder, padded(TEXTS, side), method="exact")
    alone = torch.cat([jepa_score(encoder, {"input_ids": [t]}, method="exact") for t in TEXTS])
    expected = torch.tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_sketch_is_padding_safe_too_and_is_what_texts_get_by_default() -> None:
    encoder = TokenEncoder(TinyText(width=40))
    with pytest.warns(UserWarning, match="not whitened"):
        together = jepa_score(encoder, padded(TEXTS))
    with pytest.warns(UserWarning, match="not whitened"):
        named = jepa_score(encoder, padded(TEXTS, "left"), method="sketch", rows=16)
    alone = [jepa_score(encoder, {"input_ids": [t]}, method="sketch") for t in TEXTS]
    torch.testing.assert_close(together, named, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_sketched_rows_are_those_of_the_unpadded_jacobian() -> None:
    model = TinyText()
    found = jacobian_spectrum(TokenEncoder(model), padded(TEXTS), method="exact")
    assert found.shape == (4, WIDTH)
    for row, text in enumerate(TEXTS):
        expected = jacobian_of_one(copy.deepcopy(model), text, "mean")
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


def test_few_rows_at_a_time_change_nothing() -> None:
    encoder, texts = TokenEncoder(TinyText()), padded(TEXTS)
    whole = jepa_score(encoder, texts, method="exact")
    for memory in (1, 20_000):
        small = jepa_score(encoder, texts, method="exact", max_memory=memory)
        torch.testing.assert_close(small, whole, rtol=0, atol=1e-3)


def test_the_full_density_and_estimates_take_texts() -> None:
    encoder, reference = TokenEncoder(TinyText()), [padded(lists(60, 3)), padded(lists(60, 4))]
    found = log_density(encoder, padded(TEXTS), reference, method="exact")
    encoder.eval()
    drawn = torch.cat([encoder(encoder.tokens(batch)) for batch in reference]).detach()
    z, law = encoder(encoder.tokens(padded(TEXTS))).detach(), Gaussian.fit(drawn)
    torch.testing.assert_close(found.log_prior, law.log_prob(z.double()), rtol=1e-4, atol=1e-3)
    exact = jepa_score(encoder, padded(TEXTS), method="exact")
    torch.testing.assert_close(found.jepa_score, exact, rtol=0, atol=1e-9)
    wide = TokenEncoder(TinyText(width=64))
    texts = padded(lists(16))
    estimated = estimate_scores(wide, texts, reference=reference)
    truth = jepa_score(wide, texts, method="exact")
    assert estimated.method.startswith("lanczos")
    assert torch.corrcoef(torch.stack([estimated.scores, truth]))[0, 1] > 0.9
    assert audit_precision(encoder, padded(TEXTS)).spearman > 0.9


def test_gradients_reach_the_table_of_embeddings() -> None:
    model = TinyText()
    score = jepa_score(
        TokenEncoder(model), padded(TEXTS[:2]), differentiable=True, method="exact",
        precision="float64",
    )  # fmt: skip
    score.sum().backward()  # type: ignore[no-untyped-call]
    moved = TinyText().double()
    row, column, step = TEXTS[0][0], 3, 1e-5
    sides = []
    for sign in (1, -1):
        moved.load_state_dict(model.double().state_dict())
        with torch.no_grad():
            moved.table.weight[row, column] += sign * step
        sides.append(sum(score_of_one(moved, text, "mean") for text in TEXTS[:2]))
    assert model.table.weight.grad is not None
    expected = (sides[0] - sides[1]) / (2 * step)
    assert float(model.table.weight.grad[row, column]) == pytest.approx(expected, rel=1e-3)


def test_token_types_count() -> None:
    model = TinyText()
    batch = {**padded([TEXTS[0]]), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])}
    found = jepa_score(TokenEncoder(model), batch, method="exact")
    expected = score_of_one(
        copy.deepcopy(model), TEXTS[0], "mean", token_type_ids=batch["token_type_ids"]
    )
    plain = jepa_score(TokenEncoder(model), padded([TEXTS[0]]), method="exact")
    assert float(found) == pytest.approx(expected, abs=1e-5)
    assert abs(float(found - plain)) > 1e-3


def test_a_pool_of_ones_own_sees_which_tokens_are_real() -> None:
    def longest(states: Tensor, real: Tensor) -> Tensor:
        return states.masked_fill(~real[..., None], -torch.inf).amax(1)

    encoder = TokenEncoder(TinyText(), longest)
    together = jepa_score(encoder, padded(TEXTS), method="exact")
    alone = [jepa_score(encoder, {"input_ids": [text]}, method="exact") for text in TEXTS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="does not heed `attention_mask`"):
        jepa_score(TokenEncoder(TinyText(), lambda states, _: states.mean(1)), padded(TEXTS))
    with pytest.raises(ValueError, match=r"`pool` must return a \(B, K\) tensor for 4 texts"):
        TokenEncoder(TinyText(), lambda states, _: states)(as_texts(padded(TEXTS)))


def test_the_model_is_left_as_it_was() -> None:
    model = TinyText().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    jepa_score(TokenEncoder(model), padded(TEXTS), method="exact")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_is_left_out() -> None:
    class Classified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model, self.head = TinyText(), nn.Linear(WIDTH, 3)

    model = Classified()
    assert TokenEncoder(model).model is model.base_model


def test_packing_puts_padding_last_on_either_side_and_takes_lists() -> None:
    right, left = as_texts(padded(TEXTS)), as_texts(padded(TEXTS, "left"))
    assert is_texts(right)
    assert torch.equal(right, left)
    assert torch.equal(right, as_texts({"input_ids": TEXTS}))
    assert right[1].tolist() == [[5, 1], [3, 1], *[[0, 0]] * 6]
    joined = join_texts([as_texts(padded(TEXTS[1:3])), as_texts(padded(TEXTS[:1]))])
    assert torch.equal(joined, right[[1, 2, 0]])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": [[1], []]}, "at least one token in each text, text 1 has none"),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.tensor([[1, 1, 0], [0] * 3])},
            "text 1 has none: it is empty, or all padding",
        ),
        (
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 0, 1]])},
            "text 0 has padding in its middle",
        ),
        ({"input_ids": torch.ones(2, 3)}, "must hold whole numbers, got torch.float32"),
        ({"input_ids": torch.ones(3).long()}, r"must have shape \(B, T\) with at least one text"),
        ({"input_ids": []}, "must be a list of texts"),
        ({"input_ids": ["word"]}, "lists of whole numbers"),
        ({"input_ids": [[1, -2]]}, "ids of at least 0, text 0 has a negative one"),
        ({"input_ids": [[1], [VOCABULARY]]}, f"ids below {VOCABULARY}.*text 1 has {VOCABULARY}"),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 2).long()},
            r"the shape of the ids, \(2, 3\), got \(2, 2\)",
        ),
        ({"tokens": [[1]]}, "must be a dict with `input_ids`"),
        (["a text"], "must be a dict with `input_ids`"),
    ],
)  # fmt: skip
def test_texts_are_checked(batch: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        jepa_score(TokenEncoder(TinyText()), batch)


def test_padding_without_a_mask_is_told_where_the_model_knows_its_padding_token() -> None:
    model = TinyText()
    ids = padded(TEXTS, "left")["input_ids"]
    assert TokenEncoder(model).tokens({"input_ids": ids}).shape == (4, 8, 2)
    model.config = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    with pytest.raises(
        ValueError, match=r"must have an `attention_mask`.*text 1 begins or ends in"
    ):
        TokenEncoder(model).tokens({"input_ids": ids})
    assert TokenEncoder(model).tokens(padded(TEXTS)).shape == (4, 8, 2)
    model.config = SimpleNamespace(pad_token_id=2, eos_token_id=2)
    assert TokenEncoder(model).tokens({"input_ids": ids.clamp_min(2)}).shape == (4, 8, 2)


class Headless(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids


class Flat(TinyText):
    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Any:
        return inputs_embeds.mean(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenEncoder("bert"), "`model` must be a module, got str"),
        (lambda: TokenEncoder(Headless()), "Headless lacks attention_mask, get_input_embeddings"),
        (lambda: TokenEncoder(TinyText(), "cls"), "`pool` must be one of mean, last, first"),
        (
            lambda: jepa_score(TokenEncoder(Flat()), padded(TEXTS)),
            r"`model` must return states \(B, T, K\)",
        ),
        (
            lambda: Embedder(TinyText()).run(
                lambda: Embedder(TinyText()).inputs(as_texts(padded(TEXTS))), torch.device("cpu")
            ),
            "`encoder` must be a TokenEncoder where the data are texts, got TinyText",
        ),
        (
            lambda: leverage_map(TokenEncoder(TinyText()), as_texts(padded(TEXTS))),
            "`images` must be floating point",
        ),
        (
            lambda: log_density(
                TokenEncoder(TinyText()), as_texts(padded(TEXTS)), [padded(TEXTS)], fibre="gaussian"
            ),
            "`images` must be floating point",
        ),
    ],
)  # fmt: skip
def test_wrong_use_is_told(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_settings_of_an_embedder_know_the_size_of_a_text() -> None:
    texts = as_texts(padded(TEXTS))
    embedder = Embedder(TokenEncoder(TinyText()), dtype=ScoreOptions().dtype)
    assert embedder.input_count(texts) == 8 * WIDTH
