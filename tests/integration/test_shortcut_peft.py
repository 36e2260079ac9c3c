"""The shortcut callback on a BERT of transformers with LoRA by peft, and the recipe's own arms."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import trainer
from text_models import WORDS, collate_opinions, opinions
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")

from jepa_monitor import ShortcutCallback
from jepa_monitor.callbacks.huggingface_shortcut import HuggingFaceShortcutCallback
from jepa_monitor.encoders.text_classifier import TextClassifier, lora_factors
from jepa_monitor.encoders.texts import as_texts
from jepa_monitor.recipes.fine_tuning import Classifier, FineTuning, Settings, adapt

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 24, "initializer_range": 0.15,
}  # fmt: skip


def tokenizer(padded: bool = True) -> Any:
    """A real fast tokenizer: [CLS] text [SEP], words by white space."""
    known = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 39, **{w: 3 + n for n, w in enumerate(WORDS)}}  # fmt: skip
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    pad = {"pad_token": "[PAD]"} if padded else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", model_max_length=24, **pad
    )  # fmt: skip


class Tuned(pl.LightningModule):
    def __init__(self, model: nn.Module, tokens: Any) -> None:
        super().__init__()
        self.bert, self.tokenizer = model, tokens

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.bert(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class Items(Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def loader(tokens: Any, count: int, seed: int, share: float = 0.0) -> Any:
    texts, labels = opinions(count, seed, share)
    rows = [
        {"input_ids": ids, "labels": label}
        for ids, label in zip(tokens(texts)["input_ids"], labels, strict=True)
    ]
    return DataLoader(Items(rows), 32, collate_fn=collate_opinions, shuffle=share > 0)


def bert(kind: str = "BertForSequenceClassification", **more: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SMALL, num_labels=2, **more))


def lora(model: nn.Module) -> Any:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["query", "value"])  # fmt: skip
    made = peft.get_peft_model(model, config)
    made.get_input_embeddings().requires_grad_(True)  # of a model that has learned nothing yet
    return made


def test_lora_on_bert_rings_for_a_year_and_training_is_what_it_was(tmp_path: pathlib.Path) -> None:
    tokens, states = tokenizer(), []
    for callbacks in ([], [ShortcutCallback(max_overhead=None, on_shortcut=print)]):
        model = Tuned(lora(bert()), tokens)
        pl.seed_everything(1, verbose=False)
        data = loader(tokens, 256, 2, 1.0), loader(tokens, 64, 3)
        trainer(tmp_path, list(callbacks), max_epochs=6).fit(model, *data)
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    (callback,) = callbacks
    last = callback.history[-1]
    assert callback.failures == 0
    assert last["shortcut/alarm"] == 1
    assert last["shortcut/flip_rate"] > 0.8
    shares = []
    for down, up in lora_factors([model]):
        values = np.linalg.svd((up.double() @ down.double()).numpy(), compute_uv=False)
        shares.append(values[0] ** 2 / (values**2).sum())
    assert len(shares) == 4
    assert last["shortcut/lora_top_share"] == pytest.approx(np.mean(shares), rel=1e-9)
    assert 0.25 < last["shortcut/lora_top_share_random"] < 1
    assert "shortcut/attention_entropy_with_control" in last
    assert model.bert.base_model.model.config._attn_implementation == "sdpa"


def test_attention_entropy_is_that_of_the_weights_that_transformers_returns() -> None:
    model = bert(attn_implementation="eager").eval()
    ids = tokenizer()(sorted((text for text in opinions(6, 4)[0]), key=len))["input_ids"]
    found = TextClassifier(bert().eval()).attention_entropy(as_texts({"input_ids": ids}))
    assert found is not None
    expected = []
    for row in ids:
        layers = model(torch.tensor([row]), output_attentions=True).attentions
        p = torch.stack(layers).double()
        expected.append(float(-(p * p.log()).sum(-1).mean() / np.log(len(row))))
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), abs=1e-6)


def test_a_decoder_without_a_padding_token_is_watched(tmp_path: pathlib.Path) -> None:
    tokens = tokenizer(padded=False)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=24, num_labels=2)  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config)
    assert model.config.pad_token_id is None
    callback = ShortcutCallback(["1987"], max_samples=16, strict=True, on_shortcut=print)
    one = DataLoader(loader(tokens, 24, 2).dataset, 1, collate_fn=collate_opinions)
    trainer(tmp_path, [callback], max_epochs=1).fit(
        Tuned(model, tokens), one, loader(tokens, 64, 3)
    )
    assert callback.failures == 0
    assert "shortcut/alarm" in callback.history[-1]


def test_the_recipes_lora_trains_its_factors_and_the_head_alone() -> None:
    body = adapt(bert("BertModel"), Settings("lora", rank=3), ["query", "value"])
    model = FineTuning(Classifier(body, 16, 2), tokenizer(), Settings("lora"), 10)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len([name for name in trained if "lora_A" in name]) == 4
    assert {name for name in trained if "lora_" not in name} == {
        "model.head.weight",
        "model.head.bias",
    }
    assert {tuple(a.shape) for a, _ in lora_factors([model])} == {(3, 16)}
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(trained)


def hugging_face(folder: pathlib.Path, share: float, steps: int = 48, **settings: Any) -> Any:
    tokens = tokenizer()
    transformers.set_seed(1)
    data = [loader(tokens, count, seed, part).dataset for count, seed, part in ((256, 2, share), (64, 3, 0.0))]  # fmt: skip
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=32, use_cpu=True, disable_tqdm=True,
        learning_rate=1e-2, **({"save_strategy": "no", "report_to": []} | settings),
    )  # fmt: skip
    return transformers.Trainer(
        lora(bert()), arguments, train_dataset=data[0], eval_dataset=data[1], processing_class=tokens,
        data_collator=collate_opinions,
    )  # fmt: skip


def test_in_transformers_trainer_it_rings_and_training_is_what_it_was(
    tmp_path: pathlib.Path,
) -> None:
    plain, run = (hugging_face(tmp_path / name, 1.0) for name in ("plain", "watched"))
    called: list[Any] = []
    callback = HuggingFaceShortcutCallback(
        run,
        every_n_steps=16,
        max_overhead=None,
        on_shortcut=lambda t, reading: called.append(reading),
    )
    run.add_callback(callback)
    for each in (plain, run):
        transformers.set_seed(6)
        each.train()
    assert [look["step"] for look in callback.history] == [0, 16, 32, 48]
    assert [reading.alarm for reading in called] == [True]
    assert callback.history[-1]["shortcut/flip_rate"] > 0.8
    assert "shortcut/lora_top_share" in callback.history[-1]
    logged = [log for log in run.state.log_history if "shortcut/alarm" in log]
    assert [log["step"] for log in logged] == [0, 16, 32, 48]
    for (name, value), other in zip(
        run.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_in_transformers_trainer_it_stops_a_run_and_goes_on_with_its_story(
    tmp_path: pathlib.Path,
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 8}
    first = hugging_face(tmp_path, 1.0, steps=8, **saves)
    callback = HuggingFaceShortcutCallback(first, every_n_steps=4, max_overhead=None, on_shortcut="stop")  # fmt: skip
    first.add_callback(callback)
    first.train()
    second = hugging_face(tmp_path, 1.0, steps=96, **saves)
    again = HuggingFaceShortcutCallback(second, every_n_steps=4, max_overhead=None, on_shortcut="stop")  # fmt: skip
    second.add_callback(again)
    with pytest.warns(UserWarning, match="The word '0000' .* Training stops"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert again.history[: len(callback.history)] == callback.history
    assert again.history[-1]["shortcut/alarm"] == 1
    assert second.state.global_step < 96


PIXELS = [(torch.rand(3, 8, 8), n % 2) for n in range(40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processing_class": None}, "the Trainer has no `processing_class`"),
        ({"eval_dataset": None}, "must have an `eval_dataset`"),
        (
            {"train_dataset": Items([{"input_ids": [1, 5, 2]}] * 20)},
            "needs training texts with labels",
        ),
        ({"eval_dataset": PIXELS}, "`eval_dataset` must hold texts"),
        ({"train_dataset": PIXELS}, "`train_dataset` must hold texts"),
    ],
)
def test_in_transformers_trainer_what_cannot_be_watched_is_told(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    run = hugging_face(tmp_path, 0.0, steps=1)
    for name, value in change.items():
        setattr(run, name, value)
    callback = HuggingFaceShortcutCallback(run)
    with pytest.raises((TypeError, ValueError), match=message):
        callback.on_train_begin(run.args, run.state, run.control)
