"""Flip rates and LoRA updates against SciPy's intervals, resampled pairs and dense singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from jepa_monitor.functional import flip_rate, lora_top_share, random_lora_top_share


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
    turned = [(after[i] == 2, control[i] == 2) for i in rows]
    # Of pairs that are resampled; 1.96 standard errors, to the width of two texts.
    drawn = draw.integers(0, len(rows), (4000, len(rows)))
    apart = np.array([int(a) - int(b) for a, b in turned])[drawn].mean(1)
    ends = found.excess - 1.96 * apart.std(), found.excess + 1.96 * apart.std()
    assert (found.excess_low, found.excess_high) == pytest.approx(ends, abs=2 / len(rows))


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
    ],
)
def test_wrong_factors_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
