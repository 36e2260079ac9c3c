"""The interval of a paired difference against Tango's, SciPy's Wilson, and its own promise by counting."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from jepa_monitor.functional import paired_interval


def pairs(both: int, first: int, second: int, neither: int) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([both, first, second, neither])
    one, other = torch.tensor([[True, True, False, False], [True, False, True, False]])
    return one.repeat_interleave(counts), other.repeat_interleave(counts)


def interval(*cell: int) -> tuple[float, float]:
    _, ends = paired_interval(*pairs(*cell))
    return ends.lower.item(), ends.upper.item()


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


CELLS = [(5, 20, 4, 31), (0, 12, 3, 45), (30, 8, 8, 14), (794, 150, 86, 570), (2, 55, 1, 2)]


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_near_that_of_another_law(cell: tuple[int, ...]) -> None:
    assert interval(*cell) == pytest.approx(tango(*cell), abs=0.03)


@pytest.mark.parametrize("cell", CELLS)
def test_the_difference_is_that_of_the_shares_and_turns_with_them(cell: tuple[int, ...]) -> None:
    first, second = pairs(*cell)
    difference, ends = paired_interval(first, second)
    assert difference.dtype == torch.float64
    assert difference.item() == pytest.approx(first.numpy().mean() - second.numpy().mean())
    turned, others = paired_interval(second, first)
    assert turned == -difference
    assert others.lower.item() == pytest.approx(-ends.upper.item())
    assert others.upper.item() == pytest.approx(-ends.lower.item())


# Of both, of the first alone, of the second alone, of neither; and how often to hold the truth at most.
SHARES = [
    ((0.1, 0.4, 0.1, 0.4), 0.97),
    ((0.3, 0.5, 0.02, 0.18), 0.97),
    ((0.375, 0.125, 0.125, 0.375), 0.97),
    ((0.05, 0.05, 0.05, 0.85), 1),
    ((0.9, 0.1, 0.0, 0.0), 1),  # where Agresti & Min's and Wald's have 0.88
    ((0.78, 0.12, 0.02, 0.08), 1),
]


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    n = 20
    cells = [c for c in itertools.product(range(n + 1), repeat=3) if sum(c) <= n]
    counts = np.array([(*c, n - sum(c)) for c in cells])
    ends = np.array([interval(*map(int, row)) for row in counts])
    for shares, most in SHARES:  # where few samples differ it is cautious
        chance = stats.multinomial.pmf(counts, n, shares)
        truth = shares[1] - shares[2]
        covered = chance[(ends[:, 0] <= truth) & (truth <= ends[:, 1])].sum()
        assert 0.94 < covered <= most, shares


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.8])
def test_of_many_samples_it_is_no_wider_than_it_must_be(correlation: float) -> None:
    # Shares of 0.6 and 0.5 of 1,000 samples; half of the width is 1.96 standard errors of the difference.
    both = 0.3 + correlation * np.sqrt(0.24 * 0.25)
    shares = (both, 0.6 - both, 0.5 - both, both - 0.1)
    counts = np.random.default_rng(0).multinomial(1000, shares, 400)
    found = np.array([interval(*map(int, row)) for row in counts])
    covered = ((found[:, 0] <= 0.1) & (found[:, 1] >= 0.1)).sum()
    assert 0.005 < stats.binom.cdf(covered, 400, 0.95) < 0.995
    error = np.sqrt((shares[1] + shares[2] - 0.01) / 1000)
    width = (found[:, 1] - found[:, 0]).mean()
    assert width == pytest.approx(2 * 1.96 * error, rel=0.02)


def test_without_correlation_it_is_the_root_of_summed_squares_of_wilson() -> None:
    # 40 samples, 30 and 10 right, independent: φ = 0.
    one, two = (stats.binomtest(k, 40).proportion_ci(method="wilson") for k in (30, 10))
    low = 0.5 - np.hypot(0.75 - one.low, two.high - 0.25)
    # A positive product is corrected by n / 2; here it is 20 and the correction leaves none.
    assert interval(8, 22, 2, 8)[0] == pytest.approx(low, abs=1e-12)


def test_where_no_sample_differs_it_is_not_a_point() -> None:
    low, high = interval(40, 0, 0, 0)
    lost = stats.binomtest(40, 40).proportion_ci(method="wilson").low
    assert (low, high) == pytest.approx((lost - 1, 1 - lost), abs=1e-12)


RIGHT = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((RIGHT.long(), RIGHT), TypeError, "`first` must be a tensor of bools, got torch.int64"),
        ((RIGHT, [True]), TypeError, "`second` must be a tensor of bools, got list"),
        ((RIGHT, RIGHT[:2]), ValueError, r"`second` must have shape \(n,\), .* got \(2,\)"),
        ((RIGHT[None], RIGHT[None]), ValueError, r"`first` must have shape .* got \(1, 3\)"),
        ((RIGHT[:0], RIGHT[:0]), ValueError, r"`first` must have shape \(n,\), n ≥ 1"),
        ((RIGHT, RIGHT, 1.0), ValueError, "`confidence`"),
    ],
)
def test_what_is_no_pair_of_shares_is_named(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        paired_interval(*arguments)
