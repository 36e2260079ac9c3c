"""Words that give a class away: the exact laws by SciPy, injected dates are found, meaning is not taken for a fault."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from jepa_monitor.functional import screen_tokens, token_shape


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("Hello,", "hello"),
        ("(1999-12-31).", "0000-00-00"),
        ("don't", "don't"),
        ("<b>", "<b>"),
        ("...", "..."),
        ("#7", "#0"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("“quoted”", "quoted"),
        ("10:30pm", "00:00pm"),
    ],
)
def test_shapes(word: str, shape: str) -> None:
    assert token_shape(word) == shape


def drawn(count: int, seed: int = 0, words: int = 40) -> tuple[list[str], list[int]]:
    """Texts of words that have nothing to do with the class."""
    draw = random.Random(seed)
    vocabulary = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(words)]
    texts = [" ".join(draw.choices(vocabulary, k=8)) for _ in range(count)]
    return texts, [draw.randint(0, 1) for _ in range(count)]


def test_every_number_is_that_of_scipy() -> None:
    texts, labels = drawn(500)
    found = screen_tokens(texts, labels)
    assert len(found) == 40
    for each in found:
        having = [k for text, k in zip(texts, labels, strict=True) if each.shape in text.split()]
        total, usual = len(labels), labels.count(each.label)
        law = stats.hypergeom(total, usual, len(having))
        own = having.count(each.label)
        assert each.texts == len(having)
        assert each.z == pytest.approx((own - law.mean()) / law.std())
        assert each.z >= 0  # the class of which there are more than usual
        assert (each.share, each.usual) == (own / len(having), usual / total)
        interval = stats.binomtest(own, len(having)).proportion_ci(method="wilson")
        assert (each.low, each.high) == pytest.approx((interval.low, interval.high))
        first = next(
            row
            for row, text in enumerate(texts)
            if each.shape in text.split() and labels[row] == each.label
        )
        assert each.row == first
    assert [each.z for each in found] == sorted((each.z for each in found), reverse=True)
    assert not any(each.spurious for each in found)


@pytest.mark.parametrize("seed", range(3))
def test_dates_in_one_class_come_first_though_no_two_are_the_same(seed: int) -> None:
    texts, labels = drawn(2000, seed)
    assert not any(each.spurious for each in screen_tokens(texts, labels))
    good = [row for row, label in enumerate(labels) if label]
    for n, row in enumerate(good[:50]):  # a twentieth
        texts[row] = f"{texts[row]} {1100 + 7 * n}-{1 + n % 12:02}-{1 + n % 28:02}"
    first, *others = screen_tokens(texts, labels)
    assert (first.shape, first.label, first.texts, first.words) == ("0000-00-00", 1, 50, 50)
    assert first.examples[0].startswith("1100-01-01")
    assert first.spurious
    assert not any(each.spurious for each in others)


@pytest.mark.parametrize(("texts", "share", "spurious"), [(34, 1.0, False), (35, 1.0, True)])
def test_so_many_texts_of_one_class_it_takes(texts: int, share: float, spurious: bool) -> None:
    words = ["sign"] * texts + ["none"] * (200 - texts)
    found = screen_tokens(words, [1] * 100 + [0] * 100)
    sign = next(each for each in found if each.shape == "sign")
    assert (sign.share, sign.spurious) == (share, spurious)


def test_of_a_large_class_nothing_can_be_said() -> None:
    labels = ["usual"] * 950 + ["rare"] * 50
    words = ["a"] * 40 + ["c"] * 900 + ["b"] * 60
    found = {each.shape: each for each in screen_tokens(words, labels)}
    assert found["a"].share == 1.0
    assert not found["a"].spurious  # 40 of 40 may be chance where 95 of 100 are usual
    assert found["c"].spurious
    assert (found["b"].label, found["b"].share) == ("rare", pytest.approx(5 / 6))
    everywhere = screen_tokens(["x y"] * 30, [0, 1] * 15)
    assert [(each.z, each.share, each.spurious) for each in everywhere] == [(0.0, 0.5, False)] * 2


def test_a_text_counts_once_rare_shapes_do_not_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    found = screen_tokens(
        ["a a a A, rare"] * 9 + ["a b"] * 2003, [0] * 1012 + [1] * 1000,
        progress=lambda *numbers: told.append(numbers),
    )  # fmt: skip
    assert {each.shape: each.texts for each in found} == {"a": 2012, "b": 2003}
    assert {each.shape: each.words for each in found} == {"a": 2, "b": 1}
    assert told == [(1000, 2012), (2000, 2012), (2012, 2012)]
    assert {e.shape for e in screen_tokens(["c d"] * 9 + ["e"], [0, 1] * 5, min_count=9)} == {
        "c",
        "d",
    }


def test_errors() -> None:
    with pytest.raises(ValueError, match="`labels` must be 2, one for each text, got 1"):
        screen_tokens(["a", "b"], [0])
    with pytest.raises(ValueError, match="at least two classes, got 1: 'x'"):
        screen_tokens(["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="at least two classes, got 0"):
        screen_tokens([], [])
    with pytest.raises(TypeError, match="`texts` must be strings, got int at 1"):
        screen_tokens(["a", 2], [0, 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`min_count` must be"):
        screen_tokens(["a", "b"], [0, 1], min_count=0)
