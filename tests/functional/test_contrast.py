"""The slope of a score against contrast, and the score without: closed forms and SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from jepa_monitor.functional import (
    change_contrast,
    contrast_free,
    contrast_slope,
    log_contrast,
    pearson,
    spearman,
)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 1, 8, 8), (4, 9)])
def test_contrast_changes_and_the_mean_of_each_channel_stays(shape: tuple[int, ...]) -> None:
    images = pictures(*shape) + 3
    changed = change_contrast(images, 0.5)
    axes = (2, 3) if len(shape) > 2 else (1,)
    means = images.mean(axes, keepdim=True)
    torch.testing.assert_close(changed.mean(axes, keepdim=True), means)
    torch.testing.assert_close(changed - means, 0.5 * (images - means))
    torch.testing.assert_close(log_contrast(changed), log_contrast(images) - math.log(2))
    assert change_contrast(images.float()).dtype == torch.float32


def test_slope_of_scores_that_fall_with_contrast_is_the_one_they_fall_with() -> None:
    images = pictures(6, 3, 4, 4)
    images[2] = 7.0  # without any contrast
    kappa = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    scores = pictures(6, seed=1)
    changed = scores - kappa * math.log(1.2)
    scores[4] = torch.nan
    found = contrast_slope(scores, changed, images, 1.2)
    told = np.array([1.0, 2.0, 4.0, 6.0])
    assert found.mean == pytest.approx(told.mean())
    assert found.error == pytest.approx(stats.sem(told))
    np.testing.assert_allclose(found.each, [1, 2, np.nan, 4, np.nan, 6], rtol=1e-12)
    one = contrast_slope(scores[:1], changed[:1], images[:1], 1.2)
    assert one.mean == pytest.approx(1)
    assert math.isnan(one.error)
    assert math.isnan(contrast_slope(scores[2:3], changed[2:3], images[2:3], 1.2).mean)


def test_score_without_contrast_does_not_move_with_it() -> None:
    images, scores = pictures(5, 2, 4, 4), pictures(5, seed=1)
    scale = torch.tensor([0.01, 0.5, 1.0, 7.0, 90.0], dtype=torch.float64)
    moved = scores - 12 * scale.log()
    free = contrast_free(moved, scale.view(5, 1, 1, 1) * images, 12.0)
    torch.testing.assert_close(free, contrast_free(scores, images, 12.0))
    norms = np.linalg.norm((images - images.mean((2, 3), keepdim=True)).flatten(1), axis=1)
    np.testing.assert_allclose(free, scores.numpy() + 12 * np.log(norms), rtol=1e-12)
    assert contrast_free(scores, torch.ones(5, 1, 2, 2), 0.0).isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_correlations_against_scipy(seed: int) -> None:
    x = pictures(30, seed=seed)
    y = 0.5 * x + pictures(30, seed=seed + 10)
    x[:4] = x[0]  # ties
    expected = stats.pearsonr(x, y)
    found = pearson(x, y)
    assert found.value == pytest.approx(expected.statistic)
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("rho", [0.0, -0.5, 0.9])
def test_the_interval_of_spearman_holds_the_truth_as_often_as_it_says(rho: float) -> None:
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(rho / 2)  # of a binormal law (Pearson 1907)
    held = []
    for _ in range(600):
        x = rng.standard_normal(40)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(40)
        found = spearman(torch.from_numpy(x), torch.from_numpy(y))
        held.append(found.lower <= truth <= found.upper)
    assert np.mean(held) == pytest.approx(0.95, abs=0.035)  # four standard errors


def test_what_does_not_vary_correlates_with_nothing() -> None:
    for correlation in (pearson, spearman):
        found = correlation(torch.ones(5), torch.arange(5.0))
        assert all(math.isnan(value) for value in found)


IMAGES = torch.rand(4, 1, 4, 4)
WRONG: dict[str, tuple[Any, str]] = {
    "no contrast": (lambda: change_contrast(IMAGES, 0.0), "`factor` must be finite and above 0"),
    "whole pixels": (lambda: change_contrast(IMAGES.int()), "`images` must be floating point"),
    "same contrast": (
        lambda: contrast_slope(torch.rand(4), torch.rand(4), IMAGES, 1.0),
        "`factor` must not be 1",
    ),
    "other scores": (
        lambda: contrast_slope(torch.rand(4), torch.rand(3), IMAGES),
        "`scores` and `changed` must have the same shape",
    ),
    "too few scores": (
        lambda: contrast_slope(torch.rand(3), torch.rand(3), IMAGES),
        r"`scores` must have shape \(B,\), one for each of the 4 images, got \(3,\)",
    ),
    "too many scores": (
        lambda: contrast_free(torch.rand(5), IMAGES, 1.0),
        r"`scores` must have shape \(B,\), one for each of the 4 images, got \(5,\)",
    ),
    "no slope": (lambda: contrast_free(torch.rand(4), IMAGES, math.nan), "`slope` must lie in"),
    "few pairs": (lambda: spearman(torch.rand(3), torch.rand(3)), "at least 4 rows"),
    "unequal pairs": (lambda: pearson(torch.rand(5), torch.rand(4)), "must have the same shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
