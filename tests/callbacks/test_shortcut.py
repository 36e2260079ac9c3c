"""The shortcut callback: it rings where a word was learned, and not where none was, and harms no run."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import interpreter_settings, trainer
from text_models import (
    Opinions,
    TinyClassifier,
    TinyText,
    TinyTokenizer,
    Tuned,
    collate_opinions,
    opinions_loader,
    padded,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_monitor import JepaScoreCallback, ShortcutCallback


def fitted(
    folder: pathlib.Path, *callbacks: pl.Callback, share: float = 1.0, **settings: Any
) -> Tuned:
    pl.seed_everything(3, verbose=False)
    module = Tuned()
    settings = {"max_epochs": 4, **settings}
    trainer(folder, list(callbacks), **settings).fit(
        module, opinions_loader(256, 2, share), opinions_loader(64, 3)
    )
    return module


def test_it_rings_where_a_year_is_the_class_and_names_it(tmp_path: pathlib.Path) -> None:
    callback = ShortcutCallback(max_overhead=None)
    with pytest.warns(UserWarning, match=r"ShortcutCallback at step \d+: The word '0000'") as said:
        fitted(tmp_path, callback)
    (sentence,) = (str(w.message) for w in said if "The word" in str(w.message))
    last, first = callback.history[-1], callback.history[0]
    assert callback.failures == 0
    assert [look["step"] for look in callback.history] == [0, 8, 16, 24, 32]
    assert (first["shortcut/alarm"], last["shortcut/alarm"]) == (0, 1)
    assert last["shortcut/flip_rate"] > 0.8
    assert last["shortcut/excess_low"] > 0.2
    assert last["shortcut/control"] < 0.2
    assert "to class 1, control words" in sentence
    assert "Of the 128 training texts with it 128 are of this class" in sentence
    assert callback.candidates[0].words[0] in ("1987", "1990", "2004")
    assert "shortcut/lora_top_share" not in first  # B is zero
    assert 1 / 3 <= last["shortcut/lora_top_share"] <= 1
    assert "shortcut/attention_entropy_with_word" in last
    assert callback.latest.alarm


def test_the_counts_are_those_of_the_module_asked_by_hand(tmp_path: pathlib.Path) -> None:
    called: list[Any] = []
    callback = ShortcutCallback(
        {"1987": 1},
        max_overhead=None,
        on_shortcut=lambda t, module, reading: called.append(reading),
    )
    module = fitted(tmp_path, callback)
    (reading,) = called  # once, however many looks there are
    assert (reading.alarm, reading.flips[0][0].name) == (True, "1987")
    tokenizer = TinyTokenizer()
    assert callback.shortcuts is not None
    plain, word, control = (
        [
            tokenizer.decode(row[row > 0].tolist(), skip_special_tokens=True)
            for row in callback.shortcuts._tokens[places, :, 0]
        ]
        for places in callback.shortcuts._places
    )

    def classes(texts: list[str]) -> list[int]:
        module.eval()
        with torch.no_grad():
            return [
                int(module.model(torch.tensor(ids)[None], torch.ones(1, len(ids)).long()).logits.argmax())
                for ids in tokenizer(texts)["input_ids"]
            ]  # fmt: skip

    held_out = [tokenizer.decode(item["input_ids"], skip_special_tokens=True) for item in Opinions(64, 3)]  # fmt: skip
    assert sorted(plain) == sorted(held_out)
    assert plain != held_out  # in an order drawn at random: a set may be sorted by its classes
    before, after, other = map(classes, (plain, word, control))
    rows = [row for row in range(64) if before[row] != 1]
    last = callback.history[-1]
    assert last["shortcut/texts"] == len(rows)
    assert last["shortcut/flip_rate"] == sum(after[row] for row in rows) / len(rows)
    assert last["shortcut/control"] == sum(other[row] for row in rows) / len(rows)
    for one, with_word, with_control in zip(plain, word, control, strict=True):
        place = with_word.split().index("1987")
        assert with_word.split()[:place] + with_word.split()[place + 1 :] == one.split()
        assert with_control.split()[:place] == with_word.split()[:place]
        assert with_control.split()[place + 1 :] == with_word.split()[place + 1 :]
        assert with_control.split()[place] != "1987"
    assert len({text.split()[0] for text in control}) > 5  # each text has its own


def test_a_clean_run_rings_nothing_whatever_honest_words_do(tmp_path: pathlib.Path) -> None:
    callback = ShortcutCallback(max_overhead=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(many workers|logging interval|log_every).*")
        fitted(tmp_path, callback, share=0.0)
    assert callback.failures == 0
    assert [look["shortcut/alarm"] for look in callback.history] == [0] * 5
    assert not any(candidate.rings for candidate in callback.candidates)
    assert callback.history[-1]["shortcut/screen_z"] > 3


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}])
def test_training_is_bit_for_bit_the_same(tmp_path: pathlib.Path, settings: dict[str, Any]) -> None:
    settings = {"max_epochs": 2, **settings}
    plain = fitted(tmp_path, **settings)
    before = interpreter_settings()
    plain_draw = torch.rand(3)
    callback = ShortcutCallback(["1990", "film the"], every_n_steps=3, max_overhead=None, on_shortcut=print)  # fmt: skip
    watched = fitted(tmp_path, callback, **settings)
    assert interpreter_settings() == before
    assert torch.equal(torch.rand(3), plain_draw)
    assert callback.failures == 0
    assert len(callback.history) > 2
    for (name, value), other in zip(
        watched.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    for mine, its in zip(watched.parameters(), plain.parameters(), strict=True):
        assert mine.requires_grad == its.requires_grad
        assert torch.equal(mine.grad, its.grad) if mine.grad is not None else its.grad is None
    assert all(module.training for module in watched.modules())
    assert not any(module._forward_hooks for module in watched.modules())


def test_an_alarm_stops_the_run(tmp_path: pathlib.Path) -> None:
    callback = ShortcutCallback(on_shortcut="stop", every_n_steps=4, max_overhead=None)
    with pytest.warns(UserWarning, match=r"The word '0000' .* Training stops\.$"):
        fitted(tmp_path, callback, max_epochs=6)
    assert callback.history[-1]["shortcut/alarm"] == 1
    assert callback.history[-1]["step"] < 48


class Learned(Tuned):
    """Has the shortcut before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.model.head.weight[1] = 10 * self.model.table.weight[28]  # of 1987
            self.model.head.weight[0] = 0
            self.model.head.bias.copy_(torch.tensor([9.0, 0.0]))


def test_a_model_is_not_blamed_before_it_is_trained(tmp_path: pathlib.Path) -> None:
    callback = ShortcutCallback(["1987"], on_shortcut="stop", max_overhead=None)
    with pytest.warns(UserWarning, match="at step 2: The word '1987'"):
        run_of(callback, tmp_path, module=Learned)
    first, second = callback.history
    assert first["shortcut/excess_low"] > 0.2
    assert (first["shortcut/alarm"], second["shortcut/alarm"]) == (0, 1)


def test_two_of_them_and_others_share_a_trainer(tmp_path: pathlib.Path) -> None:
    mine = ShortcutCallback(["1987"], max_overhead=None, on_shortcut=print)
    other = ShortcutCallback(["film"], max_overhead=None, name="film", on_shortcut=print)
    density = JepaScoreCallback(
        lambda module: nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), torch.rand(20, 2, 1), labels=None,
        max_probe_samples=2, polarity_samples=0,
    )  # fmt: skip
    fitted(tmp_path, mine, other, density, max_epochs=1)
    assert mine.failures == other.failures == 0
    assert "shortcut/flip_rate" in mine.history[-1]
    assert "film/shortcut/flip_rate" in other.history[-1]
    with pytest.raises((ValueError, RuntimeError), match=r"`name` must be different|state_key"):
        fitted(tmp_path, mine, ShortcutCallback())


def test_a_resumed_run_goes_on_with_its_story_and_validate_looks_too(
    tmp_path: pathlib.Path,
) -> None:
    first = ShortcutCallback(max_overhead=None, on_shortcut=print)
    pl.seed_everything(3, verbose=False)
    runner = trainer(tmp_path, [first], max_epochs=2)
    runner.fit(Tuned(), opinions_loader(256, 2, 1.0), opinions_loader(64, 3))
    runner.save_checkpoint(tmp_path / "half.ckpt")
    again = ShortcutCallback(max_overhead=None, on_shortcut=print)
    second = trainer(tmp_path, [again], max_epochs=3)
    module = Tuned()
    second.fit(
        module,
        opinions_loader(256, 2, 1.0),
        opinions_loader(64, 3),
        ckpt_path=tmp_path / "half.ckpt",
    )
    assert again.history[:3] == first.history
    assert [look["step"] for look in again.history] == [0, 8, 16, 24]
    alone = ShortcutCallback(["1987"], max_overhead=None, on_shortcut=print)
    trainer(tmp_path, [alone]).validate(module, opinions_loader(64, 3), verbose=False)
    assert alone.history[-1]["shortcut/alarm"] == 1
    silent = ShortcutCallback()
    with pytest.warns(UserWarning, match="no training texts to screen here"):
        trainer(tmp_path, [silent]).validate(module, opinions_loader(64, 3), verbose=False)
    assert "shortcut/flip_rate" not in silent.history[-1]


class Batches(Tuned):
    """Takes a batch, and returns logits alone."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["input_ids"], batch["attention_mask"]).logits


def test_the_module_itself_may_be_the_classifier_and_the_data_may_have_the_tokenizer(
    tmp_path: pathlib.Path,
) -> None:
    module = Batches()
    data = opinions_loader(64, 2, 1.0)
    data.dataset.tokenizer = module.tokenizer  # type: ignore[attr-defined]
    del module.tokenizer
    callback = ShortcutCallback(max_overhead=None, on_shortcut=print, strict=True)
    trainer(tmp_path, [callback], max_epochs=1).fit(module, data, opinions_loader(40, 3))
    assert "shortcut/flip_rate" in callback.history[-1]


def without_labels(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return padded([item["input_ids"] for item in items])


def run_of(callback: ShortcutCallback, folder: pathlib.Path, **changes: Any) -> None:
    module = changes.get("module", Tuned)()
    for name in changes.get("without", ()):
        delattr(module, name)
    training = changes.get("training", opinions_loader(64, 2))
    held_out = changes.get("held_out", opinions_loader(40, 3))
    trainer(folder, [callback], max_epochs=1).fit(module, training, held_out)


class TextBody(TinyText):
    """Returns states."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids, attention_mask).last_hidden_state


class Two(Tuned):
    def __init__(self) -> None:
        super().__init__()
        self.other = TinyClassifier()


class Pictures(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.tokenizer = TinyClassifier(), TinyTokenizer()

    def training_step(self, batch: Any, batch_idx: int) -> None: ...
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class OneClass(Opinions):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "labels": 1}


PIXELS = DataLoader([(torch.rand(3, 8, 8), n % 2) for n in range(40)], 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": ["tokenizer"]}, "`tokenizer` was not given, and neither"),
        ({"module": Two}, r"`classifier` was not given.*model \(TinyClassifier\), other"),
        ({"training": DataLoader(Opinions(64, 2), 8, collate_fn=without_labels)},
         "`candidates='auto'` needs training texts with labels"),
        ({"training": DataLoader(OneClass(64, 2), 8, collate_fn=collate_opinions)},
         "`labels` must be of at least two classes"),
        ({"held_out": opinions_loader(12, 3)}, "`probe` must hold at least 16 texts with words, got 12"),
        ({"held_out": PIXELS, "module": Pictures}, "`probe` must hold texts"),
        ({"held_out": DataLoader([{"input_ids": [], "labels": 0}] * 20, 4, collate_fn=collate_opinions)},  # type: ignore[arg-type]
         "at least one token in each text, text 0 has none"),
    ],
)  # fmt: skip
def test_what_cannot_be_watched_is_an_error_before_training(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        run_of(ShortcutCallback(), tmp_path, **changes)


class Wide(TinyTokenizer):
    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*row, 99] for row in super().__call__(texts)["input_ids"]]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": {"1987": 2}}, "`candidates` name the class 2 of '1987', the classifier has 2"),
        ({"candidates": ["1987"], "tokenizer": Wide()}, "ids below 40.*got 99: another tokenizer's"),
        ({"candidates": ["1987"], "classifier": "model.table"}, "must be Tensor, not dict"),
        ({"candidates": ["1987"], "classifier": "model.nothing"}, "has no 'nothing'"),
        ({"candidates": ["1987"], "classifier": TextBody()}, r"must return logits \(B, C\) .* got \(2, .*, 12\)"),
    ],
)  # fmt: skip
def test_what_does_not_classify_these_texts_is_an_error_before_training(
    tmp_path: pathlib.Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        run_of(ShortcutCallback(**arguments), tmp_path)


class Broken(Tuned):
    """Its weights are gone after the first step."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.model.head.weight.data.fill_(float("nan"))


def test_a_look_that_fails_is_one_warning_and_training_goes_on(tmp_path: pathlib.Path) -> None:
    callback = ShortcutCallback(["1987"], every_n_steps=1)
    with pytest.warns(UserWarning, match="returns logits that are not finite"):
        run_of(callback, tmp_path, module=Broken)
    assert callback.failures > 0
    assert len(callback.history) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": "words"}, "`candidates` must be 'auto', a list of words"),
        ({"candidates": []}, "`candidates` must hold a word at least"),
        ({"candidates": [" "]}, "`candidates` must be words, got an empty one"),
        ({"candidates": [3]}, "`candidates` must be words, got int"),
        ({"candidates": {"a": -1}}, "by its number, from 0, got -1"),
        ({"candidates": {"a": "good"}}, "by its number, got 'good'"),
        ({"classifier": 3}, "`classifier` must be a dotted path"),
        ({"tokenizer": 3}, "`tokenizer` must be one as transformers' are"),
        ({"on_shortcut": "shout"}, "`on_shortcut` must be one of warn, stop"),
        ({"max_samples": 8}, "`max_samples` must be at least 16"),
        ({"max_candidates": 0}, "`max_candidates`"),
        ({"every_n_steps": 2, "every_n_epochs": 1}, "exclude each other"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ShortcutCallback(**arguments)
