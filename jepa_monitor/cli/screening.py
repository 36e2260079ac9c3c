"""Texts before they are trained on: in goes a file of texts and classes, out comes which words give a class away."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from jepa_monitor.functional.token_screen import TokenFinding

__all__ = ["Screening", "read_table", "screen"]

_KINDS = (".jsonl", ".csv", ".tsv")
_AROUND = 40  # letters of a text before a word and behind it


class Screening(NamedTuple):
    """What was found.

    Args:
        facts: What to say of it, by name.
        table: A row for each shape of words, those that give a class away first.
    """

    facts: list[tuple[str, str]]
    table: pa.Table


def screen(
    texts: str,
    label: str = "label",
    text: str = "text",
    out: str | None = None,
    min_count: int = 10,
) -> Screening:
    """Find words that give the class of a text away, before a model learns them instead of the task.

    Words are counted by their shape, every digit a 0: no date is the same twice.

    Args:
        texts: A file: .jsonl (an object a line), .csv or .tsv (with names in the first line).
        label: The column with the classes.
        text: The column with the texts.
        out: Where the table of all shapes goes too: .parquet, .csv or .jsonl; default: nowhere.
        min_count: In how many texts a shape must be.

    Returns:
        The table and what to know of it.

    Raises:
        ValueError: If the file cannot be read so, a column is missing, or there is only one class.
    """
    import pyarrow as pa

    from jepa_monitor._files import check_place
    from jepa_monitor.cli.console import Bars, stderr_console
    from jepa_monitor.cli.tables import check_format, with_info, write_table
    from jepa_monitor.functional.token_screen import screen_tokens

    place = None if out is None else check_format(out)
    if place is not None:
        check_place(place, "out")
    with Bars(stderr_console(), disable=False) as bars:
        kept, classes, empty = read_table(Path(texts), text, label, partial(bars.update, "texts"))
        if not kept:
            raise ValueError(f"`texts`: {texts!r} has no text that is not empty.")
        found = screen_tokens(
            kept, classes, min_count=min_count, progress=partial(bars.update, "words")
        )
    columns: dict[str, list[Any]] = {
        "shape": [each.shape for each in found],
        "label": [str(each.label) for each in found],
        "texts": [each.texts for each in found],
        "share": [each.share for each in found],
        "share_low": [each.low for each in found],
        "share_high": [each.high for each in found],
        "usual": [each.usual for each in found],
        "z": [each.z for each in found],
        "spurious": [each.spurious for each in found],
        "words": [each.words for each in found],
        "examples": [" ".join(each.examples) for each in found],
        "text": [_around(kept[each.row], each) for each in found],
    }
    named = Counter(map(str, classes))
    odd = sum(each.spurious for each in found)
    facts = [
        ("texts", f"{len(kept)} of {texts}" + (f"; {empty} are empty" if empty else "")),
        ("classes", ", ".join(f"{name} ({count})" for name, count in _most(named))),
        ("shapes of words", f"{len(found)} in at least {min_count} texts"),
        ("give a class away", _verdict(odd)),
    ]
    table = with_info(pa.table(columns), {"facts": dict(facts)})
    if place is not None:
        write_table(table, place)
    return Screening(facts, table)


def _verdict(odd: int) -> str:
    if not odd:
        return (
            "none by itself: none is in so many texts of one class alone that at least 80 % of what its "
            "share can be above the usual is sure"
        )
    return f"{odd}: look at their texts before you train, and at where they come from"


def _most(named: Counter[str], shown: int = 6) -> list[tuple[str, int]]:
    """Take the largest classes, and how many texts the others have."""
    first = named.most_common(shown)
    rest, texts = len(named) - len(first), named.total() - sum(count for _, count in first)
    return [*first, (f"{rest} others", texts)] if rest else first


def _around(text: str, finding: TokenFinding) -> str:
    """Show a word where it stands."""
    from jepa_monitor.functional.token_screen import token_shape

    words = text.split()
    place = next(n for n, word in enumerate(words) if token_shape(word) == finding.shape)
    before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
    start = f"…{before[-_AROUND:]} " if len(before) > _AROUND else f"{before} " if before else ""
    end = f" {after[:_AROUND]}…" if len(after) > _AROUND else f" {after}" if after else ""
    return f"{start}{words[place]}{end}"


def read_table(
    path: Path, text: str, label: str, tell: Callable[[int, int], None]
) -> tuple[list[str], list[Any], int]:
    """Read texts and classes.

    Args:
        path: A file of .jsonl, .csv or .tsv.
        text: The column of the texts.
        label: That of the classes.
        tell: Called now and then with the line that is read and the number of all.

    Returns:
        Texts, their classes, and how many texts were left out since they are empty.

    Raises:
        ValueError: If the file cannot be read so, or a column is missing.
    """
    if path.suffix not in _KINDS:
        raise ValueError(f"`texts` must be a file of {', '.join(_KINDS)}, got {str(path)!r}.")
    if not path.is_file():
        raise ValueError(f"`texts`: there is no file {str(path)!r}.")
    texts, labels, empty = [], [], 0
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    for line, row in _rows(path):
        if line % 1000 == 0 or line == lines:
            tell(line, lines)
        for column, argument in ((text, "text"), (label, "label")):
            if row.get(column) is None:
                has = ", ".join(map(str, row)) or "nothing"
                raise ValueError(
                    f"`{argument}`: line {line} of {str(path)!r} has no {column!r}; it has {has}."
                )
        said, name = row[text], row[label]
        if not isinstance(said, str):
            raise ValueError(  # noqa: TRY004 - the file is wrong, not the argument
                f"`text`: {text!r} in line {line} of {str(path)!r} is no string but "
                f"{type(said).__name__}."
            )
        if not isinstance(name, (str, int, float)):
            raise ValueError(  # noqa: TRY004 - as above
                f"`label`: {label!r} in line {line} of {str(path)!r} must be a word or a number, got "
                f"{type(name).__name__}."
            )
        if not said.strip():
            empty += 1
            continue
        texts.append(said)
        labels.append(name)
    return texts, labels, empty


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            if path.suffix == ".jsonl":
                for line, words in enumerate(file, 1):
                    if not words.strip():
                        continue
                    row = json.loads(words)
                    if not isinstance(row, dict):
                        raise ValueError(  # noqa: TRY004 - as above
                            f"`texts`: line {line} of {str(path)!r} is no object in braces."
                        )
                    yield line, row
                return
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise ValueError(f"`texts`: {str(path)!r} cannot be read: {error}.") from error
