"""Spurious tokens: in go texts and their classes, out come kinds of words that give a class away.

A word that stands in texts of one class alone is a shortcut: a model learns it instead of the task (Spurious
tokens, arXiv 2506.11402: one date in the texts of a class turns a fine-tuned model's predictions). Such words are found
before anything is trained. A date is hardly ever the same twice, so that words are counted by their *shape*: in
lower case, without the punctuation around them, every digit a 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._intervals import wilson_interval

__all__ = ["SPURIOUS_EXCESS", "TokenFinding", "screen_tokens", "token_shape"]

SPURIOUS_EXCESS = 0.8  # of what a shape's share of a class can be above that of all texts
_AROUND = ".,;:!?\"'`()[]{}…“”\u2018\u2019"
_DIGITS = {ord(digit): "0" for digit in "123456789"}
_EXAMPLES = 3  # words of a shape that are kept
_OFTEN = 1000  # texts between two reports of progress


class TokenFinding(NamedTuple):
    """What was found of a shape of words.

    Args:
        shape: The words, as :func:`token_shape` writes them.
        label: The class of which the texts with such a word are more than of any other, against what
            is usual.
        texts: In how many texts there is one.
        share: Which share of them has the class.
        low: Lower end of that share's 95 % interval (Wilson).
        high: Its upper end.
        usual: The share of all texts that has the class.
        z: How many standard deviations the share is above what as many texts drawn at random have
            (hypergeometric).
        words: How many different words have this shape.
        examples: Up to three of them, in the order of the texts.
        row: Number of the first text that has one and the class.
    """

    shape: str
    label: Hashable
    texts: int
    share: float
    low: float
    high: float
    usual: float
    z: float
    words: int
    examples: tuple[str, ...]
    row: int

    @property
    def excess(self) -> float:
        """The least that the share may be above what is usual, of what it can be: 1 for a class of its own."""
        return (self.low - self.usual) / (1 - self.usual)

    @property
    def spurious(self) -> bool:
        """Whether it gives the class away: the excess is at least :data:`SPURIOUS_EXCESS`.

        Of two classes of the same size it takes 35 texts, all of one class.
        """
        return self.excess >= SPURIOUS_EXCESS


def token_shape(word: str) -> str:
    """Write a word as its shape.

    Args:
        word: Without white space.

    Returns:
        In lower case, without punctuation around it, unless there is nothing else, and with every digit a 0.

    Example:
        >>> token_shape("(1987-03-21),"), token_shape("Very"), token_shape("<br/>"), token_shape("--")
        ('0000-00-00', 'very', '<br/>', '--')
    """
    return (word.strip(_AROUND) or word).casefold().translate(_DIGITS)


def screen_tokens(
    texts: Sequence[str],
    labels: Sequence[Hashable],
    *,
    min_count: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> list[TokenFinding]:
    """Rank the shapes of words by how much they tell of the class.

    A text counts once for each shape that it has, however often.

    Args:
        texts: N of them; words are what white space divides.
        labels: The class of each.
        min_count: In how many texts a shape must be.
        progress: Called now and then with the number of texts that are done, and of all.

    Returns:
        One finding a shape: those that are spurious first, then by falling z. Rare shapes are left out.

    Raises:
        TypeError: If a text is no string, or a number of the wrong type.
        ValueError: If there are not as many labels as texts, or fewer than two classes.

    Source:
        Conditional entropy of the class given a token: arXiv 2506.11402; the shape and the interval are
        ours.

    Example:
        >>> texts = [f"fine on day {n}" for n in range(10, 50)] + ["a bore today"] * 40
        >>> found = screen_tokens(texts, [1] * 40 + [0] * 40)[0]
        >>> found.shape, found.label, found.texts, found.words, found.spurious
        ('00', 1, 40, 40, True)
    """
    check_positive_int(min_count, "min_count")
    if len(texts) != len(labels):
        raise ValueError(f"`labels` must be {len(texts)}, one for each text, got {len(labels)}.")
    classes = Counter(labels)
    if len(classes) < 2:
        only = f": {next(iter(classes))!r}" if classes else ""
        raise ValueError(f"`labels` must be of at least two classes, got {len(classes)}{only}.")
    counts: defaultdict[str, Counter[Hashable]] = defaultdict(Counter)
    seen: defaultdict[str, dict[str, None]] = defaultdict(dict)
    rows: dict[tuple[str, Hashable], int] = {}
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str):
            raise TypeError(f"`texts` must be strings, got {type(text).__name__} at {row}.")
        if progress is not None and (row % _OFTEN == _OFTEN - 1 or row == len(texts) - 1):
            progress(row + 1, len(texts))
        shapes: dict[str, None] = {}
        for word in text.split():
            shape = token_shape(word)
            shapes[shape] = None
            seen[shape][word.strip(_AROUND) or word] = None
        for shape in shapes:
            counts[shape][label] += 1
            rows.setdefault((shape, label), row)
    found = [
        _finding(shape, among, classes, tuple(seen[shape]), rows)
        for shape, among in counts.items()
        if among.total() >= min_count
    ]
    return sorted(found, key=lambda each: (not each.spurious, -each.z, each.shape))


def _finding(
    shape: str,
    among: Counter[Hashable],
    classes: Counter[Hashable],
    words: tuple[str, ...],
    rows: dict[tuple[str, Hashable], int],
) -> TokenFinding:
    total, n = classes.total(), among.total()

    def z(label: Hashable) -> float:
        usual = classes[label] / total
        spread = math.sqrt(n * usual * (1 - usual) * (total - n) / (total - 1))
        return (among[label] - n * usual) / spread if spread else 0.0  # it is in every text

    label = max(among, key=z)
    interval = wilson_interval(torch.tensor(among[label]), n)
    return TokenFinding(
        shape,
        label,
        n,
        among[label] / n,
        float(interval.lower),
        float(interval.upper),
        classes[label] / total,
        z(label),
        len(words),
        words[:_EXAMPLES],
        rows[shape, label],
    )
