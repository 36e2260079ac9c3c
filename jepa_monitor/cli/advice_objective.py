"""Joint embedding or reconstruction: in go words, out come what to compare, and a picture of the answer."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from jepa_monitor._checks import check_choice, check_positive_int

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

__all__ = ["ObjectiveSettings", "plot_objective"]

_VIEWS = ("crop", "flip", "colour")
_OTHERS = {"noise": 0.1, "inject": 1.0}


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """What to compare for an objective (objective).

    Args:
        augment: What views are made by, any of crop, flip, colour, noise:SD (of pixels in [0, 1];
            default .1) and inject:SEVERITY, the corruption once more (default 1); default: crop flip
            colour.
        corruption: What every image has suffered once, KIND:SEVERITY with fog, gaussian_noise,
            shot_noise or gaussian_blur and 1 … 5, as CIFAR-10-C has them; at ``side`` pixels.
        views: Views and corruptions drawn of an image, at least 2.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    augment: list[str] | None = None
    corruption: str = "fog:3"
    views: int = 4

    def __post_init__(self) -> None:
        if check_positive_int(self.views, "views") < 2:
            raise ValueError(f"`views` must be at least 2, got {self.views}.")
        if not self.steps:
            raise ValueError("`augment` must name at least one augmentation.")
        _ = self.parsed_corruption

    @property
    def parsed_corruption(self) -> tuple[str, int]:
        """Kind and severity."""
        # Here, for PyTorch is not loaded to print a command's help.
        from jepa_monitor.probes.common_corruptions import parse_corruption

        return parse_corruption(self.corruption, "corruption")

    @property
    def steps(self) -> dict[str, float]:
        """Augmentations and their levels."""
        given = list(_VIEWS) if self.augment is None else self.augment
        found: dict[str, float] = {}
        for word in (word for text in given for word in text.split(",") if word):
            name, colon, level = word.partition(":")
            check_choice(name, "augment", (*_VIEWS, *_OTHERS))
            try:
                value = float(level) if colon else _OTHERS.get(name, 1.0)
            except ValueError:
                value = math.nan
            if name in _VIEWS and colon:
                raise ValueError(f"`augment` {name} takes no level, got {word!r}.")
            if name == "inject" and value not in (1, 2, 3, 4, 5):
                raise ValueError(f"`augment` inject must have a severity of 1 to 5, got {word!r}.")
            if not 0 < value < math.inf:
                raise ValueError(f"`augment` {name} must have a positive level, got {word!r}.")
            if name in found:
                raise ValueError(f"`augment` must name {name} once.")
            found[name] = value
        return found


def plot_objective(table: pa.Table) -> Figure:
    """Draw what both read of the signal by alignment, and the variances that decide it.

    Args:
        table: See :func:`~jepa_monitor.cli.objectives.objective_table`.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    from jepa_monitor.cli.tables import info_of

    found: dict[str, Any] = info_of(table)["objective"]
    figure = Figure(figsize=(9.3, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = table.to_pylist()
    places = range(len(rows))
    lines = (
        ("joint_embedding", "joint embedding", "C0"),
        ("reconstruction", "reconstruction", "C1"),
    )
    for name, words, colour in lines:
        points = [(n, row) for n, row in enumerate(rows) if row[name] is not None]
        if points:
            x, chosen = zip(*points, strict=True)
            left.plot(x, [row[name] for row in chosen], "o-", color=colour, label=words, ms=4)
            ends = [[row[f"{name}_{end}"] for row in chosen] for end in ("lower", "upper")]
            left.fill_between(x, *ends, color=colour, alpha=0.25, linewidth=0)
    left.axhline(found["all"], color="0.4", linestyle="--", linewidth=1, label="all numbers")
    left.axhline(found["chance"], color="0.4", linestyle=":", linewidth=1, label="random codes")
    left.set_xticks(places, [f"{row['alignment']:g}" for row in rows])
    left.set_xlabel("nuisance redrawn by views, alpha")
    left.set_ylabel("share of the signal read")
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
    left.legend(fontsize=8, frameon=False)

    signal, nuisance = found["signal"], found["nuisance"]
    where = range(1, len(signal) + 1)
    right.plot(where, signal, "o-", color="C2", ms=3, label="signal")
    right.plot(where, found["signal_augmentation"], ":", color="C2", label="views, there")
    if nuisance:
        where = range(1, len(nuisance) + 1)
        right.plot(where, nuisance, "-", color="C3", label="nuisance")
        right.plot(where, found["nuisance_augmentation"], ":", color="C3", label="views, there")
    if found["even"] is not None:
        right.axhline(found["even"], color="0.4", linestyle="--", linewidth=1, label="η²/δ")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("direction")
    right.set_ylabel("variance")
    right.legend(fontsize=8, frameon=False)
    return figure
