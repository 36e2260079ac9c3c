"""Modules as the documentation of lightly has them: no argument is needed to watch them."""

from __future__ import annotations

import copy
import pathlib

import lightning.pytorch as pl
import pytest
import timm
import torch
from helpers import float64_score, images, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor import JepaScoreCallback

pytest.importorskip("lightly")
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import deactivate_requires_grad, update_momentum


class Views(Dataset):  # type: ignore[type-arg]
    """Yields (views, target, name), as LightlyDataset does behind a multi-view transform."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[list[Tensor], int, str]:
        image = images(24, 2)[index]
        return [image, image.flip(-1)], 0, f"{index}.png"


def vit() -> torch.nn.Module:
    return timm.create_model(
        "test_vit", num_classes=0, img_size=8, patch_size=4, dynamic_img_size=True
    )


class DINO(pl.LightningModule):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        backbone = MaskedVisionTransformerTIMM(vit=vit()) if masked else vit()
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(64, 32, 16, 32)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(64, 32, 16, 32)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=32)

    def training_step(self, batch: list[object], batch_idx: int) -> Tensor:
        update_momentum(self.student_backbone, self.teacher_backbone, 0.9)
        update_momentum(self.student_head, self.teacher_head, 0.9)
        views = batch[0]
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher_backbone(view)) for view in views]
        student = [self.student_head(self.student_backbone(view)) for view in views]
        return self.criterion(teacher, student, epoch=self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_the_teacher_is_found_and_watched(tmp_path: pathlib.Path, masked: bool) -> None:
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=4, strict=True)
    module = DINO(masked)
    data = DataLoader(Views(), 8)
    trainer(tmp_path, [callback]).fit(module, data, data)
    assert [values["step"] for values in callback.history] == [0, 3, 6]
    assert callback.monitor is not None
    assert torch.equal(callback.monitor.images, images(24, 2))
    report = callback.monitor.evaluate(module.teacher_backbone)
    last = callback.history[-1]["jepa_score/mean"]
    assert report.scalars["jepa_score/mean"] == pytest.approx(last, abs=1e-6)


def test_a_masked_backbone_agrees_with_float64() -> None:
    backbone = MaskedVisionTransformerTIMM(vit=vit())
    from jepa_monitor import jepa_score

    batch = images(2, 2)
    expected = float64_score(backbone, batch)
    torch.testing.assert_close(jepa_score(backbone, batch), expected, rtol=0, atol=0.02)
