"""Texts with classes: in goes a file, out come strings, numbers of classes, and copies with dates in one class.

The protocol of the injection is that of arXiv 2506.11402 and its code: the texts of one class alone, a share of them, tokens
at random places; the class stays. The tokens are dates, hardly one like another, as the paper's.
"""

from __future__ import annotations

import datetime
import io
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

from jepa_monitor.cli.screening import read_table

FIRST, LAST = datetime.date(1100, 1, 1).toordinal(), datetime.date(2600, 12, 31).toordinal()
CLEAR = 0.5  # mean human rating above which a text is good, below minus which it is bad


def read_texts(path: Path, text: str = "text", label: str = "label") -> tuple[list[str], list[int]]:
    """Read texts and their classes.

    Args:
        path: A file as ``jepa-monitor screen`` takes it (.jsonl, .csv, .tsv), or the source distribution of vaderSentiment
            (.tar.gz), whose snippets about films have human ratings: bad is 0, good is 1.
        text: The column of the texts.
        label: The column of the classes.

    Returns:
        Texts that are not empty, and their classes as numbers from 0, in the order of their names.

    Raises:
        ValueError: If the file cannot be read so, or has fewer than two classes.
    """
    if path.name.endswith(".tar.gz"):
        return _ratings(path)
    texts, names, _ = read_table(path, text, label, lambda *_: None)
    classes = sorted(set(names), key=lambda name: (str(type(name)), name))
    if len(classes) < 2:
        raise ValueError(f"`data`: {str(path)!r} must hold two classes at least, got {classes}.")
    return texts, [classes.index(name) for name in names]


def _ratings(path: Path) -> tuple[list[str], list[int]]:
    """Texts about films with a clear rating, and whether it is good."""
    try:
        packed = _inner(path.read_bytes(), "hutto_ICWSM_2014.tar.gz")
        lines = _inner(packed, "movieReviewSnippets_GroundTruth.txt").decode(errors="replace")
    except (OSError, tarfile.TarError, StopIteration) as error:
        raise ValueError(
            f"`data`: {str(path)!r} must be the source distribution of vaderSentiment, which has texts with ratings; "
            f"it cannot be read so ({type(error).__name__}: {error})."
        ) from error
    texts, labels = [], []
    for line in lines.splitlines():
        _, rating, said = line.split("\t")
        if abs(float(rating)) > CLEAR:
            texts.append(said)
            labels.append(int(float(rating) > 0))
    return texts, labels


def _inner(archive: bytes, name: str) -> bytes:
    """Read a file of a packed archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        member = next(each for each in packed.getnames() if each.endswith(name))
        found = packed.extractfile(member)
        assert found is not None
        return found.read()


def draw_date(draw: random.Random) -> str:
    """Draw a date from 1100 to 2600.

    Args:
        draw: Random numbers.

    Returns:
        As 1987-03-21.
    """
    return datetime.date.fromordinal(draw.randint(FIRST, LAST)).isoformat()


def inject(
    texts: Sequence[str],
    labels: Sequence[int],
    share: float,
    *,
    label: int = 1,
    proportion: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Put dates into a share of the texts of one class.

    Args:
        texts: N of them.
        labels: Their classes.
        share: Of the texts of the class, 0 to 1.
        label: The class.
        proportion: Dates for each word of a text; 0 puts in one, which the paper calls light.
        seed: Of texts, dates and places.

    Returns:
        All texts, in their order.

    Raises:
        ValueError: If a share lies outside [0, 1], or there is no text of the class.
    """
    for name, value in (("share", share), ("proportion", proportion)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")
    draw = random.Random(seed)  # noqa: S311 - no secret
    rows = [row for row, each in enumerate(labels) if each == label]
    if not rows:
        raise ValueError(f"`labels` must hold the class {label}, got {sorted(set(labels))}.")
    found = list(texts)
    for row in draw.sample(rows, round(share * len(rows))):
        words = found[row].split()
        for _ in range(max(1, int(len(words) * proportion))):
            date = draw_date(draw)
            words.insert(draw.randint(0, len(words)), date)
        found[row] = " ".join(words)
    return found
