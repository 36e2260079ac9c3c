"""The page of a table of scores: in goes its path, out comes that of a page to look at."""

from __future__ import annotations

from pathlib import Path

__all__ = ["report"]


def report(
    scores: str,
    out: str | None = None,
    data: str | None = None,
    rank_by: str | None = None,
    thumbnails: int = 2000,
    classes: int = 30,
    images: int = 8,
) -> Path:
    """Write one HTML page: distributions, least and most likely images, scatter plot, table.

    The page works offline: pictures and code are in it.

    Args:
        scores: The table.
        out: The page to write; default: beside the table, with the suffix .html.
        data: The data that were scored, if they have moved; default: where they were.
        rank_by: The score to sort by; default: that of the table's own quantiles.
        thumbnails: How many images at most are shown as pictures.
        classes: How many classes at most have a row of their own, the largest first.
        images: How many images of each class are shown at either end.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the table cannot be read, or an argument is out of range.
    """
    from jepa_monitor._files import check_place
    from jepa_monitor.cli.closing import about, facts
    from jepa_monitor.cli.leverage import read_maps
    from jepa_monitor.cli.page import Limits, Words, numbers_of, ordered, write_page
    from jepa_monitor.cli.tables import ranked_by, read_table, scores_of

    limits = Limits(thumbnails, classes, images).checked()
    table = read_table(scores)
    place = Path(scores).with_suffix(".html") if out is None else Path(out)
    check_place(place, "out")
    ranked = ranked_by(table, rank_by)
    known = tuple(name for name in scores_of(table) if table[name].null_count < len(table))
    if not len(table):
        raise ValueError(f"`scores`: {scores!r} has no rows.")
    others = [name for name in ("mahalanobis", *known) if name in known and name != ranked]
    words = Words(
        title="Likely, unlikely and odd images",
        about=about(table, scores),
        facts=facts(table, ranked),
        hint="Every score is higher for what is more usual.",
        ends=("least likely", "most likely"),
        axes=(others[0] if others else ranked, ranked),
    )
    order = ordered(range(len(table)), numbers_of(table, ranked))
    maps = read_maps(scores, table, order)
    return write_page(place, table, ranked, known, order, words, limits, scores, data, maps)
