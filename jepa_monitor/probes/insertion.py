"""Words in texts: in go texts and words, out come the same texts with a word in each, and with another in its place."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from jepa_monitor.encoders.texts import pack_texts, text_lengths
from jepa_monitor.functional.token_screen import token_shape

__all__ = ["Inserted", "Words", "insert_words"]

_LONGEST = 1_000_000  # tokenizers without a limit say a number with thirty digits
_CONTROLS = 2000  # different words to draw controls from, at most
# What tokenizers of words take apart and do not put together again: dates, times, decimals.
_TORN = re.compile(r"(?<=\d) ?([-/:.,]) ?(?=\d)")


class Words:
    """A tokenizer, as far as words go in and out of token ids.

    Args:
        tokenizer: As transformers' are: called with a list of strings it returns a dict with ``input_ids``, and
            ``decode(ids, skip_special_tokens=True)`` returns a string. A padding token is not needed.

    Raises:
        TypeError: If it is no such thing.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not callable(tokenizer) or not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(
                "`tokenizer` must be one as transformers' are, called with texts and with a method "
                f"`decode`, got {type(tokenizer).__name__}."
            )
        self.tokenizer = tokenizer
        most = getattr(tokenizer, "model_max_length", None)
        self.limit = int(most) if isinstance(most, int) and most < _LONGEST else None
        self.added = len(self.ids([""])[0])  # such as [CLS] and [SEP]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Make token ids.

        Args:
            texts: Strings.

        Returns:
            A list for each, without padding.

        Raises:
            TypeError: If the tokenizer returns no ``input_ids``.
        """
        made = self.tokenizer(list(texts))
        # BatchEncoding is a UserDict, and no dict.
        if not isinstance(made, Mapping) and not hasattr(made, "keys"):
            raise TypeError(
                "`tokenizer` must return a dict with `input_ids` for a list of texts, got "
                f"{type(made).__name__}."
            )
        return [list(map(int, row)) for row in made["input_ids"]]

    def texts(self, tokens: Tensor, room: int = 0) -> list[str]:
        """Make strings of texts as tokens.

        Args:
            tokens: (B, T, 2), as of :func:`~jepa_monitor.encoders.texts.as_texts`.
            room: Tokens that are to be put in, and for which a text at the tokenizer's limit is cut.

        Returns:
            One for each text; dates and decimals in one piece, also where the tokenizer takes them apart.
        """
        most = tokens.shape[1] if self.limit is None else self.limit - room
        lengths = text_lengths(tokens).clamp(max=max(most, 1)).tolist()
        said = [
            self.tokenizer.decode(row[:length], skip_special_tokens=True)
            for row, length in zip(tokens[..., 0].tolist(), lengths, strict=True)
        ]
        return [_TORN.sub(r"\1", text).strip() for text in said]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Make tokens of strings.

        Args:
            texts: Them.

        Returns:
            (B, T, 2), int64.
        """
        return pack_texts(self.ids(texts))

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Count the tokens of words.

        Args:
            words: Them.

        Returns:
            How many each has, without those that begin and end a text.
        """
        return [len(ids) - self.added for ids in self.ids(words)] if words else []


class Inserted(NamedTuple):
    """Texts, and what was made of them.

    Args:
        plain: N strings.
        with_word: For each set of words N strings, with one of them in each.
        with_control: Likewise, with a control word of as many tokens in its place.
    """

    plain: list[str]
    with_word: list[list[str]]
    with_control: list[list[str]]


def insert_words(
    words: Words,
    texts: Sequence[str],
    sets: Sequence[Sequence[str]],
    vocabulary: Iterable[str],
    seed: int = 0,
) -> Inserted:
    """Put a word into each text, at a random place, and a control word into the same place.

    Each text has control words of its own, drawn at random from the vocabulary, as many as make up the tokens of the
    word: so that pairs of a text with the word and one with the control are independent of each other.

    Args:
        words: The tokenizer.
        texts: N strings.
        sets: Sets of words; of a set, texts take one after another.
        vocabulary: Texts with the words that controls are drawn from; those of a shape that a set has are left out.
        seed: Of places and controls.

    Returns:
        The texts.

    Raises:
        ValueError: If the vocabulary has no word of one token.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    taken = {token_shape(part) for each in sets for word in each for part in word.split()}
    known = {word for text in vocabulary for word in text.split() if token_shape(word) not in taken}
    drawn = draw.sample(sorted(known), min(len(known), _CONTROLS))
    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for word, length in zip(drawn, words.lengths(drawn), strict=True):
        by_length[length].append(word)
    if not by_length[1]:
        raise ValueError(
            "`texts` must hold a word of one token to serve as a control, they hold none: another "
            "tokenizer's?"
        )
    places = [draw.randint(0, len(text.split())) for text in texts]
    controls: dict[tuple[int, int], str] = {}  # one for each text and number of tokens
    with_word, with_control = [], []
    for each in sets:
        lengths = words.lengths(each)
        mine, its = [], []
        for row, (text, place) in enumerate(zip(texts, places, strict=True)):
            turn = row % len(each)
            key = row, lengths[turn]
            if key not in controls:
                controls[key] = _filled(lengths[turn], by_length, draw)
            mine.append(_put(text, each[turn], place))
            its.append(_put(text, controls[key], place))
        with_word.append(mine)
        with_control.append(its)
    return Inserted(list(texts), with_word, with_control)


def _put(text: str, word: str, place: int) -> str:
    found = text.split()
    return " ".join([*found[:place], word, *found[place:]])


def _filled(length: int, by_length: Mapping[int, list[str]], draw: random.Random) -> str:
    """Draw words that have so many tokens together, long ones as often as there are."""
    found: list[str] = []
    while length > 0:
        fitting = [word for n, some in by_length.items() if 0 < n <= length for word in some]
        word = draw.choice(fitting)
        length -= next(n for n, some in by_length.items() if word in some)
        found.append(word)
    return " ".join(found)
