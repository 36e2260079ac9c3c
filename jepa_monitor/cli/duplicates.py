"""Copies among images: in go their marks, out come groups of the same and of nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

__all__ = ["Copy", "find_copies"]

_BITS = 3  # of 64 that may differ; of four parts of 16 bits one is then the same
_PART = 16


class Copy(NamedTuple):
    """An image that is another's copy.

    Args:
        group: Number of the group of copies, from 0 in the order of their first images.
        first: The first image of the group.
        exact: Whether its pixels are those of an earlier image of the group.
    """

    group: int
    first: int
    exact: bool


def find_copies(
    pixels: Sequence[bytes], gradients: Sequence[int], plain: Sequence[bool]
) -> dict[int, Copy]:
    """Group images that are the same, or nearly.

    Nearly the same are those whose difference hashes differ in at most 3 of 64 bits, directly or by
    way of others. Every such pair is found: of four parts of a hash one at least is then equal.

    Args:
        pixels: Digest of each image; empty for one that was not looked at, which is no copy.
        gradients: Difference hash of each.
        plain: Which ones have next to nothing to tell them apart by; they can only be the same.

    Returns:
        The images that have a copy, the first of each group included.
    """
    parent = list(range(len(pixels)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    def join(rows: Iterable[int]) -> None:
        first, *others = (root(row) for row in rows)
        for other in others:
            parent[max(first, other)] = first = min(first, other)

    same = _gathered((row, mark) for row, mark in enumerate(pixels) if mark)
    for rows in same:
        join(rows)
    looked = [row for row in range(len(pixels)) if pixels[row] and not plain[row]]
    for rows in _gathered((row, gradients[row]) for row in looked):
        join(rows)
    single = {
        gradients[row]: row for row in reversed(looked)
    }  # each hash once: sets have many equal
    for part in range(64 // _PART):
        shift = part * _PART
        for rows in _gathered((row, mark >> shift & 0xFFFF) for mark, row in single.items()):
            for position, row in enumerate(rows):
                for other in rows[:position]:
                    if (gradients[row] ^ gradients[other]).bit_count() <= _BITS:
                        join((row, other))
    groups = _gathered((row, root(row)) for row in range(len(pixels)))
    later = {row for rows in same for row in rows[1:]}
    return {
        row: Copy(number, rows[0], row in later)
        for number, rows in enumerate(sorted(groups))
        for row in rows
    }


def _gathered(pairs: Iterable[tuple[int, Hashable]]) -> list[list[int]]:
    """Bring together rows of one mark, where there are several."""
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, mark in pairs:
        found[mark].append(row)
    return [sorted(rows) for rows in found.values() if len(rows) > 1]
