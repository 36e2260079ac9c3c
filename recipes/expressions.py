"""English descriptions of lines and the regular expressions that match them, drawn by a grammar.

What NL-RX (Locascio et al. 2016) is made of, on which LLM-JEPA (arXiv 2509.14252) was tried, but with expressions that
Python's ``re`` compiles: a line is described if ``re.fullmatch`` matches it. To describe more, add a form here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# In a form, A, B and C stand for atoms, P and Q for phrases, N for a number.
ATOMS: dict[str, tuple[str, ...]] = {
    "[AEIOUaeiou]": ("a vowel",),
    "[0-9]": ("a number", "a digit"),
    "[A-Z]": ("a capital letter", "an upper-case letter"),
    "[a-z]": ("a small letter", "a lower-case letter"),
    "[A-Za-z]": ("a letter",),
    ".": ("a character",),
    "dog": ("the string dog",),
    "truck": ("the string truck",),
    "ring": ("the string ring",),
}
NUMBERS = {"{2,}": "two", "{3,}": "three", "{4,}": "four", "{5,}": "five"}
RARE_SUFFIX = ".* .*"


class Form(NamedTuple):
    """A kind of phrase or line.

    Args:
        words: Ways to describe it.
        tokens: Its expression.
        weight: How often it is drawn, relative to the others.
    """

    words: tuple[str, ...]
    tokens: str
    weight: float


SHORT = (
    Form(("A",), "A", 4),
    Form(("A or B", "either A or B"), "( A | B )", 3),
    Form(("A followed by B", "A and right after it B"), "A B", 3),
    Form(("A before B", "A and later B"), "A .* B", 3),
    Form(("A N or more times", "at least N times A"), "( A ) N", 2),
)
LONG = (
    Form(("A before B before C", "A and later B and later C"), "A .* B .* C", 2),
    Form(("A followed by B followed by C",), "A B C", 2),
    Form(("A or B or C", "either A or B or C"), "( A | B | C )", 2),
    Form(("either A or B N or more times",), "( A | B ) N", 2),
    Form(("A followed by either B or C",), "A ( B | C )", 2),
    Form(("either A or B before C",), "( A | B ) .* C", 2),
)
LINES = (
    Form(
        ("lines with P", "lines that contain P", "lines containing P", "lines that have P"),
        ".* P .*",
        5,
    ),
    Form(("lines starting with P", "lines that begin with P"), "P .*", 5),
    Form(("lines ending with P", "lines that end in P"), ".* P", 5),
    Form(("lines without P", "lines that do not contain P"), "(?! .* P ) .*", 3),
    Form(("lines with S and with T", "lines that contain both S and T"), "(?= .* S ) .* T .*", 3),
    Form(("lines starting with S and ending with T",), "S .* T", 3),
    # The rare form: its suffix is no other's.
    Form(("lines starting with something that contains P",), ".* P .* .*", 1),
)


class Pair(NamedTuple):
    """A description and its expression.

    Args:
        description: Words, with blanks between them.
        expression: Tokens, with blanks between them.
    """

    description: str
    expression: str

    @property
    def pattern(self) -> str:
        """The expression as ``re`` takes it."""
        return self.expression.replace(" ", "")

    @property
    def rare(self) -> bool:
        """Whether it ends in the rarest suffix."""
        return is_rare(self.pattern)


def is_rare(pattern: str) -> bool:
    """Say whether an expression ends in the rarest suffix, ``.*.*``.

    Args:
        pattern: The expression, without blanks.

    Returns:
        Whether it does.
    """
    return pattern.endswith(RARE_SUFFIX.replace(" ", ""))


def draw_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Draw pairs; no two have one description, and no two one expression.

    Args:
        count: How many; of more than about 50,000 the short forms have all been drawn.
        seed: Of the draw. Of two counts the fewer pairs are the first of the more.

    Returns:
        The pairs.

    Raises:
        ValueError: If ``count`` is less than 1.

    Example:
        >>> draw_pairs(2)[1].description
        'lines that have a character'
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    draw = random.Random(seed)  # noqa: S311 - it keeps no secret
    pairs: list[Pair] = []
    descriptions, expressions = set[str](), set[str]()
    while len(pairs) < count:
        pair = _line(draw)
        if pair.description not in descriptions and pair.expression not in expressions:
            descriptions.add(pair.description)
            expressions.add(pair.expression)
            pairs.append(pair)
    return pairs


def vocabulary() -> list[str]:
    """List all words and tokens that pairs may have, in a fixed order.

    Returns:
        Without placeholders, without repeats.
    """
    forms = (*SHORT, *LONG, *LINES)
    texts: Iterable[str] = (
        *(word for form in forms for word in form.words),
        *(form.tokens for form in forms),
        *(word for words in ATOMS.values() for word in words),
        *ATOMS,
        *NUMBERS.values(),
        *NUMBERS,
    )
    words = dict.fromkeys(word for text in texts for word in text.split())
    return [word for word in words if len(word) > 1 or not word.isupper()]


def _line(draw: random.Random) -> Pair:
    form = _chosen(draw, LINES)
    filling: dict[str, Pair] = {}
    for place, kinds in (("P", (*SHORT, *LONG)), ("S", SHORT), ("T", SHORT)):
        if place in form.tokens.split():
            filling[place] = _phrase(draw, kinds)
    return _filled(draw, form, filling)


def _phrase(draw: random.Random, kinds: Sequence[Form]) -> Pair:
    form = _chosen(draw, kinds)
    filling: dict[str, Pair] = {}
    for place in ("A", "B", "C"):
        # An alternative to itself is none.
        token = draw.choice([each for each in ATOMS if all(each != p.expression for p in filling.values())])  # fmt: skip
        filling[place] = Pair(draw.choice(ATOMS[token]), token)
    number = draw.choice(list(NUMBERS))
    return _filled(draw, form, {**filling, "N": Pair(NUMBERS[number], number)})


def _chosen(draw: random.Random, forms: Sequence[Form]) -> Form:
    return draw.choices(forms, [form.weight for form in forms])[0]


def _filled(draw: random.Random, form: Form, filling: dict[str, Pair]) -> Pair:
    words = draw.choice(form.words).split()
    return Pair(
        " ".join(filling[w].description if w in filling else w for w in words),
        " ".join(filling[t].expression if t in filling else t for t in form.tokens.split()),
    )
