"""The grammar of descriptions and expressions."""

import re
import string

import numpy as np
import pytest

from jepa_monitor.recipes.expressions import LINES, Pair, draw_pairs, is_rare, vocabulary


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(10_000)


def test_no_two_pairs_have_a_description_or_an_expression_in_common(pairs) -> None:
    assert len({pair.description for pair in pairs}) == len(pairs) == 10_000
    assert len({pair.pattern for pair in pairs}) == len(pairs)


def test_the_draw_is_that_of_the_seed(pairs) -> None:
    assert draw_pairs(50) == pairs[:50]
    assert draw_pairs(50, seed=1) != pairs[:50]
    with pytest.raises(ValueError, match="`count` must be at least 1, got 0"):
        draw_pairs(0)


def test_every_word_is_in_the_vocabulary_and_every_entry_is_used(pairs) -> None:
    used = {word for pair in pairs for word in f"{pair.description} {pair.expression}".split()}
    assert used == set(vocabulary())
    assert len(vocabulary()) == len(set(vocabulary()))
    assert not used & set("ABCNPQST")  # no place is left open


def test_the_rarest_suffix_is_the_rarest_and_only_that_of_its_form(pairs) -> None:
    rare = [pair for pair in pairs if pair.rare]
    assert 0.03 < len(rare) / len(pairs) < 0.08
    assert all("something that contains" in pair.description for pair in rare)
    assert sum("something that contains" in pair.description for pair in pairs) == len(rare)
    ends = [pair.pattern.endswith(".*") and not pair.rare for pair in pairs]
    assert min(sum(ends), len(pairs) - sum(ends) - len(rare)) > 3 * len(rare)
    assert is_rare(".*dog.*.*")
    assert not is_rare(".*dog.*")


ATOMS = {
    "vowel": lambda c: c in "AEIOUaeiou",
    "number": str.isdigit,
    "digit": str.isdigit,
    "capital": str.isupper,
    "upper-case": str.isupper,
    "small": str.islower,
    "lower-case": str.islower,
    "character": lambda c: True,
}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


def ends_of(phrase, text, start):
    """All places where a phrase may end that begins at `start`; written down from the English."""
    if match := re.fullmatch(r"at least (\w+) times (.*)", phrase):
        return repeated(match[2], text, start, NUMBERS[match[1]])
    if match := re.fullmatch(r"(.*) (\w+) or more times", phrase):
        return repeated(match[1].removeprefix("either "), text, start, NUMBERS[match[2]])
    for word, far in ((" and later ", True), (" and right after it ", False)):
        if word in phrase:
            return chained(phrase.split(word), text, start, far)
    if " before " in phrase:
        return chained(phrase.split(" before "), text, start, True)
    if " followed by " in phrase:
        return chained(phrase.split(" followed by "), text, start, False)
    if " or " in phrase:
        parts = phrase.removeprefix("either ").split(" or ")
        return {end for part in parts for end in ends_of(part, text, start)}
    if phrase.startswith("the string "):
        word = phrase.removeprefix("the string ")
        return {start + len(word)} if text.startswith(word, start) else set()
    kind = phrase.split()[1]
    fits = str.isalpha if phrase == "a letter" else ATOMS[kind]
    return {start + 1} if start < len(text) and fits(text[start]) else set()


def chained(parts, text, start, far):
    ends = ends_of(parts[0], text, start)
    for part in parts[1:]:
        begins = {b for end in ends for b in range(end, len(text) + 1)} if far else ends
        ends = {end for begin in begins for end in ends_of(part, text, begin)}
    return ends


def repeated(phrase, text, start, least):
    ends, found = {start}, set()
    for times in range(1, len(text) + 1):
        ends = {end for begin in ends for end in ends_of(phrase, text, begin)}
        found |= ends if times >= least else set()
    return found


def within(phrase, text):
    return any(ends_of(phrase, text, start) for start in range(len(text) + 1))


def described(line, text):
    """Whether the English says that the text is meant."""
    if match := re.fullmatch(r"lines (?:with (.*) and with|that contain both (.*) and) (.*)", line):
        if match[1] or match[2].count(" and ") == 0:
            return within(match[1] or match[2], text) and within(match[3], text)
        return None  # where the first ends is not plain
    if match := re.fullmatch(r"lines starting with (.*) and ending with (.*)", line):
        begins = ends_of(match[1], text, 0)
        return any(
            len(text) in ends_of(match[2], text, n)
            for end in begins
            for n in range(end, len(text) + 1)
        )
    if match := re.fullmatch(r"lines starting with something that contains (.*)", line):
        return within(match[1], text)
    if match := re.fullmatch(r"lines (?:starting with|that begin with) (.*)", line):
        return bool(ends_of(match[1], text, 0))
    if match := re.fullmatch(r"lines (?:ending with|that end in) (.*)", line):
        return any(len(text) in ends_of(match[1], text, n) for n in range(len(text) + 1))
    if match := re.fullmatch(r"lines (?:without|that do not contain) (.*)", line):
        return not within(match[1], text)
    match = re.fullmatch(r"lines (?:with|that contain|containing|that have) (.*)", line)
    return within(match[1], text)


def test_expressions_match_what_the_english_says(pairs) -> None:
    rng, said, matched = np.random.default_rng(0), 0, 0
    pieces = ["dog", "truck", "ring", *string.digits[:3], *"aeXYEbz", " ", "-"]
    for pair in pairs[:400]:
        pattern = re.compile(pair.pattern)
        for _ in range(6):
            text = "".join(rng.choice(pieces, rng.integers(1, 5)))
            meant = described(pair.description, text)
            if meant is None:
                continue
            assert bool(pattern.fullmatch(text)) == meant, (pair, text)
            said, matched = said + 1, matched + meant
    assert said > 2000
    assert 0.2 < matched / said < 0.8


def test_all_expressions_compile_and_all_forms_are_drawn(pairs) -> None:
    for pair in pairs[::5]:
        re.compile(pair.pattern)
    heads = {words.split(" P")[0].split(" S")[0] for form in LINES for words in form.words}
    assert all(any(pair.description.startswith(head) for pair in pairs) for head in heads)
    assert Pair("lines with a letter", ".* [A-Za-z] .*").pattern == ".*[A-Za-z].*"
