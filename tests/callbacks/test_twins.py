"""Whose average is watched: usual layouts, and those where it cannot be told."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Tiny, mlp, trainer
from torch import nn

from jepa_monitor.callbacks.discovery import find_encoder
from jepa_monitor.callbacks.twins import find_online


class Module(pl.LightningModule):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def pair() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": mlp(8), "head": nn.Linear(8, 8)})


LAYOUTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "I-JEPA": ({"context_encoder": mlp(8), "target_encoder": mlp(8), "predictor": mlp(8, width=5)}, "context_encoder"),
    "DINO": ({"student": pair(), "teacher": pair()}, "student.backbone"),
    "MoCo": ({"encoder_q": mlp(8), "encoder_k": mlp(8)}, "encoder_q"),
    "lightly": ({"backbone": mlp(8), "backbone_momentum": mlp(8), "head": mlp(8, 3)}, "backbone"),
    "two towers": ({"image_encoder": mlp(8), "encoder": mlp(8), "target_encoder": mlp(8)}, "encoder"),
    "two that may be": ({"left": mlp(8), "right": mlp(8), "teacher": mlp(8)}, None),
    "a teacher of another shape": ({"student": mlp(8), "teacher": mlp(8, 3)}, None),
    "no average": ({"encoder": mlp(8), "decoder": mlp(8)}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_trained_encoder_is_found(name: str, tmp_path: pathlib.Path) -> None:
    parts, expected = LAYOUTS[name]
    module = Module(**parts)
    _, encoder = find_encoder(module, None)
    found = find_online(trainer(tmp_path, []), module, encoder)
    assert found is (None if expected is None else module.get_submodule(expected))


def test_a_shared_encoder_is_no_average(tmp_path: pathlib.Path) -> None:
    one = mlp(8)
    module = Module(encoder=one, target_encoder=one)
    assert find_online(trainer(tmp_path, []), module, one) is None
    assert find_online(trainer(tmp_path, []), module, one.forward) is None


def test_of_lightning_s_average_the_module_s_own_weights(tmp_path: pathlib.Path) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("no WeightAveraging in this Lightning")
    averaging = callbacks.WeightAveraging()
    module = Tiny()
    run = trainer(tmp_path, [averaging])
    averaging._average_model = torch.optim.swa_utils.AveragedModel(module)
    encoder = averaging._average_model.module.encoder
    assert find_online(run, module, encoder) is module.encoder
    assert find_online(run, module, mlp(8)) is None
