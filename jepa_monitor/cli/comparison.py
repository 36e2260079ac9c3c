"""Two tables of the same images: in go both, out comes how far they agree and where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Comparison", "compare"]


class Comparison(NamedTuple):
    """How far two tables agree.

    Args:
        facts: What to say of them, by name.
        table: The images of both, by falling difference: ``path``, ``label``, ``first`` and
            ``second`` (quantiles, from 0 for the least likely to 1) and ``difference``, the second
            minus the first.
    """

    facts: list[tuple[str, str]]
    table: pa.Table


def compare(
    first: str,
    second: str,
    out: str | None = None,
    rank_by: str | None = None,
    page: str | None = None,
    data: str | None = None,
) -> Comparison:
    """Compare two models on the images that both have scored, by their order alone.

    Scores of two encoders have no common scale; the quantiles of their images have.

    Args:
        first: A table of scores.
        second: Another, of the same data.
        out: Where a table of all images goes, those on which the models differ most first; default:
            nowhere.
        rank_by: The score to compare; default: that of the first table's own quantiles.
        page: Where an HTML page goes, with the images on which the models differ most, by class;
            default: nowhere.
        data: For the page, the images, if they have moved; default: where they were.

    Returns:
        The comparison.

    Raises:
        ValueError: If a table cannot be read, or both have fewer than 3 images in common.
    """
    import numpy as np
    import pyarrow as pa
    import torch

    from jepa_monitor._files import check_place
    from jepa_monitor.cli.closing import about
    from jepa_monitor.cli.page import Limits, Words, write_page
    from jepa_monitor.cli.tables import (
        check_format,
        info_of,
        ranked_by,
        read_table,
        with_info,
        write_table,
    )
    from jepa_monitor.functional._intervals import midranks
    from jepa_monitor.functional.calibration import density_agreement

    for path, argument in ((out, "out"), (page, "page")):
        if path is not None:
            check_place(Path(path), argument)
    place = None if out is None else check_format(out)
    tables = [
        read_table(path, argument) for path, argument in ((first, "first"), (second, "second"))
    ]
    ranked = ranked_by(tables[0], rank_by)
    ranked_by(tables[1], ranked)
    found = [
        {path: value for path, value in zip(*columns, strict=True) if value is not None}
        for columns in ((table["path"].to_pylist(), table[ranked].to_pylist()) for table in tables)
    ]
    paths = [path for path in found[0] if path in found[1]]
    if len(paths) < 3:
        raise ValueError(
            f"`first` and `second` must have at least 3 scored images in common, got {len(paths)} "
            f"of {len(tables[0])} and {len(tables[1])}."
        )
    values = [torch.tensor([one[path] for path in paths], dtype=torch.float64) for one in found]
    quantiles = [(midranks(one) / len(paths)).numpy() for one in values]
    difference = quantiles[1] - quantiles[0]
    order = np.argsort(-np.abs(difference), kind="stable")
    labels = {}
    if "label" in tables[0].column_names:
        columns = (tables[0]["path"].to_pylist(), tables[0]["label"].to_pylist())
        labels = dict(zip(*columns, strict=True))
    table = pa.table(
        {
            "path": pa.array([paths[i] for i in order], pa.string()),
            "label": pa.array([labels.get(paths[i]) for i in order], pa.string()),
            "first": quantiles[0][order],
            "second": quantiles[1][order],
            "difference": difference[order],
        }
    )
    if place is not None:
        write_table(table, place)
    facts = [
        ("images in common", f"{len(paths)} of {len(tables[0])} and {len(tables[1])}"),
        ("Spearman correlation", f"{density_agreement(*values).spearman.item():.3f}"),
    ]
    for share in (0.01, 0.05):
        count = max(round(share * len(paths)), 1)
        least = [set(np.argsort(one, kind="stable")[:count].tolist()) for one in quantiles]
        common = len(least[0] & least[1])
        facts.append((f"among the least {share:.0%} of both", f"{common} of {count}"))
    if page is not None:
        words = Words(
            title="Where two models differ",
            about=f"first: {about(tables[0], first)}; second: {about(tables[1], second)}",
            facts=[("first", first), ("second", second), ("compared by", ranked), *facts],
            hint=(
                "Each model's quantiles, 0 for its least likely image and 1 for its most likely; "
                "difference: the second's minus the first's."
            ),
            ends=("likelier under the first", "likelier under the second"),
            axes=("first", "second"),
        )
        known = with_info(table, info_of(tables[0]) or info_of(tables[1]))
        write_page(
            Path(page),
            known,
            "difference",
            ("first", "second", "difference"),
            range(len(table)),
            words,
            Limits(),
            first,
            data,
        )
    return Comparison(facts, table)
