"""Words put into texts: where they stand, what their controls are, and what a tokenizer takes apart."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from text_models import PLACES, WORDS, TinyTokenizer, opinions
from torch import Tensor

from jepa_monitor.encoders.texts import pack_texts
from jepa_monitor.probes.insertion import Words, insert_words


class Pieces:
    """A tokenizer that takes words apart, letter by letter, and puts them together with spaces around signs."""

    model_max_length = 10**30

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text.replace(" ", "")] for text in texts]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(f" {chr(n)} " if chr(n) in "-:." else chr(n) for n in ids)


def test_each_text_has_the_word_at_a_place_and_a_control_there() -> None:
    texts, _ = opinions(200, 5)
    made = insert_words(
        Words(TinyTokenizer()), texts, [["1987", "2004"], ["film the"]], texts, seed=1
    )
    places, controls = [], []
    for row, (text, one, other) in enumerate(zip(texts, made.with_word[0], made.with_control[0], strict=True)):  # fmt: skip
        said, word, control = text.split(), one.split(), other.split()
        (place,) = [n for n, each in enumerate(word) if each in ("1987", "2004")]
        assert word[place] == ("1987", "2004")[row % 2]
        assert word[:place] + word[place + 1 :] == said
        assert control[:place] + control[place + 1 :] == said
        places.append(place)
        controls.append(control[place])
    assert set(places) == set(range(10))
    assert not {"1987", "1990", "2004", "the", "film"} & set(controls)
    assert len(set(controls)) == 24  # all other words
    assert max(collections.Counter(controls).values()) < 30  # drawn alike: 8.3 expected
    for text, two in zip(texts, made.with_control[1], strict=True):
        assert len(two.split()) == len(text.split()) + 2  # as many tokens
    again = insert_words(
        Words(TinyTokenizer()), texts, [["1987", "2004"], ["film the"]], texts, seed=1
    )
    assert again == made


def test_controls_have_as_many_tokens() -> None:
    words = Words(Pieces())
    texts = ["a bc def", "g hi jkl mnop"] * 20
    made = insert_words(words, texts, [["2001-01-01"]], texts)
    for text, one, other in zip(texts, made.with_word[0], made.with_control[0], strict=True):
        counts = [len(ids) for ids in words.ids([text, one, other])]
        assert counts[1:] == [counts[0] + 10] * 2


def test_dates_and_decimals_are_in_one_piece_again() -> None:
    ids = Pieces()(["on2001-01-01at10:30of3.5-star"])["input_ids"]
    (text,) = Words(Pieces()).texts(pack_texts(ids))
    assert text == "on2001-01-01at10:30of3.5 - star"


def test_texts_at_the_limit_make_room() -> None:
    words = Words(TinyTokenizer())
    full = pack_texts([[1, *range(3, 3 + PLACES - 2), 2]])
    assert len(words.texts(full)[0].split()) == PLACES - 2
    (cut,) = words.texts(full, room=3)
    assert len(words.ids([f"1987 film {cut}"])[0]) <= PLACES
    assert cut.split() == WORDS[: len(cut.split())]


def test_lengths_are_without_what_begins_and_ends_a_text() -> None:
    assert Words(TinyTokenizer()).lengths(["1987", "the film"]) == [1, 2]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (3, "called with texts and with a method `decode`, got int"),
        (lambda texts: texts, "with a method `decode`, got function"),
        (type("Lists", (Pieces,), {"__call__": lambda self, texts: [[1]] * len(texts)})(),
         "must return a dict with `input_ids` .* got list"),
    ],
)  # fmt: skip
def test_what_is_no_tokenizer_is_told(tokenizer: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Words(tokenizer)


def test_texts_without_a_word_for_controls_are_told() -> None:
    texts = ["aa bb", "cc"]
    with pytest.raises(ValueError, match="must hold a word of one token"):
        insert_words(Words(Pieces()), texts, [["x"]], texts)


def test_ids_become_tokens_without_padding_tokens() -> None:
    made = Words(TinyTokenizer()).tokens(["1987", "the film"])
    assert isinstance(made, Tensor)
    assert made[..., 1].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
