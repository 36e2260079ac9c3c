"""DIET-CP from its command line: both domains watched, resumed, refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import few_digits, without_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_monitor.callbacks import JepaScoreCallback
from jepa_monitor.recipes.cli import parse, train
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.diet import DEFAULTS, Diet
from jepa_monitor.recipes.old_domain import DietCLI, photographs

SMALL = [
    *("--data.batch_size", "40", "--model.width", "8", "--model.depth", "1"),
    *("--knn.max_train", "100", "--knn.max_val", "50", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--trainer.enable_model_summary", "false"),
    *(
        word
        for monitor in ("monitor", "old_monitor")
        for word in (
            *(f"--{monitor}.max_probe_samples", "8", f"--{monitor}.max_embedding_samples", "32"),
            *(f"--{monitor}.max_overhead", "null", f"--{monitor}.strict", "true"),
            *(f"--{monitor}.polarity_samples", "2"),
        )
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diet"])
    arrays = few_digits()
    np.savez("new.npz", **arrays)
    np.savez("old.npz", **{n: 255 - a if "images" in n else a for n, a in arrays.items()})
    return tmp_path


def run(*arguments):
    arguments = [*SMALL, "--data", "npz:new.npz", *arguments]
    return train(parse(Diet, "diet", 2, arguments, DEFAULTS, DietCLI))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_both_domains_are_watched_and_a_resumed_run_ends_in_the_same_weights(
    folder, capsys, monkeypatch
) -> None:
    # Pictures are drawn by the test from the shell, and are most of the time.
    without_pictures(monkeypatch)
    arguments = ["--old.name", "npz:old.npz", "--old.epochs", "1", "--checkpoint.save_top_k", "-1"]
    trainer = run(*arguments)
    printed = capsys.readouterr().out
    assert "First, LeJEPA for 1 epochs on npz:old.npz" in printed
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    assert "Old domain: JEPA-SCORE, mean (nats)" in rows
    assert "- │" not in printed  # every cell has its number

    old, new = (
        next(c for c in trainer.callbacks if isinstance(c, JepaScoreCallback) and c.name == name)
        for name in ("old", "")
    )
    # The old images are the new ones' negatives, so that their corners are light.
    for held in ("images", "reference"):
        corners = [getattr(c.monitor, held)[:, 0, 0, 0].median() for c in (old, new)]
        assert corners[0] > 0 > corners[1]

    events = EventAccumulator(trainer.log_dir).Reload()
    shared = ("jepa_score/mean", "log_density/mean", "collapse/rankme", "collapse/normalized_std")
    alone = ("loss", "excess", "index_accuracy", "lr", "backbone_lr", "weight_decay")
    expected = {*shared, *(f"old/{t}" for t in shared), *(f"train/{t}" for t in alone)}
    assert not expected - set(events.Tags()["scalars"])
    for tag in ("jepa_score/mean", "old/jepa_score/mean"):
        assert len(events.Scalars(tag)) == 3  # before training and after each epoch
    # They look at different images.
    monitors = {c.name: c.monitor for c in trainer.callbacks if isinstance(c, JepaScoreCallback)}
    torch.testing.assert_close(monitors[""].images[0], trainer.datamodule.val_set[0][0])
    assert not torch.equal(monitors[""].images, monitors["old"].images)

    first = next(Path(trainer.log_dir, "checkpoints").glob("epoch=0-*.ckpt"))
    resumed = run(*arguments, "--ckpt_path", str(first))
    assert "LeJEPA" not in capsys.readouterr().out  # its past is in the checkpoint
    straight, again = (
        weights(Path(t.log_dir, "checkpoints/last.ckpt")) for t in (trainer, resumed)
    )
    assert straight.keys() == again.keys()
    assert all(torch.equal(straight[name], again[name]) for name in straight)

    model = Diet.load_from_checkpoint(first)
    assert model.head.out_features == 120
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 8)


@pytest.mark.slow
def test_without_an_old_domain_there_is_one_monitor(folder) -> None:
    trainer = run("--old.name", "null", "--trainer.max_steps", "1")
    assert "jepa_score/mean" in trainer.callback_metrics
    assert "old/jepa_score/mean" not in trainer.callback_metrics


def test_photographs_are_cut_without_overlap_and_only_once(tmp_path) -> None:
    for channels in (1, 3):
        name = photographs(tmp_path, channels)
        data = ImageDataModule(name, image_size=64)
        assert data.channels == channels
        data.setup()
        assert (len(data.plain_train_set), len(data.val_set)) == (1000, 200)
        assert {data.val_set[i][1] for i in range(4)} == {0, 1}
    made = Path(name.removeprefix("npz:")).stat().st_mtime_ns
    assert photographs(tmp_path, 3) == name
    assert Path(name.removeprefix("npz:")).stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="1 or 3 channels, the images have 2"):
        photographs(tmp_path, 2)


def test_domains_of_different_channels_are_refused(folder) -> None:
    cli = parse(Diet, "diet", 2, [*SMALL, "--old.name", "cifar10"], DEFAULTS, DietCLI)
    with pytest.raises(ValueError, match="has 3 channels, the new images have 1"):
        cli.before_fit()


def test_the_config_is_valid(folder) -> None:
    path = Path(__file__).parents[2] / "recipes" / "configs" / "diet_224.yaml"
    assert "python -m jepa_monitor.recipes.diet --config recipes/configs/" in path.read_text()
    images = folder / "data" / "mine"
    images.mkdir(parents=True)
    for i in range(5):
        np.save(images / f"{i}.npy", np.zeros((8, 8, 3), np.uint8))
    arguments = ["--config", str(path), "--model.pretrained", "false"]
    cli = parse(Diet, "diet", 2, arguments, DEFAULTS, DietCLI)
    trained = [p for p in cli.model.backbone.parameters() if p.requires_grad]
    # Two of DINOv2's blocks of width 384 (with LayerScale) and the last norm.
    block = 12 * 384**2 + (3 + 1 + 4 + 1) * 384 + 4 * 384 + 2 * 384
    assert sum(p.numel() for p in trained) == 2 * block + 2 * 384


@pytest.mark.slow
def test_from_the_shell_both_stages_run(tmp_path: Path) -> None:
    """As `python -m` runs it, where the recipe's own module is `__main__`."""
    words = [*SMALL, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    words += ["--old.epochs", "1", "--trainer.accelerator", "cpu"]
    command = [sys.executable, "-m", "jepa_monitor.recipes.diet", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "k-NN accuracy" in done.stdout
