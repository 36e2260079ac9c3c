"""The lag of an EMA target, by the recursion that it solves."""

import math

import numpy as np
import pytest
import torch

from jepa_monitor.functional import ema_lag, ema_straightness, functional_lag


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def walk(steps, momentum):
    """Parameters, those before the last step, and the target's after it."""
    now = target = torch.zeros_like(steps[0])
    for step in steps:
        before, now = now, now + step
        target = momentum * target + (1 - momentum) * now
    return now, before, target


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_straight_on(momentum):
    step = normal(7)
    now, before, target = walk([step] * 4000, momentum)
    assert ema_straightness([now], [before], [target], momentum).item() == pytest.approx(1)
    expected = step.norm() * momentum / (1 - momentum) / target.norm()
    assert ema_lag([now], [target]).item() == pytest.approx(expected.item())


def test_a_random_walk():
    steps = torch.nn.functional.normalize(normal(400, 20_000), dim=1)
    now, before, target = walk(steps, 0.9)
    found = ema_straightness([now], [before], [target], 0.9).item()
    assert found == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.02)


def test_the_first_step_by_hand():
    # The target starts where the encoder is: after one step u the lag is m·u.
    now, before, target = walk([normal(5)], 0.8)
    assert ema_straightness([now], [before], [target], 0.8).item() == pytest.approx(0.2)


def test_parameters_count_as_one_vector():
    a, b, c = normal(2, 3), normal(4, seed=1), normal(5, seed=2)
    parts, whole = [a, b, c], [torch.cat([a.flatten(), b, c])]
    target, joined = [2 * a, b + 1, -c], [torch.cat([2 * a.flatten(), b + 1, -c])]
    assert ema_lag(parts, target).item() == pytest.approx(ema_lag(whole, joined).item())
    before, earlier = [a - 1, b, c], [torch.cat([a.flatten() - 1, b, c])]
    assert ema_straightness(iter(parts), iter(before), iter(target), 0.9).item() == pytest.approx(
        ema_straightness(whole, earlier, joined, 0.9).item()
    )
    expected = np.linalg.norm(whole[0] - joined[0]) / np.linalg.norm(joined[0])
    assert ema_lag(parts, target).item() == pytest.approx(expected)


def test_of_modules_without_a_graph():
    online, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    lag = ema_lag(online.parameters(), target.parameters())
    assert lag.dtype == torch.float64
    assert not lag.requires_grad


def test_where_there_is_nothing_to_divide_by():
    zero, one = [torch.zeros(2)], [torch.ones(2)]
    assert ema_lag(zero, zero) == 0
    assert ema_lag(one, zero) == math.inf
    assert ema_lag(one, one) == 0
    assert ema_straightness(one, one, one, 0.9) == 0
    assert ema_straightness(one, one, zero, 0.9) == math.inf
    z = torch.ones(4, 2)
    assert functional_lag(z, z) == 0
    assert functional_lag(2 * z, z) == math.inf


def test_functional_lag_against_numpy():
    z, other = normal(50, 6), 3 * normal(50, 6, seed=1) + 1
    expected = ((z - other) ** 2).sum(1).mean() / np.trace(np.cov(other.T))
    assert functional_lag(z, other).item() == pytest.approx(expected.item())
    unrelated = functional_lag(normal(4000, 6), normal(4000, 6, seed=1)).item()
    assert unrelated == pytest.approx(2, rel=0.05)


def test_errors():
    one = [torch.ones(2)]
    with pytest.raises(ValueError, match="`online` and `target` must hold the same parameters"):
        ema_lag([], [])
    with pytest.raises(ValueError, match="the same parameters, at least one, got 1 and 2"):
        ema_lag(one, one * 2)
    with pytest.raises(ValueError, match="`online` and `target` must have the same shape"):
        ema_lag(one, [torch.ones(3)])
    with pytest.raises(ValueError, match="`online` and `before` must have the same shape"):
        ema_straightness(one, [torch.ones(3)], one, 0.9)
    for momentum in (0, 1, 1.5):
        with pytest.raises(ValueError, match=r"`momentum` must lie in \(0, 1\)"):
            ema_straightness(one, one, one, momentum)
    with pytest.raises(ValueError, match="`online` must have at least 2 rows"):
        functional_lag(normal(1, 3), normal(1, 3))
    with pytest.raises(ValueError, match="`online` and `target` must have the same shape"):
        functional_lag(normal(3, 3), normal(4, 3))
