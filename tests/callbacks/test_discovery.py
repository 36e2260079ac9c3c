"""Which module is watched without a word: the names and the nesting of other people's code."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from jepa_monitor.callbacks.discovery import find_encoder


class Holder(nn.Module):
    """A method without a forward pass of its own, as LeWorldModel and DINOv2's SSLMetaArch are."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Method(Holder):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Nested(pl.LightningModule):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def part() -> nn.Linear:
    return nn.Linear(2, 2)


def pair() -> Method:
    return Method(student=part(), teacher=part())


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "solo-learn": ({"backbone": part(), "momentum_backbone": part(), "momentum_projector": part()}, "momentum_backbone"),
    "*_ema": ({"encoder": part(), "encoder_ema": part()}, "encoder_ema"),
    "model_ema": ({"model": part(), "model_ema": part()}, "model_ema"),
    "BYOL": ({"online_network": part(), "target_network": part(), "predictor": part()}, "target_network"),
    "BYOL, encoders": ({"online_encoder": part(), "target_encoder": part()}, "target_encoder"),
    "MoCo": ({"encoder_q": part(), "encoder_k": part()}, "encoder_k"),
    "lightly-train": ({"teacher_embedding_model": part(), "student_embedding_model": part()}, "teacher_embedding_model"),
    "lightly's MoCo": ({"backbone": part(), "projection_head": part(), "backbone_momentum": part(), "projection_head_momentum": part()}, "backbone_momentum"),
    "lightly's DINO": ({"student_backbone": part(), "student_head": part(), "teacher_backbone": part(), "teacher_head": part()}, "teacher_backbone"),
    "no forward": ({"model": Holder(encoder=part(), predictor=part())}, "model.encoder"),
    "no forward, EMA": ({"model": Holder(student=nn.ModuleDict({"backbone": part(), "dino_head": part()}), teacher=nn.ModuleDict({"backbone": part(), "dino_head": part()}))}, "model.teacher.backbone"),
    "nested method": ({"model": Nested(encoder=pair(), predictor=part())}, "model.encoder.teacher"),
    "nested method, no EMA": ({"model": Nested(backbone=part(), projector=part())}, "model.backbone"),
    "a model of student and EMA": ({"model": Method(online_encoder=part(), target_encoder=part())}, "model.target_encoder"),
    "wrapper": ({"backbone": pair(), "projector": part()}, "backbone.teacher"),
    "a model that is the encoder": ({"model": Method(encoder=part(), pooler=part())}, "model"),
    "EMA switched off": ({"target_encoder": None, "encoder": part()}, "encoder"),
    "heads only besides": ({"teacher_head": part(), "momentum_projector": part(), "net": part()}, "net"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_usual_encoder(case: str) -> None:
    parts, expected = CASES[case]
    module = Nested(**copy.deepcopy(parts))
    name, encoder = find_encoder(module, None)
    assert name == expected
    assert encoder is find_encoder(module, expected)[1]


@pytest.mark.parametrize(
    "parts",
    [{"head": part()}, {"model": Holder(first=part())}, {"encoder": nn.ModuleList([part()])}],
)
def test_no_usual_encoder_is_an_error_that_lists_the_parts(parts: dict[str, nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"submodules are: {next(iter(parts))}"):
        find_encoder(Nested(**parts), None)


def test_a_compiled_encoder_has_a_forward_pass() -> None:
    module = Nested(encoder=part(), head=part())
    module.encoder = torch.compile(module.encoder)
    assert find_encoder(module, None) == ("encoder", module.encoder)


def test_a_property_that_is_not_ready_is_passed_over() -> None:
    class Late(Nested):
        @property
        def teacher(self) -> nn.Module:
            raise RuntimeError("not yet")

    assert find_encoder(Late(encoder=part()), None)[0] == "encoder"
