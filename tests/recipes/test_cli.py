"""The command line from end to end, in a temporary folder."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import few_digits, seldom, without_pictures
from lightning.pytorch import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_monitor.recipes import dinov2, ijepa, lejepa, mae, vicreg
from jepa_monitor.recipes.cli import newest_checkpoint, parse, spell_out, train, verdict
from jepa_monitor.recipes.dinov2 import DinoV2
from jepa_monitor.recipes.ijepa import IJepa
from jepa_monitor.recipes.lejepa import LeJepa
from jepa_monitor.recipes.mae import Mae
from jepa_monitor.recipes.vicreg import VicReg


@dataclass(frozen=True)
class Recipe:
    """A method, and what makes it small."""

    model: type[LightningModule]
    name: str
    main: Callable[..., Any]
    defaults: Mapping[str, Any]
    small: tuple[str, ...]
    tags: tuple[str, ...]  # that it logs besides loss and learning rate
    width: int = 8

    def parse(self, args, max_epochs=60):
        return parse(self.model, self.name, max_epochs, args, self.defaults)

    def train(self, args):
        return train(self.parse(args))


RECIPES = [
    Recipe(
        IJepa,
        "ijepa",
        ijepa.main,
        {},
        (
            *("--model.patch_size", "2", "--model.heads", "2"),
            *("--model.predictor_width", "8", "--model.predictor_depth", "1"),
        ),
        ("train/weight_decay", "train/momentum", "val/loss"),
    ),
    Recipe(
        Mae,
        "mae",
        mae.main,
        mae.DEFAULTS,
        ("--model.heads", "2", "--model.decoder_width", "8"),
        ("train/weight_decay", "val/loss", "mae/influence_length", "mae/reconstruction_length"),
    ),
    Recipe(
        LeJepa,
        "lejepa",
        lejepa.main,
        lejepa.DEFAULTS,
        (
            *("--model.projector_hidden", "16", "--model.projector_width", "4"),
            *("--model.slices", "8", "--model.drop_path", "0.2", "--data.local_views", "1"),
        ),
        ("train/prediction", "train/sigreg"),
    ),
    Recipe(
        VicReg,
        "vicreg",
        vicreg.main,
        vicreg.DEFAULTS,
        ("--model.expander_hidden", "16", "--model.expander_width", "16"),
        ("train/invariance", "train/variance", "train/covariance"),
    ),
    Recipe(
        DinoV2,
        "dinov2",
        dinov2.main,
        dinov2.DEFAULTS,
        (
            *("--model.head_hidden", "16", "--model.bottleneck", "8", "--model.prototypes", "16"),
            *("--model.heads", "2", "--data.local_views", "1"),
        ),
        (
            *("train/dino", "train/ibot", "train/koleo", "train/weight_decay", "train/momentum"),
            *("train/last_layer_lr", "train/teacher_temperature"),
        ),
    ),
]
SMALL = [
    *("--data.image_size", "16", "--data.batch_size", "40"),
    *("--model.width", "8", "--model.depth", "1"),
    *("--monitor.max_probe_samples", "20", "--monitor.max_embedding_samples", "32"),
    *("--monitor.max_overhead", "null", "--monitor.strict", "true"),
    *("--monitor.polarity_samples", "2"),
    *("--knn.max_train", "100", "--knn.max_val", "50", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
]
CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*.yaml"))
# Those of DIET have a test of their own (test_diet_command.py).
CONFIGS = [config for config in CONFIGS if not config.stem.startswith("diet_")]


@pytest.fixture(params=RECIPES, ids=lambda r: r.name)
def recipe(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ijepa"])
    np.savez("some.npz", **few_digits())
    return tmp_path


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("recipe", [RECIPES[0], *seldom(*RECIPES[1:])], ids=lambda r: r.name)
def test_two_epochs_log_everything_and_resume_exactly(folder, capsys, recipe, monkeypatch) -> None:
    without_pictures(monkeypatch)
    small = [*SMALL, *recipe.small, "--data", "npz:some.npz"]
    arguments = [*small, "--trainer.max_epochs", "2", "--checkpoint.save_top_k", "-1"]
    trainer = recipe.train(arguments)
    printed = capsys.readouterr().out
    told = ("k-NN accuracy: ", "linear accuracy: ", "raw pixels", "tensorboard --logdir")
    for text in ("JEPA-SCORE, terms", "RankMe", *told):
        assert text in printed
    assert f"runs/{recipe.name}" in printed
    assert " ".join(printed.split()).count("Gaussian") == 1  # the verdict, wrapped
    assert "- │" not in printed  # every cell has its number

    events = EventAccumulator(trainer.log_dir).Reload()
    tags = {
        *("train/loss", "train/lr", *recipe.tags),
        *("eval/knn_accuracy", "jepa_score/mean", "collapse/rankme", "monitor/seconds"),
    }
    assert not tags - set(events.Tags()["scalars"])
    assert len(events.Scalars("jepa_score/mean")) == 3  # before training and after each epoch
    assert len(events.Scalars("train/loss")) == 6

    run = folder / "runs" / recipe.name / "version_0"
    first = next((run / "checkpoints").glob("epoch=0-*.ckpt"))
    straight = weights(run / "checkpoints" / "last.ckpt")
    resumed = recipe.train([*arguments, "--ckpt_path", str(first)])
    assert resumed.global_step == trainer.global_step
    again = weights(Path(resumed.log_dir) / "checkpoints" / "last.ckpt")
    assert straight.keys() == again.keys()
    assert all(torch.equal(straight[name], again[name]) for name in straight)
    # The table's first column survives the resume.
    first_column = [line.split("│")[2] for line in printed.splitlines() if line.count("│") > 3]
    printed = capsys.readouterr().out
    assert first_column == [
        line.split("│")[2] for line in printed.splitlines() if line.count("│") > 3
    ]

    model = recipe.model.load_from_checkpoint(first)
    assert model.hparams["in_channels"] == 1
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, recipe.width)

    longer = [*small, "--trainer.max_epochs", "3", "--ckpt_path", "last"]
    assert recipe.train(longer).current_epoch == 3


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, []),
        ({"collapse/state": 0.0, "density/precondition": 1.0}, ["Healthy", "close enough"]),
        ({"collapse/state": 1.0, "density/precondition": 0.0}, ["Dimensional", "not Gaussian"]),
        ({"density/precondition_needed": 224.0}, ["^Whether they are Gaussian takes 224"]),
        (
            {"collapse/state": 2.0, "density/polarity": 0.4, "density/polarity_high": 0.45},
            ["Complete", r"inverted: .*0\.40"],
        ),
        (
            {"density/polarity": 0.4, "density/polarity_high": 0.6, "monitor/failures": 3.0},
            ["^3 evaluations .* failed"],
        ),
    ],
)
def test_the_verdict_says_what_the_monitor_saw(metrics, words) -> None:
    said = verdict(metrics)
    assert all(re.search(word, said) for word in words)
    assert said.count(".") - said.count("0.") == len(words)


def test_last_without_a_run_is_refused(folder, recipe) -> None:
    message = rf"ckpt_path='last': there is no .*'runs/{recipe.name}'"
    with pytest.raises(ValueError, match=message):
        recipe.train([*SMALL, *recipe.small, "--ckpt_path", "last"])
    with pytest.raises(ValueError, match="there is no"):
        newest_checkpoint(folder)


def test_newest_checkpoint_is_the_newest(folder) -> None:
    for age, version in enumerate(("version_1", "version_0")):
        path = folder / version / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert "version_1" in newest_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "cifar10"], ["--data.name", "cifar10"]),
        (["--data=npz:a.npz"], ["--data.name=npz:a.npz"]),
        (["--data", "mine.yaml"], ["--data", "mine.yaml"]),
        (["--data.name", "digits", "--x=1"], ["--data.name", "digits", "--x=1"]),
    ],
)
def test_data_shorthand(arguments, expected) -> None:
    assert spell_out(arguments, {"--data": "--data.name"}) == expected


def test_flags_reach_their_objects(folder, recipe) -> None:
    cli = recipe.parse(["--data", "digits", "--seed_everything", "7", *SMALL, *recipe.small])
    assert cli.datamodule.name == "digits"
    assert (cli.datamodule.seed, cli.model.hparams["seed"]) == (7, 7)
    assert (cli.model.hparams["image_size"], cli.model.hparams["in_channels"]) == (16, 1)
    every = {type(c).__name__: getattr(c, "every_n_epochs", None) for c in cli.trainer.callbacks}
    assert (every["JepaScoreCallback"], every["OnlineKNN"]) == (6, 6)


def test_what_a_method_asks_for_is_only_a_default(folder, recipe) -> None:
    asked = {name: value for name, value in recipe.defaults.items() if name.startswith("data.")}
    cli = recipe.parse([])
    assert all(cli.config[name] == value for name, value in asked.items())
    cli = recipe.parse(["--data.batch_size", "33", "--knn.encoder", "elsewhere"])
    assert (cli.config["data.batch_size"], cli.config["knn.encoder"]) == (33, "elsewhere")


def test_cadence_always_meets_the_last_epoch(folder) -> None:
    recipe = RECIPES[0]
    for epochs, expected in [(2, 1), (17, 1), (30, 3), (45, 3)]:
        cli = recipe.parse([*SMALL, *recipe.small], epochs)
        for name in (
            "monitor.every_n_epochs",
            "knn.every_n_epochs",
            "trainer.check_val_every_n_epoch",
        ):
            assert cli.config[name] == expected
    cli = recipe.parse([*SMALL, *recipe.small, "--monitor.every_n_steps", "5"])
    assert cli.config["monitor.every_n_epochs"] is None


@pytest.mark.parametrize(
    ("asked", "epochs", "interval"),
    [
        ({"check_val_every_n_epoch": 2}, 2, None),
        ({"check_val_every_n_epoch": 1}, 1, None),
        ({"val_check_interval": 3}, 1, 3),  # batches of an epoch, as in Lightning
        ({"val_check_interval": 0.5}, 1, 0.5),
        ({"check_val_every_n_epoch": "null", "val_check_interval": 7}, None, 7),  # of the run
    ],
)
def test_when_to_validate_is_lightnings_where_it_is_told(folder, asked, epochs, interval) -> None:
    recipe = RECIPES[0]
    told = [f"--trainer.{name}={value}" for name, value in asked.items()]
    cli = recipe.parse([*SMALL, *recipe.small, *told], 30)
    assert cli.trainer.check_val_every_n_epoch == epochs
    assert cli.config["trainer.val_check_interval"] == interval


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_configs_are_valid(folder, config) -> None:
    recipe = next(r for r in RECIPES if config.stem.startswith(f"{r.name}_"))
    text = config.read_text()
    assert f"python -m jepa_monitor.recipes.{recipe.name} --config recipes/configs/" in text
    for part in ("train", "val"):
        images = folder / "data" / "imagenet" / part / "a_class"
        images.mkdir(parents=True)
        np.save(images / "an_image.npy", np.zeros((8, 8, 3), np.uint8))
    try:
        with torch.device("meta"):  # shapes without memory: one of them is a ViT-H/14
            cli = recipe.parse(["--config", str(config)])
    except RuntimeError as error:
        if "meta tensors" not in str(error):
            raise
        pytest.skip(f"timm {timm.__version__} builds no model without memory")
    assert cli.model.hparams["in_channels"] == (1 if config.stem.endswith("_digits") else 3)
    if config.stem == "ijepa_vith14":
        # timm's vit_huge_patch14_224: 632 045 800 parameters, less its class token with its
        # position and its 1000-way head.
        head = 1000 * 1280 + 1000 + 2 * 1280
        assert sum(p.numel() for p in cli.model.encoder.parameters()) == 632_045_800 - head


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_as_a_module_it_prints_a_config_that_it_accepts(folder, recipe) -> None:
    arguments = [*SMALL, *recipe.small, "--print_config"]
    command = [sys.executable, "-m", f"jepa_monitor.recipes.{recipe.name}", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "RuntimeWarning" not in shown.stderr
    (folder / "config.yaml").write_text(shown.stdout)
    cli = recipe.parse(["--config", "config.yaml", "--trainer.max_epochs", "4"])
    assert cli.model.hparams["width"] == 8
    assert cli.trainer.max_epochs == 4
    assert cli.config["monitor.max_probe_samples"] == 20
    given = {argument.removeprefix("--") for argument in arguments}
    asked = {name: value for name, value in recipe.defaults.items() if name not in given}
    assert all(cli.config[name] == value for name, value in asked.items())


def test_what_a_recipe_is_made_of_does_not_import_it_under_another_name() -> None:
    """`python -m` runs a module as `__main__`: who imports it by name has other classes of the same name."""
    texts = {path.stem: path.read_text() for path in Path(lejepa.__file__).parent.glob("*.py")}
    entry = 'if __name__ == "__main__":'
    imports = {
        name: set(re.findall(r"from jepa_monitor\.recipes\.(\w+) import", text.partition(entry)[0]))
        for name, text in texts.items()
    }
    run = [name for name, text in texts.items() if entry in text]
    assert len(run) >= 8
    for name in run:
        needed = set(imports[name])
        while (more := {each for other in needed for each in imports[other]}) - needed:
            needed |= more
        own = f"from jepa_monitor.recipes.{name} import" in texts[name].partition(entry)[2]
        assert name not in needed or own, name
