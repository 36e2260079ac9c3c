"""The closing table: in goes a table of scores, out comes what to know of it at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from jepa_monitor.cli.tables import NEXT_BEST, info_of
from jepa_monitor.functional._intervals import clopper_pearson_interval

__all__ = ["about", "advice_table", "closing_table", "comparison_table", "facts", "screening_table"]

_LEAST = 10
_FALSE = 0.1  # of a list of outliers, on average


def about(table: pa.Table, path: str) -> str:
    """Say what was scored by what.

    Args:
        table: The scores.
        path: Of the table.

    Returns:
        A line; the table's name if no more is known of it.
    """
    info = info_of(table)
    if not info:
        return Path(path).name
    identity = info["identity"]
    against = identity["reference"]
    compared = f", compared with {against['name']}" if against else ""
    return f"{identity['data']['name']} under {identity['model']['name']}{compared}"


def facts(table: pa.Table, rank_by: str) -> list[tuple[str, str]]:
    """Say in words what a table of scores holds.

    Args:
        table: The scores.
        rank_by: The score to sort by.

    Returns:
        Pairs of a name and what to say.
    """
    info = info_of(table)
    found = [("images scored", str(len(table)))]
    if info:
        found += [
            ("skipped", f"{info['skipped']} could not be read" if info["skipped"] else "none"),
            ("not images by name", str(info["ignored"])),
            ("method", f"{info['method']}, compared with {_reference(info)}"),
            ("ranked by", _ranked(table, info, rank_by)),
        ]
    converted = (
        sum(1 for note in table["note"].to_pylist() if note) if "note" in table.column_names else 0
    )
    if converted:
        found.append(("converted", f"{converted}, see `note`"))
    values = torch.tensor(table[rank_by].drop_null().to_pylist(), dtype=torch.float64)
    missing = table[rank_by].null_count
    if missing:
        found.append((f"{rank_by} not finite", str(missing)))
    if len(values):
        levels = torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64)
        ranks = (levels * (len(values) - 1)).round().long()  # not torch.quantile: it has a limit
        numbers = ", ".join(f"{value:.1f}" for value in values.sort().values[ranks].tolist())
        found.append((f"{rank_by}: min, 5, 50, 95 %, max", numbers))
    if "outlier" in table.column_names:
        found.append(_outliers(table, info))
    found += _unlike(table, info)
    found += _findings(table)
    return found + _preconditions(info)


def _reference(info: dict[str, Any]) -> str:
    scored = info.get("reference_scored")
    return f"{info['reference']} images" + (f", {scored} of them scored" if scored else "")


def _ranked(table: pa.Table, info: dict[str, Any], rank_by: str) -> str:
    """Name the score, and why it is not the one that tells outliers best."""
    best = NEXT_BEST[0]
    if rank_by == best:
        return rank_by
    if best not in table.column_names:
        return (
            f"{rank_by}: the table is of an earlier version and has no {best}, no p-values and no "
            "shares of the reference; score again with --overwrite to have them"
        )
    return f"{rank_by}, for want of {best}" if best in info.get("missing", {}) else rank_by


def _unlike(table: pa.Table, info: dict[str, Any]) -> list[tuple[str, str]]:
    """Compare the images with a reference of others, by the score that tells outliers."""
    tag = f"outliers/{info.get('outlier_by')}"
    if f"{tag}_low" not in info:
        return []
    share, low, high = (info[f"{tag}{end}"] for end in ("", "_low", "_high"))
    usual = "as usual" if low <= share <= high else "NOT as usual"
    said = f"{share:.1%}, {usual} ({low:.1%} to {high:.1%} in 95 % of cases if nothing is wrong)"
    found = [("below the reference's 5 %", said)]
    if "q_value" in table.column_names:
        listed = int(pc.sum(pc.less_equal(table["q_value"], _FALSE)).as_py() or 0)
        found.append(("listed, a tenth of them false", f"{listed}, see `q_value`"))
    return found


def _outliers(table: pa.Table, info: dict[str, Any]) -> tuple[str, str]:
    name = f"outliers by {info['outlier_by']}" if "outlier_by" in info else "outliers"
    known = len(table) - table["outlier"].null_count
    if not known:
        return name, f"cannot be said of {len(table)} images"
    count = int(pc.sum(table["outlier"]).as_py())
    low, high = clopper_pearson_interval(count, known)
    return name, f"{count} = {count / known:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _findings(table: pa.Table) -> list[tuple[str, str]]:
    """Count copies, suspect labels and bad pixels, where there are any."""
    found = []
    if "copies" in table.column_names and (count := len(table) - table["copies"].null_count):
        groups = len(pc.unique(table["copies"].drop_null()))
        found.append(("the same or nearly", f"{count} images in {groups} groups, see `copies`"))
    if "suspect_label" in table.column_names and (count := pc.sum(table["suspect_label"]).as_py()):
        found.append(("suspect labels", f"{count}, see `reason`"))
    if "quality" in table.column_names:
        flags = [flag for text in table["quality"].to_pylist() if text for flag in text.split(", ")]
        if flags:
            counts = (f"{flags.count(flag)} {flag}" for flag in sorted(set(flags)))
            found.append(("quality", ", ".join(counts)))
    return found


def _preconditions(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how far the scores can be read as densities."""
    found = []
    if info.get("void"):
        found.append(("normal law", f"void: {info['void']}; no {', '.join(info['left_out'])}"))
    found += [(f"no {name}", why) for name, why in info.get("missing", {}).items()]
    if "density/normality_p" in info:
        needed = f"cannot be said: it takes {info['density/precondition_needed']:.0f} images"
        held = {1.0: "yes", 0.0: "no", None: needed}[info.get("density/precondition")]
        effect, p_value = info["density/normality_effect"], info["density/normality_p"]
        found.append(("Gaussian embeddings", f"{held} (effect {effect:.3f}, p {p_value:.1g})"))
    if "density/polarity" in info:
        share, low, high = (info[f"density/polarity{end}"] for end in ("", "_low", "_high"))
        words = f"{share:.0%} score above their corrupted versions (95 % interval {low:.0%} to {high:.0%})"
        warning = ": INVERTED" if high < 0.5 else ": not known" if low <= 0.5 else ""
        found.append(("polarity", words + warning))
    return found


def closing_table(table: pa.Table, rank_by: str) -> RenderableType:
    """Lay out facts and the least likely images.

    Args:
        table: The scores.
        rank_by: The score to sort by.

    Returns:
        What rich can print.
    """
    summary = Table(show_header=False)
    for name, value in facts(table, rank_by):
        summary.add_row(Text(name), Text(value))
    order = pc.sort_indices(table, sort_keys=[(rank_by, "ascending")])
    least = Table("least likely", rank_by, "label")
    for row in table.take(order[:_LEAST]).to_pylist():
        value = row[rank_by]
        shown = "" if value is None else f"{value:.1f}"
        least.add_row(Text(repr(row["path"])[1:-1]), shown, Text(row.get("label") or ""))
    return Group(summary, least)


def comparison_table(facts: list[tuple[str, str]], table: pa.Table) -> RenderableType:
    """Lay out how far two models agree, and the images on which they differ most.

    Args:
        facts: Pairs of a name and what to say.
        table: The images, by falling difference.

    Returns:
        What rich can print.
    """
    summary = Table(show_header=False)
    for name, value in facts:
        summary.add_row(Text(name), Text(value))
    most = Table("differ most", "first", "second", "label")
    for row in table.slice(0, _LEAST).to_pylist():
        numbers = (f"{row['first']:.3f}", f"{row['second']:.3f}")
        most.add_row(Text(repr(row["path"])[1:-1]), *numbers, Text(row["label"] or ""))
    return Group(summary, most)


def screening_table(facts: list[tuple[str, str]], table: pa.Table) -> RenderableType:
    """Lay out which words give the class of a text away, and what comes next after them.

    Args:
        facts: Pairs of a name and what to say.
        table: A row for each shape of words, those that give a class away first.

    Returns:
        What rich can print.
    """
    summary = Table(show_header=False)
    for name, value in facts:
        summary.add_row(Text(name), Text(value))
    shape = Column("shape", min_width=12, overflow="fold")
    heads = (shape, "gives away", "texts", "share of the class", "usual", "z", "words", "such as")
    most = Table(*heads, caption="share with its 95 % interval; digits are written as 0")
    for row in table.slice(0, _LEAST).to_pylist():
        share = f"{row['share']:.1%} ({row['share_low']:.0%} to {row['share_high']:.0%})"
        away = row["label"] if row["spurious"] else ""
        told = (f"{row['usual']:.0%}", f"{row['z']:.1f}", str(row["words"]))
        style = "bold" if row["spurious"] else ""
        most.add_row(
            Text(row["shape"]), Text(away), str(row["texts"]), share, *told, Text(row["examples"]),
            style=style,
        )  # fmt: skip
    return Group(summary, most)


def advice_table(facts: list[tuple[str, str]], table: pa.Table) -> RenderableType:
    """Lay out what images suggest before anything is trained.

    Args:
        facts: Pairs of a name and what to say.
        table: A row for each setting tried.

    Returns:
        What rich can print.
    """
    summary = Table(show_header=False)
    for name, value in facts:
        summary.add_row(Text(name), Text(value))
    found = _patches(table) if "patch" in table.column_names else _objectives(table)
    return Group(summary, found)


def _patches(table: pa.Table) -> Table:
    columns = {
        "patch": "patch",
        "hidden": "mask",
        "length": "influence_length",
        "decay": "decay_length",
        "own patch": "in_patch",
        "explained": "explained",
        "rank": "rank",
        "length*": "hidden_influence_length",
        "explained*": "hidden_explained",
    }
    found = Table(*columns, caption="* of the map whose loss counts hidden patches alone")
    for row in table.to_pylist():
        shown = (row[name] for name in columns.values())
        cells = (
            "-" if x is None else f"{x:g}" if n < 2 else f"{x:.2f}" for n, x in enumerate(shown)
        )
        found.add_row(*cells)
    return found


def _objectives(table: pa.Table) -> Table:
    caption = "share of the signal that a code of held-out corrupted images tells, and 95 % of it"
    found = Table("alpha", "joint embedding", "reconstruction", caption=caption)
    for row in table.to_pylist():
        cells = [f"{row['alignment']:g}"]
        for name in ("joint_embedding", "reconstruction"):
            ends = [row[f"{name}{end}"] for end in ("", "_lower", "_upper")]
            told = None not in ends
            cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*ends) if told else "-")
        found.add_row(*cells)
    return found
