"""stable-pretraining: dict batches and views, structured outputs, its methods, alone and nested."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from helpers import float64_score, images, mlp, trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks.discovery import find_encoder

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


def test_in_a_manager(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt.get_config(), "_cache_dir", str(tmp_path))  # where it keeps its runs
    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "scheduler": "ConstantLR"}
    backbone = spt.TeacherStudentWrapper(mlp(192), base_ema_coefficient=0.5)
    callback = JepaScoreCallback(max_overhead=None, strict=True)
    data = spt.data.DataModule(train=DataLoader(Samples(2), 8), val=DataLoader(Samples(3), 8))
    logger = CSVLogger(tmp_path / "logs")
    spt.Manager(
        trainer=trainer(tmp_path, [callback], logger=logger),
        module=spt.Module(backbone=backbone, forward=forward, optim=optim),
        data=data,
        seed=0,
    )()
    assert [values["step"] for values in callback.history] == [0, 3, 6]
    expected = float64_score(backbone.teacher, images(24, 3)).mean().item()
    assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)
    assert len(list(tmp_path.rglob("run.html"))) == 1


class Views(Samples):
    """What a multi-view transform of stable-pretraining makes of a sample."""

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index], torch.tensor(index % 3)
        return {
            "views": [{"image": image, "label": label}, {"image": image.flip(-1), "label": label}]
        }


def vit() -> torch.nn.Module:
    return timm.create_model("test_vit", img_size=8, patch_size=4)


class Nested(pl.LightningModule):
    """As the methods' docstrings have it: a method as the only part of a LightningModule."""

    def __init__(self, method: torch.nn.Module) -> None:
        super().__init__()
        self.model = method

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(batch["views"][0]["image"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


METHODS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any], torch.nn.Module], str]] = {
    "MAE": (lambda: spt.methods.MAE(vit(), decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2), lambda m: m.encoder, "model.encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_nested_method_is_found_and_watched(tmp_path: pathlib.Path, name: str) -> None:
    make, encoder_of, path = METHODS[name]
    module = Nested(make())
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=4, strict=True)
    trainer(tmp_path, [callback]).fit(module, DataLoader(Views(2), 8), DataLoader(Views(3), 8))
    assert [values["step"] for values in callback.history] == [0, 3, 6]
    assert callback.monitor is not None
    assert torch.equal(callback.monitor.images, images(24, 3))
    assert find_encoder(module, None)[0] == path
    encoder = encoder_of(module.model)
    report = callback.monitor.evaluate(lambda x: encoder(x).encoded)
    last = callback.history[-1]["jepa_score/mean"]
    if report.scalars["monitor/random"] == 0:
        assert report.scalars["jepa_score/mean"] == pytest.approx(last, abs=1e-4)


def test_a_method_that_is_the_module(tmp_path: pathlib.Path) -> None:
    assert (
        find_encoder(spt.methods.IJEPA(vit(), predictor_embed_dim=32), None)[0] == "encoder.teacher"
    )
    assert find_encoder(spt.methods.BYOL("test_vit"), None)[0] == "backbone.teacher"
    assert find_encoder(spt.methods.LeJEPA("test_vit"), None)[0] == "backbone"
    assert find_encoder(Nested(spt.methods.LeJEPA("test_vit")), None)[0] == "model.backbone"
