"""What a predictor of `predictors.py` is worth: in go runs with predictors and targets, out come numbers.

The signs were written down before any predictor was held against a target, and stay: one that turns out to
point the other way has a negative τ in the table.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from jepa_monitor.monitor.advice import Advisor
from jepa_monitor.monitor.keep import which_to_keep

Run = dict[str, Any]
Series = Sequence[float | None]

ADVICE = "advice/quality"
TARGETS = ("knn", "linear", "patches", "transfer")
EARLY = 0.2  # of a run
RESAMPLED = 2000

# +1: higher should be the better checkpoint. Sources: the papers where there is one, else a guess.
SIGNS: Mapping[str, int] = {
    "step": 1,
    "loss": -1,
    "loss/held_out": -1,
    # ranks and spread of pooled embeddings
    "collapse/rankme": 1,
    "collapse/effective_rank": 1,
    "collapse/participation_ratio": 1,
    "collapse/stable_rank": 1,  # NESum
    "collapse/alpha_req": -1,
    "collapse/normalized_std": 1,
    "collapse/uniformity": -1,
    "collapse/mean_cosine": -1,
    "collapse/same_pairs": -1,
    "collapse/lost": -1,
    # neighbours and clusters
    "views/retrieval": 1,
    "views/overlap": 1,
    "clusters/self_clustering": -1,
    "clusters/learnability": 1,
    "clusters/agreement": 1,
    # intrinsic dimension, where nothing has collapsed
    "dimension/mst": -1,
    "dimension/mst_raw": -1,
    "dimension/two_nn": -1,
    # patch tokens
    "tokens/dse_inter": 1,
    "tokens/dse_intra": -1,
    "tokens/dse_dimension": 1,
    "tokens/dse_lambda": 1,  # their sum, weighted as in the paper: over the whole run
    "tokens/rank_across": 1,
    "tokens/rank_within": 1,
    "tokens/locality": 1,
    "tokens/position_share": -1,
    "tokens/view_neighbors": 1,
    # teacher and student
    "ema/lag": -1,
    "ema/functional_lag": -1,
    # density
    "jepa_score/mean": 1,
    "jepa_score/std": -1,
    "contrast_free/mean": 1,
    "contrast_free/std": -1,
    "log_density/mean": 1,
    "log_density/std": -1,
    "density/gaussianity_effect": -1,
    "density/normality_effect": -1,
    "density/generalisation_gap": -1,
    # shape of the Jacobian
    "jacobian/level_free": 1,
    "jacobian/effective_rank": 1,
    "jacobian/rank_one_share": -1,
}


# ----------------------------------------------------------------------------------------- numbers
def tau(x: Series, y: Series) -> float | None:
    """Kendall's τ_b of the checkpoints that have both; ``None`` for fewer than 8 or where one is constant."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if len(pairs) < 8:
        return None
    first, second = (np.sign(v[:, None] - v) for v in np.array(pairs, dtype=float).T)
    untied = math.sqrt(np.square(first).sum() * np.square(second).sum())
    return float((first * second).sum() / untied) if untied else None


def partial_tau(x: Series, y: Series, t: Series) -> float | None:
    """Kendall's τ of x and y given t, of the checkpoints that have x (Kendall, Biometrika 32, 1942)."""
    has = [n for n, (a, b) in enumerate(zip(x, y, strict=True)) if None not in (a, b)]
    x, y, t = ([values[n] for n in has] for values in (x, y, t))
    xy, xt, yt = tau(x, y), tau(x, t), tau(y, t)
    if xy is None or xt is None or yt is None or max(abs(xt), abs(yt)) == 1:
        return None
    return (xy - xt * yt) / math.sqrt((1 - xt**2) * (1 - yt**2))


def chosen(values: Series) -> int | None:
    """Where a predictor is highest, the later of equals: what `ModelCheckpoint(mode="max")` keeps, or better."""
    known = [(value, n) for n, value in enumerate(values) if value is not None]
    return max(known)[1] if known else None


def interval(
    runs: Sequence[Run], of_run: Callable[[Run], float | None]
) -> tuple[float, float, float, int]:
    """Mean over runs with its 95 % bootstrap interval: runs drawn with replacement, with all that is theirs.

    Returns:
        Mean, lower end, upper end, and how many runs have a value.
    """
    values = [value for run in runs if (value := of_run(run)) is not None]
    if not values:
        return math.nan, math.nan, math.nan, 0
    drawn = np.random.default_rng(0).choice(values, (RESAMPLED, len(values)))
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    return statistics.fmean(values), float(low), float(high), len(values)


def mean(runs: Sequence[Run], of_run: Callable[[Run], float | None]) -> float | None:
    """Mean over the runs that have a value; ``None`` if none has."""
    values = [value for run in runs if (value := of_run(run)) is not None]
    return statistics.fmean(values) if values else None


# -------------------------------------------------------------------------------------------- runs
def target(run: Run, name: str, half: int | None = None) -> list[float]:
    """Accuracies of a run, on the whole test set or on a half of it."""
    halves = [run["targets"][f"{name}_{n}"] for n in (0, 1)]
    if half is not None:
        return list(halves[half])
    return [(a + b) / 2 for a, b in zip(*halves, strict=True)]


def predictor(run: Run, name: str) -> list[float | None]:
    """Values of a predictor, times its sign."""
    looks = run["looks"]
    if name == "tokens/dse_lambda":
        return dse(run)
    sign = SIGNS.get(name, 1)
    values = looks.get(name, [None] * len(looks["step"]))
    return [None if value is None else sign * value for value in values]


def dse(run: Run) -> list[float | None]:
    """DSE with the weight of its paper: the ratio of the standard deviations over the run."""
    looks, size = run["looks"], len(run["looks"]["step"])
    terms = [looks.get(f"tokens/dse_{n}", [None] * size) for n in ("inter", "intra", "dimension")]
    known = [row for row in zip(*terms, strict=True) if None not in row]
    if len(known) < 2:
        return [None] * size
    spread = statistics.pstdev(a - b for a, b, _ in known)
    weight = spread / (statistics.pstdev(c for *_, c in known) or math.inf)
    return [
        None if None in (a, b, c) else a - b + weight * c for a, b, c in zip(*terms, strict=True)
    ]


def late(values: Sequence[Any], run: Run) -> list[Any]:
    """Leave out the first fifth of a run."""
    steps = run["looks"]["step"]
    return [v for v, step in zip(values, steps, strict=True) if step >= EARLY * steps[-1]]


def mean_over_targets(of_target: Callable[[str], float | None]) -> float | None:
    """Average what there is."""
    found = [value for name in TARGETS if (value := of_target(name)) is not None]
    return statistics.fmean(found) if found else None


def within(run: Run, name: str, kind: str = "all") -> float | None:
    """τ of a predictor with the targets, mean over these: ``all``, ``late``, or ``partial`` given the step."""
    x, steps = values_of(run, name), run["looks"]["step"]

    def of_target(each: str) -> float | None:
        y = target(run, each)
        if kind == "partial":
            return partial_tau(x, y, steps)
        return tau(late(x, run), late(y, run)) if kind == "late" else tau(x, y)

    return mean_over_targets(of_target)


def ceiling(run: Run, kind: str = "all") -> float | None:
    """τ between the halves of the test sets, mean over the targets: about what noise leaves room for."""

    def of_target(each: str) -> float | None:
        halves = [target(run, each, half) for half in (0, 1)]
        if kind == "late":
            halves = [late(values, run) for values in halves]
        if kind == "partial":
            return partial_tau(*halves, run["looks"]["step"])
        return tau(*halves)

    return mean_over_targets(of_target)


def regret(run: Run, place: int, against: str = "oracle") -> dict[str, float]:
    """Points of accuracy by target that a checkpoint has less than the best one, or than the last.

    ``oracle``: the highest accuracy, which noise makes a little too high. ``honest``: the best one found on one
    half of the test set and compared on the other, and the other way round, which makes it a little too low.

    Returns:
        Points by target.
    """
    lost = {}
    for name in TARGETS:
        whole = target(run, name)
        if against == "honest":
            halves = [target(run, name, half) for half in (0, 1)]
            gaps = [
                judging[finding.index(max(finding))] - judging[place]
                for finding, judging in (halves, halves[::-1])
            ]
            lost[name] = 100 * statistics.fmean(gaps)
        else:
            lost[name] = 100 * ((max(whole) if against == "oracle" else whole[-1]) - whole[place])
    return lost


def across(runs: Sequence[Run], name: str) -> tuple[float, int]:
    """Spearman's ρ over runs, of the predictor and the mean target at the last checkpoint."""
    pairs = [
        (value, statistics.fmean(target(run, each)[-1] for each in TARGETS))
        for run in runs
        if (value := predictor(run, name)[-1]) is not None
    ]
    if len(pairs) < 4 or len({value for value, _ in pairs}) < 2:
        return math.nan, len(pairs)
    return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


# ---------------------------------------------------------------------------------------- the rule
def looks_of(run: Run) -> list[dict[str, float]]:
    """The looks of a run as the monitor logs them; the accuracies are not among them."""
    looks = run["looks"]
    return [
        {tag: values[n] for tag, values in looks.items() if values[n] is not None}
        for n in range(len(looks["step"]))
    ]


def advised(run: Run) -> list[float | None]:
    """`advice/quality` at each look, of what was known then."""
    advisor = Advisor()
    return [advisor.update(look["step"], look).get("advice/quality") for look in looks_of(run)]


def noise(run: Run) -> list[float | None]:
    """Numbers that know nothing."""
    draw = random.Random(f"{run['run']} {run['seed']}")
    return [draw.random() for _ in run["looks"]["step"]]


def values_of(run: Run, name: str) -> list[float | None]:
    """Values of a row of the tables, higher for what should be better."""
    if name == ADVICE:
        return advised(run)
    return noise(run) if name == "random" else predictor(run, name)


def place_of(run: Run, rule: str) -> int | None:
    """Which checkpoint a rule keeps, as its place in the run."""
    steps = run["looks"]["step"]
    if rule == "which_to_keep":
        kept = which_to_keep(looks_of(run)).step
        return None if kept is None else steps.index(kept)
    if rule == "last":
        return len(steps) - 1
    if rule == "first":
        return 0
    return chosen(values_of(run, rule))
