"""A warning names the line of the user's own code that led to it, however deep in the package it arose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa_monitor import DensityMonitor, jepa_score


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8))


def test_of_a_function() -> None:
    with pytest.warns(UserWarning, match="not whitened") as told:
        jepa_score(encoder(), torch.rand(2, 3, 4, 4), method="sketch", rows=2)
    assert {warning.filename for warning in told} == {__file__}


def test_of_a_plain_loop() -> None:
    net = encoder()
    watch = DensityMonitor(torch.rand(64, 3, 4, 4)).watch(every_n_steps=1, patience_steps=1)
    watch(net, 0)
    nn.init.zeros_(net[1].weight)
    watch(net, 1)
    with pytest.warns(UserWarning, match="complete collapse") as told:
        watch(net, 2)
    (alarm,) = (warning for warning in told if "Cause" in str(warning.message))
    assert alarm.filename == __file__
