"""Every Python and YAML snippet of the documents runs as it is written, and does what it is there for."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import yaml
from helpers import Validated, float64_score, images, loader, mlp, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter

from jepa_monitor import JepaScoreCallback

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def snippets(language: str) -> dict[str, str]:
    """Every snippet of a language by its document and its number there."""
    found = {}
    for document in DOCUMENTS:
        blocks = re.findall(
            rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL
        )
        for number, block in enumerate(blocks, 1):
            found[f"{document.relative_to(ROOT).as_posix()}:{number}"] = block
    return found


class Teacher(nn.Module):
    """A student and teacher whose backbone gives tokens, the first of them a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(mlp(192, 40), nn.Unflatten(1, (4, 10)))


class Distilled(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.backbone = Teacher(), mlp(192, 12)


class Words(nn.Module):
    """What transformers' models have in common: embeddings of ids in, hidden states out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(9, 6), nn.Linear(6, 5)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.mix(inputs_embeds).tanh())


def given(folder: pathlib.Path) -> dict[str, Any]:
    """What a reader is assumed to have; all else a snippet has to import or to make itself."""
    return {
        "encoder": mlp(192, 12),
        "target_encoder": mlp(192, 40),
        "images": images(6),
        "loader": loader(64, 2),
        "held_out_images": images(40, 3),
        "training_images": images(60, 2),
        "held_out_dataset": TensorDataset(images(40, 3)),
        "train_dataset": TensorDataset(images(60, 2)),
        "svhn_dataset": TensorDataset(images(20, 5) / 4),
        "old_val": images(40, 6),
        "old_train": images(60, 7),
        "writer": SummaryWriter(str(folder / "events")),
        "step": 7,
        "model": Words(),
        "tokenizer": lambda texts: {"input_ids": [[len(w) for w in t.split()] for t in texts]},
        "training_texts": ["a text of so many words"[: 3 + n] for n in range(20)],
    }


def fitted(folder: pathlib.Path, callbacks: list[Any], epochs: int = 1) -> None:
    trainer(folder, callbacks, max_epochs=epochs).fit(Distilled(), loader(48, 2), loader(40, 3))


def the_trainer(names: dict[str, Any], folder: pathlib.Path) -> None:
    names["trainer"].fit(Validated(), loader(48, 2), loader(40, 3))
    (events,) = (folder / "lightning_logs").rglob("events.out.tfevents*")
    tags = EventAccumulator(str(events.parent), {"images": 0}).Reload().Tags()
    assert {"jepa_score/mean", "density/calibration_error", "collapse/state"} <= set(
        tags["scalars"]
    )
    assert "jepa_score/least_and_most_likely" in tags["images"]


def the_callback(names: dict[str, Any], folder: pathlib.Path) -> None:
    fitted(folder, [names["callback"]], epochs=5)
    assert [look["step"] for look in names["callback"].history] == [0, 30]
    last = names["callback"].history[-1]
    backbone = names["callback"].encoder
    assert backbone == "teacher.backbone"
    assert "ood/svhn/auroc_jepa_score" in last
    assert names["callback"].failures == 0


def the_loop(names: dict[str, Any], folder: pathlib.Path) -> None:
    names["writer"].close()
    scalars = EventAccumulator(str(folder / "events")).Reload()
    assert {"jepa_score/mean", "collapse/state", "collapse/alarm"} <= set(scalars.Tags()["scalars"])
    assert [point.step for point in scalars.Scalars("jepa_score/mean")] == [7]


def the_scores(names: dict[str, Any], folder: pathlib.Path) -> None:
    scores = names["jepa_score"](names["encoder"], names["images"])
    expected = float64_score(names["encoder"], names["images"])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)


def the_texts(names: dict[str, Any], folder: pathlib.Path) -> None:
    table = names["model"].get_input_embeddings().weight
    ids = torch.tensor(names["batch"]["input_ids"][0])
    jacobian = torch.autograd.functional.jacobian(
        lambda x: names["model"](x, None).last_hidden_state.mean(0), table[ids].detach()
    )
    expected = torch.linalg.svdvals(jacobian.flatten(1).double()).log().sum()
    found = names["jepa_score"](names["encoder"], names["batch"], method="exact")
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-3)


def two_domains(names: dict[str, Any], folder: pathlib.Path) -> None:
    fitted(folder, names["callbacks"])
    for callback in names["callbacks"]:
        assert callback.failures == 0
        assert f"{callback.prefix}jepa_score/mean" in callback.history[-1]


def the_table(names: dict[str, Any], folder: pathlib.Path) -> None:
    assert names["table"].num_rows == 8
    assert (folder / "scores.parquet").exists()
    assert (folder / "scores.html").exists()


def own_insight(names: dict[str, Any], folder: pathlib.Path) -> None:
    lengths = names["report"].probe.embeddings.norm(dim=1)
    assert names["report"].scalars["lengths/mean"] == pytest.approx(lengths.mean().item())
    run = trainer(folder, [names["callback"]], max_epochs=1, logger=TensorBoardLogger(folder))
    run.fit(Validated(), loader(48, 2), loader(40, 3))
    scalars = EventAccumulator(run.logger.log_dir).Reload().Scalars("lengths/mean")
    assert [event.value for event in scalars] == pytest.approx(
        [look["lengths/mean"] for look in names["callback"].history]
    )
    assert names["callback"].failures == 0


def own_detector(names: dict[str, Any], folder: pathlib.Path) -> None:
    report = names["report"]
    assert report.failed == {}
    assert 0 <= report.scalars["outliers/direction_low"] <= report.scalars["outliers/direction"]
    assert "outliers/knn" not in report.scalars
    callback = JepaScoreCallback(
        probe=names["held_out_images"],
        reference=names["training_images"],
        detectors=[type(names["monitor"].detectors[1])()],
        max_overhead=None,
    )
    run = trainer(folder, [callback], max_epochs=1, logger=TensorBoardLogger(folder))
    run.fit(Validated(), loader(48, 2), loader(40, 3))
    assert len(EventAccumulator(run.logger.log_dir).Reload().Scalars("outliers/direction")) == 2


# What each snippet has done, beyond running.
DONE: dict[str, Callable[[dict[str, Any], pathlib.Path], None]] = {
    "CONTRIBUTING.md:1": own_insight,
    "CONTRIBUTING.md:2": own_detector,
    "README.md:1": the_trainer,
    "README.md:2": the_callback,
    "README.md:3": the_loop,
    "README.md:4": the_scores,
    "docs/recipes/diet.md:1": two_domains,
    "docs/scoring.md:1": the_table,
    "docs/text.md:1": the_texts,
}
PYTHON = snippets("python")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", PYTHON)
def test_snippet_runs_as_it_is_written(
    where: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("MAX_EPOCHS", "1"), ("ACCELERATOR", "cpu"), ("ENABLE_PROGRESS_BAR", "0")):
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate((images(8) * 255).byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{number}.png")
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **_: create("test_vit", num_classes=0, img_size=32)
    )
    names = given(tmp_path)
    exec(compile(PYTHON[where], where, "exec"), names)
    if where in DONE:
        DONE[where](names, tmp_path)


def test_what_is_to_be_shown_is_of_snippets_that_exist() -> None:
    assert set(DONE) <= set(PYTHON)


@pytest.mark.parametrize("where", snippets("yaml"))
def test_config_makes_the_callbacks_that_it_names(where: str, tmp_path: pathlib.Path) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    config = yaml.safe_load(snippets("yaml")[where])
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=True)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    parser.add_argument("--config", action="config")
    parsed = parser.parse_args(["--config", str(path), "--trainer.logger=false"])
    made = parser.instantiate_classes(parsed).trainer.callbacks
    ours = [c for c in made if type(c).__module__.startswith("jepa_monitor.")]
    asked = [one["class_path"].rsplit(".", 1)[1] for one in config["trainer"]["callbacks"]]
    assert [type(c).__name__ for c in ours] == asked
    for callback, entry in zip(ours, config["trainer"]["callbacks"], strict=True):
        for name, value in entry["init_args"].items():
            assert getattr(callback, name) == value
