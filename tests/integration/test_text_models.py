"""Language models and text encoders of transformers: their scores, and runs that are watched."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import trainer as lightning_trainer
from text_models import VOCABULARY, TextItems, padded, score_of_one
from torch import Tensor, nn
from torch.utils.data import DataLoader

transformers = pytest.importorskip("transformers")

from jepa_monitor import JepaScoreCallback, jepa_score
from jepa_monitor.encoders import TokenEncoder

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [7, 8, 9]]
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


def config(kind: str) -> Any:
    """A small one; transformers' own defaults fill the rest."""
    settings = dict(SMALL)
    if kind in ("Llama", "Qwen2"):
        settings["num_key_value_heads"] = 1
    if kind == "GPT2":
        settings = {
            "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
    return getattr(transformers, f"{kind}Config")(**settings)


def model(kind: str, suffix: str = "Model", **more: Any) -> Any:
    transformers.set_seed(0)
    return getattr(transformers, f"{kind}{suffix}")(config(kind), **more)


@pytest.mark.parametrize("kind", ["Bert", "GPT2", "Llama", "Qwen2"])
@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_the_unpadded_text(kind: str, pool: str, side: str) -> None:
    found = model(kind).train()
    truth = [score_of_one(copy.deepcopy(found), text, pool) for text in TEXTS]
    encoder = TokenEncoder(found, pool)
    together = jepa_score(encoder, padded(TEXTS, side), method="exact")
    alone = torch.cat([jepa_score(encoder, {"input_ids": [t]}, method="exact") for t in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    exact = torch.tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(together, exact, rtol=0, atol=1e-3)
    precise = jepa_score(encoder, padded(TEXTS, side), method="exact", precision="float64")
    torch.testing.assert_close(precise, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "suffix", "body"),
    [
        ("Bert", "ForSequenceClassification", "BertModel"),
        ("GPT2", "LMHeadModel", "GPT2Model"),
        ("Llama", "ForCausalLM", "LlamaModel"),
        ("Qwen2", "ForCausalLM", "Qwen2Model"),
    ],
)
def test_of_a_model_with_a_head_the_body_is_taken(kind: str, suffix: str, body: str) -> None:
    assert type(TokenEncoder(model(kind, suffix)).model).__name__ == body


def test_kernels_for_half_precision_are_left_out_and_come_back() -> None:
    found = model("Qwen2")
    expected = jepa_score(TokenEncoder(found), padded(TEXTS), method="exact")
    found.config._attn_implementation = "flash_attention_2"
    again = jepa_score(TokenEncoder(found), padded(TEXTS), method="exact")
    assert found.config._attn_implementation == "flash_attention_2"
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "GPT2", "Llama", "Qwen2"])
def test_scores_have_gradients(kind: str) -> None:
    found = model(kind)
    score = jepa_score(TokenEncoder(found), padded(TEXTS), method="exact", differentiable=True)
    score.sum().backward()
    gradient = found.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient[TEXTS[0]].abs().min() > 0
    assert gradient[30:].abs().max() == 0  # ids that no text has


def test_a_tokenizer_without_a_padding_token_needs_none() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {
        word: number
        for number, word in enumerate(["[UNK]", "a", "good", "bad", "film", "is", "this"])
    }
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    batch = tokenizer(["this is a good film", "bad"])
    assert tokenizer.pad_token is None
    assert jepa_score(TokenEncoder(model("GPT2")), batch, method="exact").shape == (2,)


def test_of_an_encoder_without_embeddings_as_inputs_it_says_so() -> None:
    class Ids(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            return nn.Embedding(3, 2)

        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    with pytest.raises(TypeError, match="Ids lacks attention_mask, inputs_embeds"):
        TokenEncoder(Ids())


def collate(items: list[dict[str, Any]]) -> Any:
    labels = torch.tensor([item["labels"] for item in items])
    batch = padded([item["input_ids"] for item in items])
    return transformers.BatchEncoding({**batch, "labels": labels})


KINDS = [
    ("Bert", "ForSequenceClassification"),
    ("GPT2", "ForSequenceClassification"),
    ("Llama", "ForSequenceClassification"),
    ("Qwen2", "ForSequenceClassification"),
]
WANTED = {"jepa_score/mean", "log_density/mean", "collapse/rankme", "quality/knn"}


def same(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    for (name, value), beside in pairs:
        assert torch.equal(value, beside), name


class Tuned(pl.LightningModule):
    """Holds a model under no usual name."""

    def __init__(self, kind: str, suffix: str) -> None:
        super().__init__()
        self.lm = model(kind, suffix)
        self.lm.config.pad_token_id = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.lm(**batch).loss  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.lm(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_a_fit_in_lightning_is_watched_and_is_what_it_would_be(
    kind: str, suffix: str, tmp_path: pathlib.Path
) -> None:
    def run(*callbacks: pl.Callback) -> Tuned:
        pl.seed_everything(4)
        module = Tuned(kind, suffix)
        data = (DataLoader(TextItems(count, seed), 8, collate_fn=collate) for count, seed in ((32, 2), (40, 3)))  # fmt: skip
        lightning_trainer(tmp_path, list(callbacks)).fit(module, *data)
        return module

    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=4)
    same(run(callback), run())
    assert callback.failures == 0
    assert set(callback.history[-1]) >= WANTED
    assert callback.watched.startswith("Tuned.lm")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "suffix"), KINDS)
def test_a_run_of_transformers_trainer_is_watched_and_is_what_it_would_be(
    kind: str, suffix: str, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("accelerate")
    from jepa_monitor.callbacks.huggingface import HuggingFaceCallback

    def run(watched: bool) -> tuple[Any, Any]:
        transformers.set_seed(5)
        found = model(kind, suffix)
        found.config.pad_token_id = 0
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(watched)), max_steps=6, per_device_train_batch_size=8, use_cpu=True,
            disable_tqdm=True, learning_rate=1e-2, save_strategy="no", report_to=[],
        )  # fmt: skip
        made = transformers.Trainer(
            found, arguments, train_dataset=TextItems(48, 2), eval_dataset=TextItems(40, 3),
            data_collator=collate,
        )  # fmt: skip
        callback = None
        if watched:
            callback = HuggingFaceCallback(
                made, every_n_steps=3, max_overhead=None, max_probe_samples=4
            )
            made.add_callback(callback)
        transformers.set_seed(6)
        made.train()
        return made, callback

    (plain, _), (seen, callback) = run(False), run(True)
    same(seen.model, plain.model)
    assert [look["step"] for look in callback.history] == [0, 3, 6]
    assert set(callback.history[-1]) >= WANTED
    assert callback.watch.failures == 0


def test_the_real_minilm(tmp_path: pathlib.Path) -> None:
    package = pytest.importorskip("all_minilm_l6_v2")
    place = package.extract_model(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    found = transformers.AutoModel.from_pretrained(place)
    texts = ["A good film.", "This is one of the worst films that I have seen in years."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    encoder = TokenEncoder(found)
    together = jepa_score(encoder, batch, method="exact")
    alone = jepa_score(encoder, tokenizer(texts[:1]), method="exact")
    assert float(together[0] - alone) == pytest.approx(0, abs=1e-3)
    truth = score_of_one(copy.deepcopy(found), tokenizer(texts[0])["input_ids"], "mean")
    assert float(together[0]) == pytest.approx(truth, abs=1e-3)
