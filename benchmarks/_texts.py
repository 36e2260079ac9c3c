"""Texts with human ratings: in goes the source of another package, out come texts and classes."""

from __future__ import annotations

import io
import pathlib
import tarfile


def _inner(archive: bytes, name: str) -> bytes:
    """Read a file of a packed archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        member = next(each for each in packed.getnames() if each.endswith(name))
        found = packed.extractfile(member)
        assert found is not None
        return found.read()


def read(path: pathlib.Path) -> tuple[list[str], list[int]]:
    """Texts about films with a clear rating, and whether it is good."""
    packed = _inner(path.read_bytes(), "hutto_ICWSM_2014.tar.gz")
    lines = _inner(packed, "movieReviewSnippets_GroundTruth.txt").decode(errors="replace")
    texts, labels = [], []
    for line in lines.splitlines():
        _, rating, text = line.split("\t")
        if abs(float(rating)) > 0.5:
            texts.append(text)
            labels.append(int(float(rating) > 0))
    return texts, labels
