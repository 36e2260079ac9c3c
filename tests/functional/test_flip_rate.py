"""Flip rates and LoRA updates against SciPy's intervals, exact coverage and dense singular values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from jepa_monitor.functional import flip_rate, lora_top_share, random_lora_top_share
from jepa_monitor.functional._intervals import paired_difference_interval


def tango(both: int, first: int, second: int, neither: int) -> list[float]:
    """Tango's score interval of a paired difference: another law, by inverting its test."""
    n, z = both + first + second + neither, stats.norm.ppf(0.975)

    def statistic(delta: float) -> float:
        # The maximum-likelihood share of "second only", given that the difference is delta.
        a, b = 2 * n, -first - second + (2 * n - first + second) * delta
        root = np.sqrt(max(b**2 - 4 * a * (-second * delta * (1 - delta)), 0))
        share = (root - b) / (2 * a)
        spread = np.sqrt(max(n * (2 * share + delta * (1 - delta)), 1e-300))
        return float((first - second - n * delta) / spread)

    estimate = (first - second) / n
    return [
        optimize.brentq(lambda d: statistic(d) - z, -1 + 1e-9, estimate),
        optimize.brentq(lambda d: statistic(d) + z, estimate, 1 - 1e-9),
    ]


@pytest.mark.parametrize("cell", [(5, 20, 4, 31), (0, 12, 3, 45), (30, 8, 8, 14), (794, 150, 86, 570), (2, 55, 1, 2)])  # fmt: skip
def test_the_paired_interval_is_near_that_of_another_law(cell: tuple[int, ...]) -> None:
    assert paired_difference_interval(*cell) == pytest.approx(tango(*cell), abs=0.03)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    n = 20
    cells = [c for c in itertools.product(range(n + 1), repeat=3) if sum(c) <= n]
    counts = np.array([(*c, n - sum(c)) for c in cells])
    ends = np.array([paired_difference_interval(*map(int, row)) for row in counts])
    # Where few cases differ it is cautious.
    for shares, most in [
        ((0.1, 0.4, 0.1, 0.4), 0.97),
        ((0.3, 0.5, 0.02, 0.18), 0.97),
        ((0.05, 0.05, 0.05, 0.85), 1),
    ]:
        chance = stats.multinomial.pmf(counts, n, shares)
        truth = shares[1] - shares[2]
        covered = chance[(ends[:, 0] <= truth) & (truth <= ends[:, 1])].sum()
        assert 0.94 < covered < most, shares


def test_without_correlation_it_is_the_root_of_summed_squares_of_wilson() -> None:
    # 40 texts, 30 and 10 turned, independent: φ = 0.
    cell = (8, 22, 2, 8)
    one, two = (stats.binomtest(k, 40).proportion_ci(method="wilson") for k in (30, 10))
    low = 0.5 - np.hypot(0.75 - one.low, two.high - 0.25)
    # A positive product is corrected by n / 2; here it is 20 and the correction leaves none.
    assert paired_difference_interval(*cell)[0] == pytest.approx(low, abs=1e-12)


def test_counts_are_those_of_texts_that_could_turn() -> None:
    draw = np.random.default_rng(0)
    before, after, control = (draw.integers(0, 3, 200) for _ in range(3))
    found = flip_rate(*map(torch.from_numpy, (before, after, control)), label=2)
    rows = [i for i in range(200) if before[i] != 2]
    assert found.texts == len(rows)
    assert found.flips == sum(after[i] == 2 for i in rows)
    assert found.controls == sum(control[i] == 2 for i in rows)
    wilson = stats.binomtest(found.flips, found.texts).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert found.excess == pytest.approx(found.rate - found.control)
    first = sum(after[i] == 2 != control[i] for i in rows)
    second = sum(control[i] == 2 != after[i] for i in rows)
    both = found.flips - first
    ends = tango(both, first, second, len(rows) - both - first - second)
    assert (found.excess_low, found.excess_high) == pytest.approx(ends, abs=0.02)


ONES = torch.ones(3).long()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ONES, ONES.float(), ONES, 0), TypeError, "`after` must be a tensor of whole numbers"),
        ((ONES, ONES, [1, 1, 1], 0), TypeError, "`control` must be a tensor .* got list"),
        ((ONES, ONES[:2], ONES, 0), ValueError, r"`after` must have shape \(N,\) with N = 3"),
        ((ONES, ONES, ONES, 1), ValueError, "`before` must have a text that is not of class 1"),
    ],
)
def test_wrong_predictions_are_named(arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        flip_rate(*arguments)


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 7, 5), (3, 40, 30), (8, 12, 6)])
def test_the_top_share_is_that_of_the_product(rank: int, inputs: int, outputs: int) -> None:
    draw = np.random.default_rng(rank)
    down, up = draw.normal(size=(rank, inputs)), draw.normal(size=(outputs, rank))
    up[:, 0] *= 3
    values = np.linalg.svd(up @ down, compute_uv=False)
    found = lora_top_share(torch.from_numpy(down), torch.from_numpy(up))
    assert float(found) == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-12)


def test_the_chance_level_is_the_mean_over_random_products() -> None:
    draw = np.random.default_rng(1)
    shares = []
    for _ in range(300):
        values = np.linalg.svd(
            draw.normal(size=(24, 6)) @ draw.normal(size=(6, 16)), compute_uv=False
        )
        shares.append(values[0] ** 2 / (values**2).sum())
    error = np.std(shares) / np.sqrt(300)
    assert float(random_lora_top_share(6, 16, 24, draws=2000)) == pytest.approx(
        np.mean(shares), abs=4 * error
    )


def test_an_update_of_zero_has_no_share() -> None:
    assert torch.isnan(lora_top_share(torch.ones(2, 3), torch.zeros(4, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lora_top_share(torch.ones(2, 3), torch.ones(4, 3)), "`up` must have 2 columns"),
        (lambda: lora_top_share(torch.ones(2), torch.ones(4, 2)), "`down` must be a matrix"),
        (lambda: lora_top_share(torch.ones(2, 3) / 0, torch.ones(4, 2)), "`down` must be finite"),
        (lambda: random_lora_top_share(9, 8, 16), "`rank` must be at most"),
        (lambda: random_lora_top_share(0, 8, 16), "`rank`"),
        (lambda: paired_difference_interval(0, 0, 0, 0), "at least one case"),
    ],
)
def test_wrong_factors_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
