"""In a Trainer: the curves appear, can be monitored, and the run is what it would have been."""

from __future__ import annotations

import math
import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    Tiny,
    Validated,
    float64_score,
    images,
    loader,
    mlp,
    trainer,
    without_pictures,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from jepa_monitor import DensityMonitor, JepaScoreCallback


def watch(*args: Any, **kwargs: Any) -> JepaScoreCallback:
    """A callback that evaluates whenever it is due, however short the training is."""
    return JepaScoreCallback(*args, **({"max_overhead": None} | kwargs))


TAGS = {
    "jepa_score/mean",
    "jepa_score/std",
    "jepa_score/p05",
    "jepa_score/p50",
    "jepa_score/p95",
    "jepa_score/clipped",
    "collapse/rankme",
    "collapse/normalized_std",
    "monitor/seconds",
    "monitor/images",
    "monitor/nonfinite",
    "monitor/failures",
    "monitor/overhead",
    "monitor/skipped",
    "log_density/mean",
    "density/calibration_error",
    "density/generalisation_gap",
    "density/polarity",
    "outliers/jepa_score",
    "outliers/log_density",
    "outliers/knn",
    "outliers/mahalanobis",
    "collapse/state",
    "jacobian/effective_rank",
}


def _fit(
    tmp_path: pathlib.Path,
    callbacks: list[pl.Callback],
    module: pl.LightningModule | None = None,
    workers: int = 0,
    **settings: Any,
) -> pl.LightningModule:
    pl.seed_everything(7, verbose=False)
    module = module or Validated()
    train = loader(48, 2, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    trainer(tmp_path, callbacks, **settings).fit(module, train, loader(16, 3))
    return module


def test_no_word_needed(tmp_path: pathlib.Path) -> None:
    callback = watch()
    loggers = [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    module = _fit(tmp_path, [callback], logger=loggers)
    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert set(events.Tags()["histograms"]) == {
        "contrast_free/scores",
        "jepa_score/scores",
        "jepa_score/scores_reference",
    }
    assert set(events.Tags()["images"]) == {
        "contrast_free/least_and_most_likely",
        "jepa_score/least_and_most_likely",
        "monitor/overview",
        "density/reliability",
        "density/score_and_distance",
        "jacobian/spectra",
    }
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    # Before training, and after each of two epochs of six batches, where Lightning's own values are.
    steps = [event.step for event in events.Scalars("jepa_score/mean")]
    assert steps == [0, 5, 11]
    assert steps[1:] == [event.step for event in events.Scalars("val/loss")]
    # The last value is that of the trained weights, on the validation images.
    expected = float64_score(module.encoder, images(16, 3)).mean().item()
    assert events.Scalars("jepa_score/mean")[-1].value == pytest.approx(expected, abs=0.02)
    assert "jepa_score/p95" in pathlib.Path(loggers[1].log_dir, "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Tiny, {}),
        (Validated, {}),
        (Validated, {"val_check_interval": 0.5}),
        (Validated, {"check_val_every_n_epoch": 2}),
    ],
)
def test_values_can_be_monitored_from_the_first_epoch_on(
    tmp_path: pathlib.Path, module: type[Tiny], settings: dict[str, Any]
) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path, monitor="jepa_score/mean", save_top_k=-1, filename="{epoch}"
    )
    stopping = EarlyStopping("collapse/rankme", patience=10, mode="max")
    callback = watch()
    _fit(
        tmp_path, [stopping, checkpoint, callback], module(), enable_checkpointing=True, **settings
    )
    assert stopping.stopped_epoch == 0
    saved = [float(score) for score in checkpoint.best_k_models.values()]
    measured = [values["jepa_score/mean"] for values in callback.history]
    assert len(saved) >= 1
    assert all(any(score == pytest.approx(value) for value in measured) for score in saved)
    assert checkpoint.best_model_score is not None


def test_a_checkpoint_after_validation_carries_the_score_of_its_weights(
    tmp_path: pathlib.Path,
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="jepa_score/mean", save_on_train_epoch_end=False)
    _fit(tmp_path, [checkpoint, watch()], enable_checkpointing=True)
    weights = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    module = Validated()
    module.load_state_dict(weights)
    expected = float64_score(module.encoder, images(16, 3)).mean().item()
    assert float(checkpoint.best_model_score) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test(tmp_path: pathlib.Path, stage: str) -> None:
    class Tested(Validated):
        test_step = Validated.validation_step

    module = Tested()
    callback = watch()
    runner = trainer(tmp_path, [callback])
    getattr(runner, stage)(module, loader(16, 3), verbose=False)
    assert callback.failures == 0
    expected = float64_score(module.encoder, images(16, 3)).mean().item()
    assert float(runner.callback_metrics["jepa_score/mean"]) == pytest.approx(expected, abs=0.02)


def test_without_validation_data_the_training_data_serve_with_a_warning(
    tmp_path: pathlib.Path,
) -> None:
    callback = watch(max_probe_samples=8, max_embedding_samples=8)
    with pytest.warns(UserWarning, match="they are not held out"):
        trainer(tmp_path, [callback], max_epochs=1).fit(Tiny(), loader(48, 2, shuffle=True))
    assert callback.monitor is not None
    probe = callback.monitor.images
    assert len(probe) == 8
    found = [any(torch.equal(image, other) for other in images(48, 2)) for image in probe]
    assert all(found)


def test_nothing_happens_in_the_sanity_check(tmp_path: pathlib.Path) -> None:
    callback = watch(every_n_epochs=2)
    _fit(tmp_path, [callback], logger=CSVLogger(tmp_path), num_sanity_val_steps=2, max_epochs=2)
    assert [values["step"] for values in callback.history] == [0, 12]


def test_step_cadence_counts_optimizer_steps(tmp_path: pathlib.Path) -> None:
    callback = watch(every_n_steps=2)
    _fit(tmp_path, [callback], accumulate_grad_batches=3, max_epochs=2)
    assert [values["step"] for values in callback.history] == [0, 2, 4]


def test_collapsed_weights_log_no_nan(tmp_path: pathlib.Path) -> None:
    class Diverging(Validated):
        def on_train_epoch_start(self) -> None:
            for parameter in self.parameters():
                parameter.data.fill_(torch.nan)

    callback = watch()
    stopping = EarlyStopping("jepa_score/mean", check_finite=True, patience=10)
    module = _fit(tmp_path, [callback, stopping], Diverging())
    assert len(module.losses) == 12
    assert callback.history[-1]["monitor/nonfinite"] == 16
    assert all(math.isfinite(value) for values in callback.history for value in values.values())


def test_state_survives_a_checkpoint(tmp_path: pathlib.Path) -> None:
    callback = watch()
    module = Validated()
    runner = trainer(tmp_path, [callback])
    runner.fit(module, loader(48, 2), loader(16, 3))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    resumed = watch()
    trainer(tmp_path, [resumed], max_epochs=3).fit(
        Validated(), loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt"
    )
    assert resumed.history[: len(callback.history)] == callback.history
    assert [values["step"] for values in resumed.history] == [0, 6, 12, 18]


def test_two_callbacks_with_names_do_not_collide(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    module = _Named(student=mlp(192), teacher=mlp(192))
    student, teacher = watch("student", name="student"), watch("teacher")
    runner = trainer(tmp_path, [student, teacher], logger=TensorBoardLogger(tmp_path))
    runner.fit(module, loader(48, 2), loader(16, 3))
    for name, prefix in (("student", "student/"), ("teacher", "")):
        expected = float64_score(getattr(module, name), images(16, 3)).mean().item()
        found = float(runner.callback_metrics[f"{prefix}jepa_score/mean"])
        assert found == pytest.approx(expected, abs=0.02)
    runner.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in states if key.startswith("JepaScoreCallback")]) == 2
    # TensorBoard shows one arrangement a run: whichever it takes has the charts of both.
    events = EventAccumulator(runner.logger.log_dir)
    events.Reload()
    for event in events.Tensors("custom_scalars__config__"):
        layout = Layout.FromString(event.tensor_proto.string_val[0])
        titles = [category.title for category in layout.category]
        assert {"density", "student/density", "collapse", "student/collapse"} <= set(titles)


def test_strict_raises(tmp_path: pathlib.Path) -> None:
    def failing(module: pl.LightningModule) -> Any:
        return lambda batch: batch.sum()

    with pytest.raises(ValueError, match="`encoder` must return one embedding an image"):
        _fit(tmp_path, [watch(failing, strict=True)])


class _Collapsing(Validated):
    def on_train_epoch_start(self) -> None:
        self.encoder[-1].weight.data.zero_()


@pytest.mark.parametrize("reaction", ["warn", "stop", "call"])
def test_alarm(tmp_path: pathlib.Path, reaction: str) -> None:
    called: list[Any] = []
    on_collapse: Any = reaction
    if reaction == "call":

        def on_collapse(trainer: Any, module: Any, reading: Any) -> None:
            called.append(reading)

    callback = watch(on_collapse=on_collapse, patience_steps=3, every_n_steps=2)
    module = _Collapsing()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(tmp_path, [callback], module, max_epochs=4)
    said = [w for w in caught if "JepaScoreCallback at step" in str(w.message)]
    assert len(said) == (reaction != "call")
    assert len(called) == (reaction == "call")
    assert callback.history[-1]["collapse/state"] == 2
    assert callback.history[-1]["collapse/alarm"] == 1
    assert (len(module.losses) < 24) == (reaction == "stop")


def test_reference_and_ood_tell_what_they_should(tmp_path: pathlib.Path) -> None:
    # f(x) = x: the law is the data's own, the Jacobian is the same everywhere.
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(3, 600, 6, generator=generator)
    data[2] += 4
    monitor = DensityMonitor(
        data[0], reference=data[1], ood={"far": data[2]}, max_embedding_samples=600
    )
    report = monitor.evaluate(nn.Identity())
    scalars = report.scalars
    assert scalars["density/precondition"] == 1
    assert scalars["density/calibration_error"] < 0.05
    assert abs(scalars["density/gaussianity_z"]) < 3
    assert scalars["ood/far/auroc_log_density"] > 0.99
    assert scalars["ood/far/auroc_mahalanobis"] > 0.99
    assert scalars["ood/far/auroc_jepa_score"] == 0.5
    assert scalars["outliers/mahalanobis_low"] <= 0.05 <= scalars["outliers/mahalanobis_high"]
    expected = torch.distributions.Normal(0, 1).log_prob(data[0, :64].double()).sum(1)
    error = report.probe.log_density - expected
    assert error.abs().mean() < 0.3  # of μ and Σ


def test_inverted_score_is_told_once(tmp_path: pathlib.Path) -> None:
    class Inverted(nn.Module):
        """The steeper the less an image is as rough as the probe's, so that any change looks dense."""

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            flat = batch.flatten(1)
            rough = (flat[:, 1:] - flat[:, :-1]).square().mean(1, keepdim=True)
            return flat[:, :24] * (1 + 100 * (rough - usual).abs())

    smooth = torch.linspace(0, 1, 8).expand(16, 3, 8, 8) + 0.1 * images(16, 3)
    flat = smooth.flatten(1)
    usual = (flat[:, 1:] - flat[:, :-1]).square().mean()
    callback = watch(Inverted(), probe=smooth, max_probe_samples=16, strict=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(tmp_path, [callback])
    assert all(values["density/polarity_noise"] < 0.1 for values in callback.history)
    assert all(values["density/polarity_high"] < 0.5 for values in callback.history)
    said = [str(w.message) for w in caught if "JEPA-SCORE is inverted" in str(w.message)]
    assert len(said) == 1
    assert "at step 6, as it was at the look before" in said[0]  # of the looks at 0, 6 and 12


class _Named(Tiny):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = mlp(192), mlp(192)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.teacher(batch)


ENCODERS = {
    "student and teacher in one": ({"momentum_encoder": _Pair()}, None, "momentum_encoder.teacher"),
    "EMA target first": ({"target_encoder": mlp(192)}, None, "target_encoder"),
    "teacher's backbone": ({"teacher": nn.ModuleDict({"backbone": mlp(192)})}, None, "teacher.backbone"),
    "path": ({"a": nn.Sequential(nn.Identity(), mlp(192))}, "a.1", "a.1"),
    "path in a dict": ({"s": nn.ModuleDict({"b": mlp(192)})}, "s.b", "s.b"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_is_found(tmp_path: pathlib.Path, name: str) -> None:
    modules, spec, path = ENCODERS[name]
    module = _Named(**modules)
    callback = watch(spec)
    _fit(tmp_path, [callback], module)
    expected = float64_score(module.get_submodule(path), images(16, 3)).mean().item()
    assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("as_function", [True, False])
def test_encoder_may_be_a_module_or_a_function(tmp_path: pathlib.Path, as_function: bool) -> None:
    other = mlp(192)
    callback = watch((lambda module: other) if as_function else other)
    if as_function:
        _fit(tmp_path, [callback])
        expected = float64_score(other, images(16, 3)).mean().item()
        assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)
    else:
        _fit(tmp_path, [callback])
        assert callback.history[0]["jepa_score/mean"] == pytest.approx(
            callback.history[-1]["jepa_score/mean"]
        )


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(images(16, 3))


PROBES: dict[str, Any] = {
    "tensor": images(16, 3),
    "dataset": TensorDataset(images(16, 3)),
    "loader": loader(16, 3),
    "shuffled loader": loader(16, 3, shuffle=True),
    "stream": DataLoader(_Stream(), batch_size=5),
    "batches": [{"image": images(16, 3)[:9]}, {"image": images(16, 3)[9:]}],
    "multi-crop": [([images(16, 3), torch.rand(16, 3, 4, 4)], torch.zeros(16))],
}


@pytest.mark.parametrize("name", PROBES)
def test_probe_from_any_source(name: str) -> None:
    monitor = DensityMonitor(PROBES[name])
    assert torch.equal(monitor.images, images(16, 3))


def test_random_transforms_give_the_same_probe_every_time_and_disturb_nothing() -> None:
    class Augmented(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> torch.Tensor:
            return images(16, 3)[index] + torch.randn(3, 1, 1)

    state = torch.get_rng_state()
    first = DensityMonitor(Augmented()).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert torch.equal(DensityMonitor(Augmented()).images, first)


def test_batch_to_images() -> None:
    monitor = DensityMonitor([{"views": images(16, 3)}], batch_to_images=lambda b: b["views"])
    assert torch.equal(monitor.images, images(16, 3))


def test_monitor_in_a_plain_loop() -> None:
    encoder = mlp(192)
    monitor = DensityMonitor(images(40, 3), max_probe_samples=16)
    report = monitor.evaluate(encoder)
    expected = float64_score(encoder, images(40, 3)[:16])
    torch.testing.assert_close(report.probe.scores, expected, rtol=0, atol=0.02)
    assert report.scalars["jepa_score/p50"] == pytest.approx(
        expected.quantile(0.5).item(), abs=0.02
    )
    assert report.scalars["jepa_score/std"] == pytest.approx(expected.std().item(), abs=0.02)
    assert report.probe.embeddings.shape == (40, 8)
    torch.testing.assert_close(report.probe.embeddings, encoder(images(40, 3)).detach())
    least, most = report.extremes(3)
    assert least.tolist() == expected.argsort()[:3].tolist()
    assert most.tolist() == expected.argsort(descending=True)[:3].tolist()
    assert set(report.figures()) == {
        "contrast_free/least_and_most_likely",
        "jepa_score/least_and_most_likely",
    }


def test_it_says_which_encoder_it_took(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), warnings.catch_warnings():
        _fit(tmp_path, [JepaScoreCallback()])
    said = [record.message for record in caplog.records if "watches" in record.message]
    assert len(said) == 1
    assert "Validated.encoder (Sequential)" in said[0]
