"""Loggers are known by what their methods take: numbers go to all, pictures to those that have a place."""

from __future__ import annotations

import contextlib
import io
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Validated, loader, seldom, trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_monitor import JepaScoreCallback

FIGURES = {"jepa_score/least_and_most_likely", "density/reliability", "jacobian/spectra"}


class Numbers(Logger):
    """The least that Lightning asks of a logger: it has no `experiment`."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: list[tuple[int | None, dict[str, float]]] = []

    name, version = "own", "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.scalars.append((step, metrics))

    def log_hyperparams(self, *_: Any) -> None: ...


class LikeWandb(Numbers):
    """Follows `WandbLogger.log_image`."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, list[tuple[int | None, np.ndarray]]] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        for image in images:
            assert image.mode == "RGB"
            self.pictures.setdefault(key, []).append((step, np.asarray(image)))


class LikeSwanLab(LikeWandb):
    """Follows `SwanLabLogger.log_text`."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, list[tuple[int | None, str]]] = {}

    def log_text(self, key: str, texts: list[Any], step: int | None = None) -> None:
        self.words.setdefault(key, []).extend((step, text) for text in texts)


class OwnLogImage(Numbers):
    """Methods of these names which take something else."""

    def log_image(self, name: str, image: torch.Tensor, epoch: int) -> None:
        raise AssertionError("called with what it does not take")

    def log_text(self, key: str, text: str) -> None:
        raise AssertionError("called with what it does not take")


class Experiment:
    """Comet's: `log_figure` as well, but not as MLflow has it."""

    def log_figure(
        self, figure_name: str, figure: Any, overwrite: bool = False, step: int | None = None
    ) -> None:
        raise AssertionError("called with what it does not take")

    def add_histogram(self, name: str, counts: list[int]) -> None:
        raise AssertionError("called with what it does not take")

    def add_text(self, words: str) -> None:
        raise AssertionError("called with what it does not take")


class LikeComet(Numbers):
    experiment = Experiment()


class Gone(LikeWandb):
    """Its server is not there."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "jepa_score/mean" in metrics:
            raise ConnectionError("server is gone")


class GonePictures(LikeWandb):
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:  # type: ignore[override]
        raise ConnectionError("server is gone")


def fit(folder: pathlib.Path, loggers: list[Any], **settings: Any) -> JepaScoreCallback:
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=16, **settings)
    watched = trainer(folder, [callback], logger=loggers)
    watched.fit(Validated(), loader(48, 2), loader(16, 3))
    return callback


class Shared:
    """One run that all of them watch: pictures, which take most of the time, are drawn once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.like_wandb, self.like_swanlab = LikeWandb(), LikeSwanLab()
        self.no_pictures: list[Numbers] = [Numbers(), OwnLogImage(), LikeComet()]
        self.tensorboard = TensorBoardLogger(folder)
        self.prefixed = TensorBoardLogger(folder, name="prefixed", prefix="run")
        self.numbers = [*self.no_pictures, self.like_wandb, self.like_swanlab]
        loggers = [*self.numbers, self.tensorboard, self.prefixed]
        with contextlib.redirect_stdout(io.StringIO()) as self.said:
            self.callback = fit(folder, loggers, strict=True, name="teacher")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


def check_numbers(logger: Numbers, callback: JepaScoreCallback, prefix: str) -> None:
    found = [(step, m) for step, m in logger.scalars if f"{prefix}jepa_score/mean" in m]
    assert [step for step, _ in found] == [0, 5, 11]
    for (_, written), kept in zip(found, callback.history, strict=True):
        assert written == {tag: value for tag, value in kept.items() if tag != "step"}


def test_numbers_reach_every_logger_and_none_is_asked_for_what_it_has_not(shared: Shared) -> None:
    for logger in shared.numbers:
        check_numbers(logger, shared.callback, "teacher/")
    assert shared.callback.failures == 0
    assert "fail" not in shared.said.getvalue()


@pytest.mark.parametrize("kind", [Numbers, OwnLogImage, LikeComet])
def test_a_logger_of_numbers_alone_is_enough(
    kind: type[Numbers], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = kind()
    callback = fit(tmp_path, [logger], strict=True)
    check_numbers(logger, callback, "")
    assert callback.failures == 0
    assert "fail" not in capsys.readouterr().out


def test_pictures_for_whoever_follows_weights_and_biases(shared: Shared) -> None:
    assert {f"teacher/{tag}" for tag in FIGURES} <= set(shared.like_wandb.pictures)
    for tag, pictures in shared.like_wandb.pictures.items():
        assert [step for step, _ in pictures] == [0, 5, 11], tag
        for _, image in pictures:
            assert image.ndim == 3
            assert image.std() > 1  # something is drawn
            assert image.min() < 250


def test_words_are_those_of_tensorboard_at_the_same_steps(shared: Shared) -> None:
    ours, theirs = shared.like_swanlab, shared.tensorboard
    events = EventAccumulator(theirs.log_dir, {"tensors": 0}).Reload()
    for tag in ("teacher/monitor/settings", "teacher/monitor/verdict"):
        shown = events.Tensors(f"{tag}/text_summary")
        read = [(e.step, e.tensor_proto.string_val[0].decode()) for e in shown]
        assert ours.words[tag] == read
        assert read[0][0] == 0
    assert "| probe | 16 images |" in ours.words["teacher/monitor/settings"][0][1]


@pytest.mark.parametrize("gone", [GonePictures, *seldom(Gone)])
def test_a_logger_that_fails_does_not_silence_the_others(
    gone: type[LikeWandb], tmp_path: pathlib.Path
) -> None:
    after, tensorboard, csv = LikeWandb(), TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="ConnectionError: server is gone") as warned:
        callback = fit(tmp_path, [gone(), after, tensorboard, csv])
    assert len([w for w in warned if "server is gone" in str(w.message)]) == 1
    assert callback.failures == 3
    assert [step for step, m in after.scalars if "jepa_score/mean" in m] == [0, 5, 11]
    assert set(after.pictures) >= FIGURES
    events = EventAccumulator(tensorboard.log_dir, {"images": 0}).Reload()
    assert set(events.Tags()["images"]) >= FIGURES
    assert "jepa_score/mean" in pathlib.Path(csv.log_dir, "metrics.csv").read_text()


def test_tensorboards_own_prefix_is_put_before_pictures_as_before_numbers(shared: Shared) -> None:
    tags = EventAccumulator(shared.prefixed.log_dir, {"images": 0, "tensors": 0}).Reload().Tags()
    numbers = {tag for tag in shared.callback.history[-1] if tag != "step"}
    assert len(numbers) > 40
    assert all(tag.startswith("teacher/") for tag in numbers)
    assert {f"run-{tag}" for tag in numbers} <= set(tags["scalars"])
    assert {f"run-teacher/{tag}" for tag in FIGURES} <= set(tags["images"])
    drawn = {*tags["images"], *tags["histograms"]}
    assert all(tag.startswith("run-teacher/") for tag in drawn)
    assert "run-teacher/monitor/verdict/text_summary" in tags["tensors"]
    assert not any(tag.startswith("teacher/") for kind in tags.values() if kind for tag in kind)
