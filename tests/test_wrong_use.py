"""Wrong uses, each with one error that names the argument, what came and what was expected."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Tiny, Validated, images, loader, mlp, trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import (
    DensityMonitor,
    JepaScoreCallback,
    ScoreOptions,
    audit_precision,
    jacobian_spectrum,
    jepa_score,
    log_density,
)
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.functional.gaussian import Gaussian

GOOD = torch.rand(4, 48)
LAW = Gaussian(torch.zeros(3).double(), torch.eye(3).double(), 9, 0.0)


class Views(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"left": torch.rand(3, 8, 8), "right": torch.rand(3, 8, 8), "label": torch.tensor(0)}


def deepspeed() -> nn.Module:
    """What ZeRO-3 leaves of a layer between its passes: parameters with an id and no elements."""
    layer = nn.Linear(48, 8)
    layer.weight.data, layer.weight.ds_id = torch.empty(0), 0
    return layer


def ragged() -> list[Tensor]:
    return [torch.zeros(2, 3), torch.zeros(2, 4)]


# At construction or at the call.
CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "share over 1": (lambda: JepaScoreCallback(max_overhead=1.5), ValueError, "`max_overhead` must be a share of at most 1, got 1.5"),
    "share of 0": (lambda: JepaScoreCallback(max_overhead=0), ValueError, "`max_overhead` must be finite and above 0, got 0"),
    "share as text": (lambda: JepaScoreCallback(max_overhead="5%"), TypeError, "`max_overhead` must be a number, got '5%'"),
    "reaction": (lambda: JepaScoreCallback(on_collapse="panic"), ValueError, "`on_collapse` must be one of warn, stop, got 'panic'"),
    "reaction's type": (lambda: CollapseCallback(on_collapse=3), ValueError, "`on_collapse` must be one of warn, stop, got 3"),
    "patience": (lambda: JepaScoreCallback(patience_steps=0), ValueError, "`patience_steps` must be at least 1"),
    "patience's type": (lambda: CollapseCallback(patience_steps=1.5), TypeError, "`patience_steps` must be an integer, got 1.5"),
    "name": (lambda: JepaScoreCallback(name=3), TypeError, "`name` must be a string, got int"),
    "no name": (lambda: CollapseCallback(name=None), TypeError, "`name` must be a string, got NoneType"),
    "strict": (lambda: JepaScoreCallback(strict="yes"), TypeError, "`strict` must be True or False, got 'yes'"),
    "both cadences": (lambda: JepaScoreCallback(every_n_epochs=1, every_n_steps=5), ValueError, "`every_n_epochs` and `every_n_steps` exclude each other, got 1 and 5"),
    "epochs": (lambda: JepaScoreCallback(every_n_epochs=0), ValueError, "`every_n_epochs` must be at least 1, got 0"),
    "epochs' type": (lambda: JepaScoreCallback(every_n_epochs=True), TypeError, "`every_n_epochs` must be an integer, got True"),
    "steps": (lambda: JepaScoreCallback(every_n_steps=1.5), TypeError, "`every_n_steps` must be an integer, got 1.5"),
    "no steps": (lambda: CollapseCallback(every_n_steps=0), ValueError, "`every_n_steps` must be at least 1, got 0"),
    "samples": (lambda: JepaScoreCallback(max_probe_samples=0), ValueError, "`max_probe_samples` must be at least 1, got 0"),
    "embeddings": (lambda: JepaScoreCallback(max_embedding_samples=-1), ValueError, "`max_embedding_samples` must be at least 1"),
    "too few to tell": (lambda: CollapseCallback(max_samples=15), ValueError, "`max_samples` must be at least 16, got 15"),
    "polarity": (lambda: JepaScoreCallback(polarity_samples=-1), ValueError, "`polarity_samples` must be at least 0, got -1"),
    "polarity's type": (lambda: DensityMonitor(GOOD, polarity_samples="all"), TypeError, "`polarity_samples` must be an integer, got 'all'"),
    "encoder": (lambda: JepaScoreCallback(3), TypeError, "`encoder` must be a dotted path.*got int"),
    "pool": (lambda: JepaScoreCallback(pool="best"), ValueError, "`pool` must be one of auto, mean, cls, flatten, got 'best'"),
    "batch_to_images": (lambda: JepaScoreCallback(batch_to_images="image"), TypeError, "`batch_to_images` must be callable, or a dict .* got str"),
    "batch_to_images alone": (lambda: DensityMonitor(GOOD, batch_to_images=3), TypeError, "`batch_to_images` must be callable, or a dict .* got int"),
    "options": (lambda: JepaScoreCallback(options={"method": "exact"}), TypeError, "`options` must be ScoreOptions, got dict"),
    "options alone": (lambda: DensityMonitor(GOOD, options="fast"), TypeError, "`options` must be ScoreOptions, got str"),
    "ood list": (lambda: JepaScoreCallback(ood=[images(8)]), TypeError, "`ood` must be a dict of data by name, got list"),
    "ood key": (lambda: JepaScoreCallback(ood={1: images(8)}), TypeError, "`ood` must have names for keys, got 1"),
    "ood shape": (lambda: DensityMonitor(images(8), ood={"x": torch.rand(8, 3)}), ValueError, r"`ood\['x'\]` must hold images of the probe's shape, \(3, 8, 8\), got \(3,\)"),
    "ood empty": (lambda: DensityMonitor(images(8), ood={"x": []}), ValueError, r"`ood\['x'\]` is empty"),
    "reference shape": (lambda: DensityMonitor(images(8), reference=torch.rand(8, 3)), ValueError, "`reference` must hold images of the probe's shape"),
    "reference size": (lambda: DensityMonitor(images(8), reference=images(2)), ValueError, "`reference` must hold at least 3 images, got 2"),
    "reference path": (lambda: DensityMonitor(images(8), reference="train/"), TypeError, "`reference` must be a tensor, a Dataset.*got str"),
    "no images": (lambda: DensityMonitor([]), ValueError, "`probe` is empty"),
    "no dataset": (lambda: DensityMonitor(TensorDataset(torch.rand(0, 3))), ValueError, "`probe` is empty"),
    "empty tensor": (lambda: DensityMonitor(torch.zeros(0, 3, 8, 8)), ValueError, "`probe` must have shape"),
    "no probe": (lambda: DensityMonitor(None), TypeError, "`probe` must be a tensor.*got NoneType"),
    "probe path": (lambda: DensityMonitor("images/"), TypeError, "`probe` must be a tensor.*got str"),
    "probe object": (lambda: DensityMonitor(object()), TypeError, "`probe` must be a tensor.*got object"),
    "missing folder": (lambda: DensityMonitor(pathlib.Path("no/such/folder")), TypeError, "`probe` must be a tensor.*got .*Path"),
    "integer probe": (lambda: DensityMonitor([torch.zeros(2, 3, dtype=torch.uint8)]), TypeError, "`probe` must be floating point.*got torch.uint8"),
    "complex probe": (lambda: DensityMonitor(torch.zeros(2, 3, dtype=torch.complex64)), TypeError, "`probe` must be floating point"),
    "nan probe": (lambda: DensityMonitor(torch.full((2, 3), torch.nan)), ValueError, "`probe` must be finite, but 2 of 2"),
    "infinite probe": (lambda: DensityMonitor(torch.full((2, 3), torch.inf)), ValueError, "`probe` must be finite, but 2 of 2"),
    "ragged probe": (lambda: DensityMonitor(ragged()), ValueError, "`probe` must hold images of one shape"),
    "missing key": (lambda: DensityMonitor(DataLoader(Views())), TypeError, r"\{left: float32 \(1, 3, 8, 8\), right: .*`batch_to_images`"),
    "wrong key": (lambda: DensityMonitor(DataLoader(Views()), batch_to_images=lambda b: b["image"]), ValueError, "`batch_to_images` failed on a batch of type dict of `probe`: KeyError: 'image'"),
    "no tensor from batch": (lambda: DensityMonitor([GOOD], batch_to_images=lambda b: 3), TypeError, "`probe` must be a torch.Tensor, got int"),
    "method": (lambda: ScoreOptions("fast"), ValueError, "`method` must be one of exact, sketch, lanczos, auto, got 'fast'"),
    "rows for nothing": (lambda: ScoreOptions(rows=4), ValueError, "`rows` is for `method='sketch'`"),
    "rows": (lambda: ScoreOptions("sketch", rows=0), ValueError, "`rows` must be at least 1, got 0"),
    "too many rows": (lambda: jepa_score(mlp(), GOOD, method="sketch", rows=9, reference=GOOD), ValueError, "`rows` must be at most the width of the embeddings, 8, got 9"),
    "eps": (lambda: ScoreOptions(eps=-1), ValueError, "`eps` must be finite and above 0, got -1"),
    "precision": (lambda: ScoreOptions(precision=torch.float32), ValueError, "`precision` must be one of float32, tf32, float64"),
    "memory": (lambda: ScoreOptions(max_memory="4GB"), TypeError, "`max_memory` must be an integer, got '4GB'"),
    "seed": (lambda: ScoreOptions(seed="a"), TypeError, "`seed` must be an integer, got 'a'"),
    "no reference": (lambda: log_density(mlp(), GOOD, None), ValueError, "`reference` must be images or a fitted Gaussian, got None"),
    "one reference": (lambda: log_density(mlp(), GOOD, GOOD[:1]), ValueError, "`reference` must hold at least 2 images, got 1"),
    "reference's width": (lambda: jepa_score(mlp(), GOOD, method="sketch", reference=LAW), ValueError, "`reference` must be a law of embeddings of width 8, got 3"),
    "broken reference": (lambda: log_density(lambda x: x / 0, GOOD, GOOD), ValueError, "`reference` must have finite embeddings"),
    "images as list": (lambda: jacobian_spectrum(mlp(), [GOOD]), TypeError, "`images` must be a torch.Tensor, got list"),
    "encoder elsewhere": (lambda: jepa_score(mlp().to("meta"), GOOD), ValueError, "`encoder` is on meta"),
    "lazy encoder": (lambda: jepa_score(nn.LazyLinear(3), GOOD), ValueError, "`encoder` has parameters without a shape"),
    "hidden by DeepSpeed": (lambda: jepa_score(deepspeed(), GOOD), ValueError, "`encoder` is sharded by DeepSpeed ZeRO-3"),
    "encoder of ids": (lambda: jepa_score(nn.Embedding(9, 3), GOOD), TypeError, "`encoder` takes token ids"),
    "encoder as text": (lambda: DensityMonitor(GOOD).evaluate("vit"), TypeError, "`encoder` must be a module or a callable, got str"),
    "audit of two": (lambda: audit_precision(mlp(), GOOD[:2]), ValueError, "`images` must hold at least 3 images, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_call_is_named(case: str) -> None:
    call, error, message = CALLS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


class Odd(Tiny):
    """Nothing in it has a usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self.encoder
        del self.encoder
        self.note = "text"


def integers() -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(TensorDataset(torch.zeros(8, 3, 8, 8, dtype=torch.uint8)))


# Before the first training step: the callback, and the module where it matters.
SET_UPS: dict[str, tuple[Callable[[], Any], type[Tiny], type[Exception], str]] = {
    "unknown module": (lambda: JepaScoreCallback("teacher"), Tiny, ValueError, "`encoder` names 'teacher', but Tiny has no 'teacher'. Its submodules are: encoder"),
    "unknown part": (lambda: CollapseCallback("encoder.head"), Tiny, ValueError, "`encoder` names 'encoder.head', but Tiny.encoder has no 'head'"),
    "empty path": (lambda: JepaScoreCallback(""), Tiny, ValueError, "`encoder` names '', but Tiny has no ''"),
    "no usual name": (JepaScoreCallback, Odd, ValueError, r"`encoder` was not given.*trunk \(Sequential\)"),
    "a parameter": (lambda: JepaScoreCallback("encoder.0.weight"), Tiny, TypeError, "`encoder` names 'encoder.0.weight', which is a Parameter and cannot be called"),
    "a text": (lambda: JepaScoreCallback("note"), Odd, TypeError, "`encoder` names 'note', which is a str"),
    "returns nothing": (lambda: JepaScoreCallback(lambda module: None), Tiny, TypeError, "`encoder` is a function that must return an encoder, got NoneType"),
    "called with images": (lambda: JepaScoreCallback(lambda x: x.flatten(1)), Tiny, TypeError, "`encoder` is called with the LightningModule and must return an encoder, but raised AttributeError"),
    "takes nothing": (lambda: JepaScoreCallback(lambda: None), Tiny, TypeError, "`encoder` is called with the LightningModule.*raised TypeError"),
    "probe path": (lambda: JepaScoreCallback(probe="images/"), Tiny, TypeError, "`probe` must be a tensor.*got str"),
    "probe keys": (lambda: JepaScoreCallback(probe=DataLoader(Views())), Tiny, TypeError, "`batch_to_images`"),
    "integer probe": (lambda: CollapseCallback(probe=integers()), Tiny, TypeError, "`probe` must be floating point"),
    "empty probe": (lambda: CollapseCallback(probe=[]), Tiny, ValueError, "`probe` is empty"),
    "too few to tell": (lambda: CollapseCallback(probe=images(15)), Tiny, ValueError, "`probe` must hold at least 16 images, got 15"),
    "reference shape": (lambda: JepaScoreCallback(reference=torch.rand(9, 3)), Tiny, ValueError, "`reference` must hold images of the probe's shape"),
    "ood shape": (lambda: JepaScoreCallback(ood={"x": torch.rand(9, 3)}), Tiny, ValueError, r"`ood\['x'\]` must hold images of the probe's shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", SET_UPS)
def test_a_wrong_set_up_is_an_error_before_training(tmp_path: pathlib.Path, case: str) -> None:
    callback, kind, error, message = SET_UPS[case]
    module = kind()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    runner = trainer(tmp_path, [callback()])
    with pytest.raises(error, match=f"(?s){message}"):
        runner.fit(module, loader(16, 2), loader(16, 3))
    assert module.losses == []
    assert runner.global_step == 0
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    # The same module trains as if nothing had been, with a callback that is right.
    if kind is not Odd:
        sound = JepaScoreCallback(max_overhead=None)
        trainer(tmp_path, [sound], max_epochs=1).fit(module, loader(16, 2), loader(16, 3))
        assert len(module.losses) == 2
        assert len(sound.history) == 2


def test_a_folder_that_cannot_be_written_to(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    logger = CSVLogger(tmp_path / "file")
    module = Validated()
    with pytest.raises(OSError, match="file"):  # Lightning's own error, before training
        trainer(tmp_path, [JepaScoreCallback()], logger=logger).fit(module, loader())
    assert module.losses == []
