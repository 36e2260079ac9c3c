"""Words that may be shortcuts: in go texts and classes, or what a user names, out come candidates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.functional.token_screen import TokenFinding, screen_tokens
from jepa_monitor.probes.finding import batch_labels
from jepa_monitor.probes.images import collect_described, collect_images

__all__ = [
    "LEAST_TEXTS",
    "NO_WORD",
    "Candidate",
    "ShortcutArguments",
    "ShortcutSettings",
    "find_candidates",
    "given_candidates",
    "held_out_texts",
    "screened_candidates",
    "training_texts",
]

NO_WORD = "found no word in ten training texts or more, so it says nothing."
LEAST_TEXTS = 16  # that could turn; of fewer nothing is said


class ShortcutArguments(TypedDict, total=False):
    """The keyword arguments that become :class:`ShortcutSettings`, for type checkers."""

    max_samples: int
    max_candidates: int
    max_screened: int


@dataclass(frozen=True)
class ShortcutSettings:
    """How many texts and words are looked at.

    Args:
        max_samples: How many held-out texts, drawn at random; at least 16.
        max_candidates: How many words of the screen.
        max_screened: How many training texts are screened, drawn at random.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    max_samples: int = 128
    max_candidates: int = 3
    max_screened: int = 10_000

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive_int(getattr(self, field.name), field.name)
        if self.max_samples < LEAST_TEXTS:
            raise ValueError(
                f"`max_samples` must be at least {LEAST_TEXTS}, got {self.max_samples}."
            )


class Candidate(NamedTuple):
    """A word that may be a shortcut, or the words of a shape.

    Args:
        name: The word or the shape, for messages.
        words: What is put into texts, one after another.
        label: The class that it may stand for; ``None``: whichever it turns most texts to.
        rings: Whether it may be an alarm: it was given, or the screen calls it spurious. A word that merely
            is more frequent in a class, such as "bad" of bad films, turns predictions with good reason.
        finding: What the screen has found, if it is the screen's.
    """

    name: str
    words: tuple[str, ...]
    label: int | None
    rings: bool
    finding: TokenFinding | None = None


def held_out_texts(source: Any, count: int, name: str, seed: int = 0) -> Tensor:
    """Read texts, drawn at random: a set sorted by its classes begins with texts of one, of which none can turn.

    Args:
        source: A Dataset, a DataLoader, or what else :func:`~jepa_monitor.probes.images.collect_images` reads.
        count: How many at most.
        name: What the source is called in errors.
        seed: Of the draw.

    Returns:
        (N, T, 2).

    Raises:
        TypeError: If they are no texts.
    """
    return _texts(collect_images(source, count, shuffle_seed=seed), name)


def training_texts(source: Any, count: int, name: str = "reference") -> tuple[Tensor, ...]:
    """Read training texts and their classes in one pass.

    Args:
        source: A Dataset, a DataLoader, or what else :func:`~jepa_monitor.probes.images.collect_images` reads.
        count: How many at most, drawn at random where the source has a length.
        name: What the source is called in errors.

    Returns:
        Texts, (N, T, 2), and their classes, (N,), if every batch has them.

    Raises:
        TypeError: If they are no texts.
    """

    def describe(batch: Any, texts: int) -> dict[str, Tensor]:
        labels = batch_labels(batch)
        return {} if labels is None or len(labels) != texts else {"labels": labels}

    found, said = collect_described(source, count, describe, name=name, shuffle_seed=0)
    return (_texts(found, name), *said.values())


def _texts(found: Tensor, name: str) -> Tensor:
    if not is_texts(found):
        raise TypeError(
            f"`{name}` must hold texts, items or batches with `input_ids`, got a {found.dtype} tensor of shape "
            f"{tuple(found.shape)}."
        )
    return found


def find_candidates(
    texts: Sequence[str], labels: Sequence[Hashable], count: int, min_count: int = 10
) -> list[Candidate]:
    """Take the first words of the screen.

    Args:
        texts: Training texts.
        labels: Their classes, whole numbers from 0.
        count: How many candidates at most.
        min_count: In how many texts a shape must be.

    Returns:
        Candidates, those that the screen calls spurious first.
    """
    found = screen_tokens(texts, labels, min_count=min_count)[:count]
    return [
        Candidate(each.shape, each.examples, int(each.label), each.spurious, each)  # type: ignore[call-overload]
        for each in found
    ]


def screened_candidates(texts: Sequence[str], labels: Tensor | None, count: int) -> list[Candidate]:
    """Take the first words of the screen of a data set, if it has labels.

    Args:
        texts: Training texts.
        labels: Their classes, (N,); ``None``: the data have none.
        count: How many candidates at most.

    Returns:
        Candidates.

    Raises:
        ValueError: If there are no labels, or they are not the numbers of logits.
    """
    if labels is None:
        raise ValueError(
            "`candidates='auto'` needs training texts with labels, one whole number a text, under a name "
            "such as 'labels'; there are none. Pass `reference`, or `candidates`."
        )
    if int(labels.min()) < 0:
        raise ValueError(
            f"`reference` must have labels from 0, the number of a logit, got {int(labels.min())}."
        )
    return find_candidates(texts, labels.tolist(), count)


def given_candidates(given: Any) -> list[Candidate]:
    """Take words that a user names.

    Args:
        given: Words, or a dict of words and the class that each may stand for.

    Returns:
        Candidates.

    Raises:
        TypeError: If they are no words, or a class is no whole number.
        ValueError: If there is none, or one is empty.
    """
    if isinstance(given, str) or not isinstance(given, Sequence | Mapping):
        raise TypeError(
            "`candidates` must be 'auto', a list of words, or a dict of words and classes, got "
            f"{given!r}."
        )
    if not given:
        raise ValueError("`candidates` must hold a word at least, got none.")
    found = []
    for word in given:
        label = given[word] if isinstance(given, Mapping) else None
        if not isinstance(word, str):
            raise TypeError(f"`candidates` must be words, got {type(word).__name__}.")
        if not word.strip():
            raise ValueError("`candidates` must be words, got an empty one.")
        if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
            raise TypeError(
                f"`candidates` must name the class of {word!r} by its number, got {label!r}."
            )
        if label is not None and label < 0:
            raise ValueError(
                f"`candidates` must name the class of {word!r} by its number, from 0, got {label}."
            )
        found.append(Candidate(word.strip(), (word.strip(),), label, rings=True))
    return found
