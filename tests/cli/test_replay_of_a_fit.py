"""A run replayed from its checkpoints says what the callback said while it trained."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch
from helpers import trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from replay_runs import COSTS, Wide, events, pixels, save, tensors, write_data
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import JepaScoreCallback
from jepa_monitor.cli import ReplaySettings, replay_run


class Live:
    """A run that the callback looked at three times, with a checkpoint of each look."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.data = write_data(folder / "images.npz")
        held_out = TensorDataset(tensors(pixels(50, 1)), torch.arange(50))
        training = TensorDataset(tensors(pixels(70, 2)), torch.arange(70))
        self.callback = JepaScoreCallback(
            "encoder", held_out, reference=training, every_n_steps=4, max_probe_samples=8,
            max_embedding_samples=40, polarity_samples=3, max_overhead=None, patience_steps=10,
            insights=["neighbors"],
        )  # fmt: skip
        self.ckpts = folder / "ckpts"
        saves = ModelCheckpoint(self.ckpts, every_n_train_steps=4, save_top_k=-1)
        run = trainer(
            folder, [self.callback, saves], max_epochs=2, max_steps=8, enable_checkpointing=True,
            logger=TensorBoardLogger(folder / "live"),
        )  # fmt: skip
        save(self.ckpts, 0)
        run.fit(Wide(), DataLoader(training, 12))
        self.log = pathlib.Path(run.logger.log_dir)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(tmp_path_factory.mktemp("live"))


def test_the_numbers_are_those_of_the_callback(live: Live, tmp_path: pathlib.Path) -> None:
    settings = ReplaySettings(
        max_probe_samples=8, max_embedding_samples=40, polarity_samples=3, patience_steps=10,
        insights=["neighbors"],
    )  # fmt: skip
    for day, step in enumerate((0, 4, 8)):
        (path,) = live.ckpts.glob(f"*step={step}.ckpt")
        os.utime(path, (1e9 + 86400 * day,) * 2)
    found = replay_run(
        [str(live.ckpts)], str(live.data), tmp_path, model="replay_runs:body", settings=settings
    )
    history = live.callback.history
    assert [look["step"] for look in history] == [0, 4, 8]
    assert "sketch" in dict(found.facts)["scored"]
    for again, look in zip(found.looks, history, strict=True):
        assert again["step"] == look["step"]
        assert again.keys() - COSTS == look.keys() - COSTS
        assert len(again) > 60
        for tag in again.keys() - COSTS:
            assert again[tag] == pytest.approx(look[tag], rel=1e-6, abs=1e-6), tag

    # And TensorBoard shows the same, at the step and the time of each checkpoint.
    now, then = events(tmp_path), events(live.log)
    for kind in ("scalars", "images", "histograms"):
        theirs = {tag for tag in then.Tags()[kind] if "/" in tag}
        assert theirs - COSTS == set(now.Tags()[kind]) - COSTS
    for tag in set(now.Tags()["scalars"]) - COSTS:
        values = [event.value for event in now.Scalars(tag)]
        assert values == pytest.approx([event.value for event in then.Scalars(tag)], rel=1e-5), tag
    for tag in now.Tags()["images"]:
        ours, theirs = now.Images(tag)[-1], then.Images(tag)[-1]
        assert (ours.width, ours.height) == (theirs.width, theirs.height), tag
    told = [
        [event.tensor_proto.string_val[0] for event in one.Tensors("monitor/verdict/text_summary")]
        for one in (now, then)
    ]
    cost = b" This look took"  # of a run that is over nobody knows
    assert told[0] == [words.partition(cost)[0] for words in told[1]]
    scores = now.Scalars("jepa_score/mean")
    assert [event.step for event in scores] == [0, 4, 8]
    assert [event.wall_time for event in scores] == [1e9 + 86400 * day for day in range(3)]
