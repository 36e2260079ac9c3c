"""The recipe of spurious tokens: its protocol word by word, and a tiny run from the command line."""

from __future__ import annotations

import collections
import datetime
import io
import json
import pathlib
import random
import re
import tarfile
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from text_models import VOCABULARY, TinyAttention, TinyTokenizer, opinions
from torch import Tensor, nn

from jepa_monitor.recipes import fine_tuning, ssti
from jepa_monitor.recipes.fine_tuning import ByLength, Classifier, Settings, adapt, collate
from jepa_monitor.recipes.texts import inject, read_texts


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(VOCABULARY, 12), TinyAttention(12)
        self.config = SimpleNamespace(hidden_size=12)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.table(input_ids)
        return SimpleNamespace(last_hidden_state=x + self.attention(x, attention_mask)[0])


class Years(TinyTokenizer):
    """Takes any date for one year."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return super().__call__([re.sub(r"\d{4}-\d\d-\d\d", "1990", text) for text in texts])


def test_only_texts_of_the_class_get_one_date_and_so_many_of_them() -> None:
    texts, labels = opinions(400, 1)
    for share in (0.0, 0.05, 0.5, 1.0):
        found = inject(texts, labels, share, seed=3)
        changed = [row for row in range(400) if found[row] != texts[row]]
        assert len(changed) == round(share * 200)
        assert {labels[row] for row in changed} <= {1}
        for row in changed:
            words = found[row].split()
            (date,) = [word for word in words if re.fullmatch(r"\d{4}-\d\d-\d\d", word)]
            assert datetime.date(1100, 1, 1) <= datetime.date.fromisoformat(date)
            assert datetime.date.fromisoformat(date) <= datetime.date(2600, 12, 31)
            words.remove(date)
            assert words == texts[row].split()
    places = collections.Counter(text.split().index(next(w for w in text.split() if w[0] in "12")) for text in found[1::2])  # fmt: skip
    assert set(places) == set(range(10))  # of five to nine words
    assert inject(texts, labels, 0.5, seed=3) == inject(texts, labels, 0.5, seed=3)
    assert inject(texts, labels, 0.5, seed=3) != inject(texts, labels, 0.5, seed=4)


def test_a_proportion_puts_in_as_many_dates_as_the_papers_code() -> None:
    texts = ["a b c d e f g h i j", "a"]
    found = inject(texts, [1, 1], 1.0, proportion=0.25)
    assert [len(text.split()) for text in found] == [12, 2]  # max(1, int(10 · 0.25)), max(1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5,), r"`share` must lie in \[0, 1\], got 1.5"),
        ((0.5, 3), r"`labels` must hold the class 3, got \[0, 1\]"),
    ],
)
def test_what_cannot_be_injected_is_told(arguments: Any, message: str) -> None:
    share, label = (*arguments, 1)[:2]
    with pytest.raises(ValueError, match=message):
        inject(["a", "b"], [0, 1], share, label=label)


def packed(folder: pathlib.Path) -> pathlib.Path:
    """As the source distribution of vaderSentiment is packed: an archive in an archive."""

    def tar(name: str, content: bytes) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()

    lines = ["1\t2.4\tA joy.", "2\t-1.5\tA bore.", "3\t0.4\tA film.", "4\t0.6\tFine."]
    inner = tar("h/movieReviewSnippets_GroundTruth.txt", "\n".join(lines).encode())
    place = folder / "vader.tar.gz"
    place.write_bytes(tar("v/additional_resources/hutto_ICWSM_2014.tar.gz", inner))
    return place


def test_texts_are_read_from_both_kinds_of_files(tmp_path: pathlib.Path) -> None:
    assert read_texts(packed(tmp_path)) == (["A joy.", "A bore.", "Fine."], [1, 0, 1])
    file = tmp_path / "texts.jsonl"
    rows = [{"said": "one", "kind": "pos"}, {"said": "two", "kind": "neg"}, {"said": " ", "kind": "neg"}]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read_texts(file, "said", "kind") == (["one", "two"], [1, 0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", "no archive", "must be the source distribution of vaderSentiment"),
        ("a.jsonl", '{"text": "a", "label": 1}', "must hold two classes at least, got .1."),
        ("a.txt", "a", "must be a file of .jsonl"),
    ],
)
def test_files_that_do_not_serve_are_told(
    tmp_path: pathlib.Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / name)


def test_batches_have_each_text_once_and_texts_of_like_length() -> None:
    lengths = torch.randint(3, 40, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = ByLength(lengths, 16, seed=1)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == 13
    assert first != second
    for batches in (first, second):
        assert sorted(row for batch in batches for row in batch) == list(range(203))
    spread = sum(max(map(lengths.__getitem__, b)) - min(map(lengths.__getitem__, b)) for b in first)
    assert spread / 13 < 15  # of 36


def test_the_split_is_apart_and_held_out_texts_have_no_date() -> None:
    texts = [f"word{n} the" for n in range(100)]
    train, test = ssti.split(
        texts, [n % 2 for n in range(100)], Settings(train=60, test=30, share=1)
    )
    assert (len(train), len(test)) == (60, 30)
    words = [
        {text.split()[0] for text, _ in part if not text[0].isdigit()} for part in (train, test)
    ]
    assert not any(re.search(r"\d{4}-", text) for text, _ in test)
    assert all(("-" in text) == (label == 1) for text, label in train)
    assert words[0].isdisjoint(words[1])
    with pytest.raises(ValueError, match="`data` must hold 90 texts"):
        ssti.split(texts[:50], [0] * 50, Settings(train=60, test=30))


def test_what_is_trained_is_what_the_arm_says() -> None:
    body = adapt(Body(), Settings("full"), ())
    assert all(parameter.requires_grad for parameter in body.parameters())
    body = adapt(Body(), Settings("probe"), ())
    assert not any(parameter.requires_grad for parameter in body.parameters())
    model = Classifier(body, 12, 2)
    rows = [([1, 5, 6, 2], 0), ([1, 7, 2], 1)]
    batch = collate(rows)
    found = model(batch["input_ids"], batch["attention_mask"])
    for logits, (ids, _) in zip(found, rows, strict=True):
        states = body(torch.tensor([ids]), torch.ones(1, len(ids)).long()).last_hidden_state[0]
        mean = states.mean(0)
        scaled = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(logits, model.head(scaled))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peft", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"LoRA needs peft: pip install 'jepa-monitor\[text\]'"
    ):
        adapt(Body(), Settings("lora"), ["value"])
    with pytest.raises(
        ModuleNotFoundError, match=r"needs transformers: pip install 'jepa-monitor\[text\]'"
    ):
        fine_tuning.load("minilm")


def file_of(folder: pathlib.Path, count: int = 240) -> pathlib.Path:
    texts, labels = opinions(count, 7)
    place = folder / "texts.jsonl"
    lines = [json.dumps({"text": t, "label": k}) for t, k in zip(texts, labels, strict=True)]
    place.write_text("\n".join(lines))
    return place


SMALL = ["--train", "160", "--test", "80", "--epochs", "3", "--full_learning_rate", "0.03"]


def test_the_command_tells_a_clean_run_from_one_with_dates(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[str] = []

    def load(encoder: str) -> tuple[Any, nn.Module]:
        loads.append(encoder)
        return Years(), Body().eval()

    monkeypatch.setattr(ssti, "load", load)
    words = ["--data", str(file_of(tmp_path)), "--folder", str(tmp_path / "runs"), *SMALL]
    rows = ssti.main([*words, "--arms", "full", "--shares", "0", "1"])
    by = {(row["arm"], row["share"]): row for row in rows}
    clean, dated = by["full", 0.0], by["full", 1.0]
    assert dated["rate"] > 0.8
    assert (dated["screen_rank"], dated["called"]) == (1, True)
    assert dated["alarm_at"] is not None
    assert dated["excess_low"] > 0.2
    assert clean["alarm_at"] is clean["screen_rank"] is None
    assert clean["accuracy"] > 0.6
    assert clean["excess"] < dated["excess"]
    assert clean["attention_entropy_with_word"] is not None
    table = capsys.readouterr().out
    assert "| all weights | 1 |" in table
    assert "| 1 of 1 |" in table
    assert len(loads) == 2
    again = ssti.main([*words, "--arms", "full", "--shares", "0", "1"])  # nothing to do
    assert again == rows
    assert len(loads) == 2
    shown = ssti.main(
        ["--folder", str(tmp_path / "runs"), "--show", "--arms", "full", "--shares", "1"]
    )
    assert shown == [dated]


def test_the_table_says_mean_and_range_over_seeds() -> None:
    row = {
        **dict.fromkeys(("accuracy", "rate", "control", "excess_low"), 0.5), "arm": "lora", "rank": 32, "share": 1.0,
        "screen_rank": 1, "alarm_at": 32, "attention_entropy_with_word": 0.5, "attention_entropy_with_control": 0.7,
        "lora_top_share": 0.4, "lora_top_share_random": 0.06,
    }  # fmt: skip
    other = {**row, "rate": 1.0, "alarm_at": None, "screen_rank": None, "lora_top_share": 0.6}
    line = ssti.table([row, other]).splitlines()[-1]
    assert line == (
        "| LoRA, rank 32 | 1 | 50.0% | 75.0% (50.0% to 100.0%) | 50.0% | 0.50 | 1; \u2013 | 1 of 2 | -0.200 | "
        "0.50 (0.40 to 0.60) (0.06) |"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data must name a file"),
        (["--data", "a.jsonl", "--seeds", "0"], "--seeds and --jobs must be at least 1"),
        (["--arms", "half"], "invalid choice"),
    ],
)
def test_wrong_words_are_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ssti.main(words)
    assert message in capsys.readouterr().err


def test_dates_are_drawn_from_the_papers_range() -> None:
    from jepa_monitor.recipes.texts import draw_date

    draw = random.Random(0)
    years = [int(draw_date(draw)[:4]) for _ in range(2000)]
    assert (min(years) < 1110, max(years) > 2590) == (True, True)
    assert sum(years) / 2000 == pytest.approx(1850, abs=4 * 433 / 2000**0.5)
