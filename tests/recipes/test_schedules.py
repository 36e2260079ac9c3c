"""Schedules against closed forms and PyTorch's own schedulers."""

import math

import pytest
import torch

from jepa_monitor.recipes.schedules import cosine, linear, warmup_cosine


def test_endpoints() -> None:
    assert cosine(0, 100, 0.04, 0.4) == pytest.approx(0.04)
    assert cosine(99, 100, 0.04, 0.4) == pytest.approx(0.4)
    assert linear(0, 100, 0.996, 1.0) == pytest.approx(0.996)
    assert linear(99, 100, 0.996, 1.0) == pytest.approx(1.0)
    assert warmup_cosine(0, 100, 10, 1e-3, 1e-6) == pytest.approx(1e-4)
    assert warmup_cosine(9, 100, 10, 1e-3, 1e-6) == pytest.approx(1e-3)
    assert warmup_cosine(99, 100, 10, 1e-3, 1e-6) == pytest.approx(1e-6)


def test_middle_and_beyond() -> None:
    assert cosine(50, 101, 0.0, 1.0) == pytest.approx(0.5)
    assert cosine(25, 101, 0.0, 1.0) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert linear(25, 101, 2.0, 4.0) == pytest.approx(2.5)
    for schedule in (cosine, linear):
        assert schedule(1000, 101, 1.0, 3.0) == pytest.approx(3.0)
        assert schedule(0, 1, 1.0, 3.0) == pytest.approx(1.0)


def test_no_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 100, 0, 1e-3, 0.0) == pytest.approx(1e-3)


def test_warmup_cosine_equals_pytorch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, total_iters=4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=14, eta_min=0.01)
    chained = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[5])
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        chained.step()
    assert [warmup_cosine(s, 20, 5, 0.5, 0.01) for s in range(20)] == pytest.approx(expected)
