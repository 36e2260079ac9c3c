"""How `benchmarks/predictors.py` judges: by hand, against SciPy's rank correlation, on runs that are known."""

from __future__ import annotations

import importlib
import itertools
import math
import pathlib
import random
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the tests do not run from a checkout")


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("_predictor_judging")


def by_pairs(x: list[float], y: list[float]) -> float:
    """Kendall's τ_b by its definition."""

    def sign(a: float, b: float) -> int:
        return (a > b) - (a < b)

    pairs = list(itertools.combinations(range(len(x)), 2))
    both = sum(sign(x[i], x[j]) * sign(y[i], y[j]) for i, j in pairs)
    untied = [sum(v[i] != v[j] for i, j in pairs) for v in (x, y)]
    return both / math.sqrt(untied[0] * untied[1])


def a_run(name: str, seed: int, accuracies: list[float], **looks: list[Any]) -> dict[str, Any]:
    steps = [float(10 * n) for n in range(len(accuracies))]
    halves = {
        f"{t}_{n}": list(accuracies)
        for t in ("knn", "linear", "patches", "transfer")
        for n in (0, 1)
    }
    return {"run": name, "seed": seed, "targets": halves, "looks": {"step": steps, **looks}}


def test_tau_counts_pairs_and_leaves_out_what_is_missing(judging: Any) -> None:
    draw = random.Random(0)
    x = [float(draw.randrange(6)) for _ in range(12)]
    y = [a + draw.randrange(5) for a in x]
    assert judging.tau(x, y) == pytest.approx(by_pairs(x, y))
    assert judging.tau([*x, None], [*y, 99.0]) == pytest.approx(by_pairs(x, y))
    assert judging.tau(x[:7], y[:7]) is None
    assert judging.tau([1.0] * 12, y) is None


def test_partial_tau_takes_out_what_both_owe_to_the_step(judging: Any) -> None:
    t = [float(n) for n in range(9)]
    # Swaps of neighbours: one in x, two others in y, none of them shared.
    x = [1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    y = [0.0, 1.0, 3.0, 2.0, 5.0, 4.0, 6.0, 7.0, 8.0]
    pairs = 36
    xt, yt, xy = 1 - 2 / pairs, 1 - 4 / pairs, 1 - 6 / pairs
    by_hand = (xy - xt * yt) / math.sqrt((1 - xt**2) * (1 - yt**2))
    assert judging.partial_tau(x, y, t) == pytest.approx(by_hand)
    assert by_hand < 0 < judging.tau(x, y)
    assert judging.partial_tau([*x, None], [*y, 0.0], [*t, 9.0]) == pytest.approx(by_hand)
    assert judging.partial_tau(t, y, t) is None  # the step itself has nothing beside the step


def test_what_is_kept_and_what_that_costs(judging: Any) -> None:
    accuracies = [0.1, 0.2, 0.5, 0.4, 0.4, 0.4, 0.4, 0.3]
    loss: list[Any] = [9, 5, 4, 2, 2, 3, None, 3]
    run = a_run("lejepa", 0, accuracies, loss=loss)
    assert judging.place_of(run, "loss") == 4  # the lowest, the later of equals
    assert judging.regret(run, 4) == pytest.approx(dict.fromkeys(judging.TARGETS, 10.0))
    assert judging.regret(run, 4, "last") == pytest.approx(dict.fromkeys(judging.TARGETS, -10.0))
    run["targets"]["knn_1"] = [0.1, 0.2, 0.3, 0.6, 0.4, 0.4, 0.4, 0.3]
    # The halves' means are best at 0.5. Found on one half (0.5, 0.6), judged on the other (0.3, 0.4).
    assert judging.regret(run, 4)["knn"] == pytest.approx(10.0)
    assert judging.regret(run, 4, "honest")["knn"] == pytest.approx(
        100 * ((0.3 - 0.4) + (0.4 - 0.4)) / 2
    )


def test_dse_is_weighted_as_in_its_paper(judging: Any) -> None:
    inter, intra, rank = [1.0, 3.0, 2.0], [0.0, 1.0, 2.0], [0.5, 0.7, 0.3]
    run = a_run(
        "ijepa", 0, [0.1, 0.2, 0.3],
        **{"tokens/dse_inter": inter, "tokens/dse_intra": intra, "tokens/dse_dimension": rank},
    )  # fmt: skip
    # Inter less intra is 1, 2, 0 with variance 2/3; the ranks have variance 0.08/3.
    weight = math.sqrt((2 / 3) / (0.08 / 3))
    expected = [1 + weight * 0.5, 2 + weight * 0.7, weight * 0.3]
    assert judging.predictor(run, "tokens/dse_lambda") == pytest.approx(expected)


def test_the_interval_is_over_runs(judging: Any) -> None:
    runs = [a_run("a", seed, [0.0] * 8) for seed in range(40)]
    assert judging.interval(runs, lambda run: 2.0) == (2.0, 2.0, 2.0, 40)
    assert judging.interval(runs, lambda run: None)[3] == 0
    mean, low, high, count = judging.interval(runs, lambda run: float(run["seed"]) or None)
    assert (mean, count) == (20.0, 39)
    # Of the mean of 39 numbers with standard deviation 11.25, about 1.96 standard errors on each side.
    assert low == pytest.approx(20 - 1.96 * 11.25 / 39**0.5, abs=0.4)
    assert high == pytest.approx(20 + 1.96 * 11.25 / 39**0.5, abs=0.4)


def test_signs_were_not_chosen_after_the_fact(judging: Any) -> None:
    falling = a_run("vicreg", 0, [0.1 * n for n in range(8)], loss=[8.0 - n for n in range(8)])
    rising = a_run("vicreg", 0, [0.1 * n for n in range(8)], loss=[float(n) for n in range(8)])
    assert judging.within(falling, "loss") == pytest.approx(1.0)
    assert judging.within(rising, "loss") == pytest.approx(-1.0)
    assert judging.within(falling, "step") == pytest.approx(1.0)
