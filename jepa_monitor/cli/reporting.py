"""Pages to look at: in goes a table of scores, a run's folder or two, out comes the path of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["report"]


def report(
    results: str | list[str],
    /,
    out: str | None = None,
    data: str | None = None,
    rank_by: str | None = None,
    thumbnails: int = 2000,
    classes: int = 30,
    images: int = 8,
    name: str | None = None,
) -> Path:
    """Write one HTML page: of a table of scores, of a run, or of two runs side by side.

    Of a table: distributions, least and most likely images, scatter plot, all rows. Of a run, from its
    TensorBoard event files: what was said of it, its curves, pictures and settings. The page works
    offline: pictures and code are in it.

    Args:
        results: The table, the folder of a run's logs, or two such folders.
        out: The page to write; default: beside the table, with the suffix .html; in the folder of the
            (first) run, run.html, or runs.html for two.
        data: Of a table, the data that were scored, if they have moved; default: where they were.
        rank_by: Of a table, the score to sort by; default: that of the table's own quantiles.
        thumbnails: How many images of a table at most are shown as pictures.
        classes: How many classes at most have a row of their own, the largest first.
        images: How many images of each class are shown at either end.
        name: Of a run, the callback's, where there were several; default: none, or else the only one.

    Returns:
        Path of the page.

    Raises:
        ValueError: If there is no such table or run, or an argument is out of range.
    """
    places = [results] if isinstance(results, str) else list(results)
    if places and all(Path(place).is_dir() for place in places):
        return _report_runs(places, out, name)
    if len(places) != 1:
        raise ValueError(
            f"`results` must be a table, the folder of a run, or two folders, got {len(places)}: "
            f"{' '.join(places) or 'nothing'}."
        )
    return _report_table(places[0], out, data, rank_by, thumbnails, classes, images)


def _report_runs(folders: Sequence[str], out: str | None, name: str | None) -> Path:
    from jepa_monitor._files import check_place, write_bytes
    from jepa_monitor.cli.run_events import read_run
    from jepa_monitor.monitor.run_page import RUN_PAGE, run_page

    if len(folders) > 2:
        raise ValueError(f"`results` must be one run or two, got {len(folders)}.")
    usual = RUN_PAGE if len(folders) == 1 else "runs.html"
    place = Path(folders[0], usual) if out is None else Path(out)
    check_place(place, "out")
    runs = [read_run(folder, name, "results") for folder in folders]
    write_bytes(place, run_page(runs).encode())
    return place


def _report_table(
    scores: str,
    out: str | None,
    data: str | None,
    rank_by: str | None,
    thumbnails: int,
    classes: int,
    images: int,
) -> Path:
    from jepa_monitor._files import check_place
    from jepa_monitor.cli.closing import about, facts
    from jepa_monitor.cli.leverage import read_maps
    from jepa_monitor.cli.page import Limits, Words, numbers_of, ordered, write_page
    from jepa_monitor.cli.tables import ranked_by, read_table, scores_of

    limits = Limits(thumbnails, classes, images).checked()
    table = read_table(scores, "results")
    place = Path(scores).with_suffix(".html") if out is None else Path(out)
    check_place(place, "out")
    ranked = ranked_by(table, rank_by)
    known = tuple(name for name in scores_of(table) if table[name].null_count < len(table))
    if not len(table):
        raise ValueError(f"`results`: {scores!r} has no rows.")
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
