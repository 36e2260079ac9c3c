"""What a predictor of `predictors.py` is worth: in go runs with predictors and targets, out come tables.

The signs were written down before any target was seen, and stay: a predictor that turns out to point the
other way has a negative τ in the table.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import kendalltau, spearmanr

Run = dict[str, Any]
Series = Sequence[float | None]

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
    found = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return found if math.isfinite(found) else None


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
    runs: Sequence[Run], of_run: Callable[[Run], float | None], seed: int = 0
) -> tuple[float, float, float, int]:
    """Mean over runs with its 95 % bootstrap interval: of each kind of run, seeds drawn with replacement.

    Returns:
        Mean, lower end, upper end, and how many runs have a value.
    """
    kinds: dict[str, list[float]] = {}
    for run in runs:
        value = of_run(run)
        if value is not None:
            kinds.setdefault(run["run"], []).append(value)
    values = [value for group in kinds.values() for value in group]
    if not values:
        return math.nan, math.nan, math.nan, 0
    draw = random.Random(seed)
    means = sorted(
        statistics.fmean(v for group in kinds.values() for v in draw.choices(group, k=len(group)))
        for _ in range(RESAMPLED)
    )
    cut = round(0.025 * RESAMPLED)
    return statistics.fmean(values), means[cut], means[-1 - cut], len(values)


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
    return [None if None in (a, b, c) else a - b + weight * c for a, b, c in zip(*terms, strict=True)]


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
    x, steps = predictor(run, name), run["looks"]["step"]

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

    The best one of a target is found on one half of its test set and all are compared on the other, and the
    other way round: the highest of many noisy accuracies is too high.
    """
    lost = {}
    for name in TARGETS:
        gaps = []
        for half in (0, 1):
            finding, judging = target(run, name, half), target(run, name, 1 - half)
            best = finding.index(max(finding)) if against == "oracle" else len(finding) - 1
            gaps.append(judging[best] - judging[place])
        lost[name] = 100 * statistics.fmean(gaps)
    return lost


def across(runs: Sequence[Run], name: str) -> tuple[float, int]:
    """Spearman's ρ over runs, of the predictor and the mean target at the last checkpoint."""
    pairs = [
        (value, statistics.fmean(target(run, each)[-1] for each in TARGETS))
        for run in runs
        if (value := predictor(run, name)[-1]) is not None
    ]
    if len(pairs) < 4:
        return math.nan, len(pairs)
    return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)
