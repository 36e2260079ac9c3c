"""Predictions of a world model against plain NumPy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from jepa_monitor.functional import action_share, prediction_error, surprise


def clips(count: int = 30, steps: int = 5, width: int = 4, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, steps, width, generator=draw, dtype=torch.float64).cumsum(1)


def test_the_error_is_the_one_of_the_definition() -> None:
    z = clips()
    made = z[:, 1:] + 0.3 * clips(seed=1)[:, 1:]
    found = prediction_error(made, z[:, 1:], z[:, :-1])
    x, y, b = made.numpy(), z[:, 1:].numpy(), z[:, :-1].numpy()
    spread = y.var(0, ddof=1).sum() * 30
    assert found.value.item() == pytest.approx(((x - y) ** 2).sum() / spread)
    assert found.still.item() == pytest.approx(((b - y) ** 2).sum() / spread)
    # The scale of embeddings, and where they lie, changes nothing.
    scaled = prediction_error(0.01 * made + 7, 0.01 * z[:, 1:] + 7, 0.01 * z[:, :-1] + 7)
    torch.testing.assert_close(torch.stack(scaled), torch.stack(found), rtol=1e-9, atol=0)
    mean = z[:, 1:].mean(0).expand_as(made)
    assert prediction_error(mean, z[:, 1:], z[:, :-1]).value.item() == pytest.approx(29 / 30)


def test_its_interval_covers_the_error_of_very_many_clips() -> None:
    truth = (
        0.04 * 4 * 4 / (4 * np.arange(2, 6).sum())
    )  # of noise of 0.2 at 4 steps of a random walk
    inside = 0
    for seed in range(200):
        z = clips(seed=seed)
        noise = torch.randn(z[:, 1:].shape, generator=torch.Generator().manual_seed(900 + seed))
        found = prediction_error(z[:, 1:] + 0.2 * noise, z[:, 1:], z[:, :-1])
        inside += bool(found.lower <= truth <= found.upper)
    assert binom.cdf(inside, 200, 0.95) > 1e-3
    assert binom.sf(inside, 200, 0.9) < 0.999  # not by being wide


def test_actions_that_say_all_or_nothing() -> None:
    z = clips(200)
    steps = z.diff(dim=1)
    own, others = z[:, :-1] + steps, z[:, :-1] + steps.roll(1, 0)
    assert action_share(own, others, z[:, 1:]).value == 1
    nothing = action_share(z[:, :-1], z[:, :-1], z[:, 1:])
    assert nothing.value == 0
    # A prediction of half the step: (1/2)² of 1/4 + 1, with others' actions.
    half = action_share(z[:, :-1] + 0.5 * steps, z[:, :-1] + 0.5 * steps.roll(1, 0), z[:, 1:])
    assert half.value.item() == pytest.approx(1 - 0.25 / 1.25, abs=0.02)
    assert half.lower < half.value < half.upper
    assert half.lower > 0.7


def test_a_cut_is_told_as_far_as_predictions_are_good() -> None:
    z = clips(60)[:, -1]
    noise = 4 * clips(60, seed=1)[:, 0]
    found = surprise(z + noise, z)
    errors = [((z + noise - other) ** 2).sum(1).numpy() for other in (z, z.roll(1, 0))]
    truth = np.r_[np.zeros(60), np.ones(60)]
    assert found.auroc.item() == pytest.approx(roc_auc_score(truth, np.concatenate(errors)))
    assert 0.5 < found.lower < found.auroc < found.upper < 1
    blind = surprise(torch.zeros_like(z), z)
    assert blind.lower <= 0.5 <= blind.upper


def test_nothing_is_said_of_embeddings_that_do_not_differ() -> None:
    still = torch.ones(4, 3, 2)
    assert all(math.isnan(value) for value in prediction_error(still, still, still))
    assert math.isnan(action_share(still, still, still).value)
    assert surprise(still[:, 0], still[:, 0]).auroc == 0.5


def test_errors() -> None:
    z = clips()
    with pytest.raises(TypeError, match="`predicted` must be a floating-point tensor, got list"):
        prediction_error([1], z, z)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"`following` must be a floating-point tensor, got torch\.int64"
    ):
        action_share(z, z, z.long())
    with pytest.raises(
        ValueError, match=r"`predicted`, `following` and `before` must have one shape"
    ):
        prediction_error(z, z, z[:, 1:])
    with pytest.raises(
        ValueError, match=r"embeddings of 2 clips or more, \(N, T, K\), got shape \(1, 5, 4\)"
    ):
        prediction_error(z[:1], z[:1], z[:1])
    with pytest.raises(ValueError, match="`with_others` must be finite"):
        action_share(z, z / 0, z)
    with pytest.raises(ValueError, match="`predicted` and `following` must have one shape"):
        surprise(z[:, 0], z[:9, 0])
