"""A module of stable-pretraining: dict batches, a dict for an output, student and teacher in one."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest
import torch
from helpers import float64_score, images, mlp, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor import JepaScoreCallback

spt = pytest.importorskip("stable_pretraining")


class Samples(Dataset):  # type: ignore[type-arg]
    def __init__(self, seed: int) -> None:
        self.images = images(24, seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": torch.tensor(index % 3)}


def forward(self: Any, batch: dict[str, Tensor], stage: str) -> dict[str, Tensor]:
    out = {"embedding": self.backbone.forward_student(batch["image"])}
    if self.training:
        target = self.backbone.forward_teacher(batch["image"].flip(-1))
        out["loss"] = (out["embedding"] - target).square().mean()
        self.backbone.update_teacher()
    return out


def test_the_teacher_is_found_and_watched(tmp_path: pathlib.Path) -> None:
    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "scheduler": "ConstantLR"}
    backbone = spt.TeacherStudentWrapper(mlp(192), base_ema_coefficient=0.5)
    module = spt.Module(backbone=backbone, forward=forward, optim=optim)
    callback = JepaScoreCallback(max_overhead=None, strict=True)
    trainer(tmp_path, [callback]).fit(module, DataLoader(Samples(2), 8), DataLoader(Samples(3), 8))
    assert [values["step"] for values in callback.history] == [0, 3, 6]
    expected = float64_score(backbone.teacher, images(24, 3)).mean().item()
    assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)
