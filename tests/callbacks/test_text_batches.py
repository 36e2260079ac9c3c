"""The callbacks on batches of token ids: the probe is found unaided, and the run is what it would be."""

from __future__ import annotations

import math
import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import interpreter_settings, trainer
from text_models import TextItems, TinyText, lists, padded, score_of_one
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.encoders import TokenEncoder
from jepa_monitor.probes import collect_images


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    labels = torch.tensor([item["labels"] for item in items])
    return {**padded([item["input_ids"] for item in items]), "labels": labels}


def loader(count: int, seed: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(TextItems(count, seed), batch_size=8, collate_fn=collate)


class Classifier(pl.LightningModule):
    """A text model and a head; it draws random numbers, as training does."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = TinyText(width=36), nn.Linear(36, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        states = self.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return nn.functional.cross_entropy(self.head(states[:, 0]), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fitted(folder: pathlib.Path, *callbacks: pl.Callback) -> Classifier:
    pl.seed_everything(3)
    module = Classifier()
    run = trainer(folder, list(callbacks))
    run.fit(module, loader(48, 2), loader(40, 3))
    return module


def test_the_probe_is_found_and_the_weights_are_those_of_the_run_alone(
    tmp_path: pathlib.Path,
) -> None:
    plain = fitted(tmp_path)
    state = interpreter_settings()
    callback = JepaScoreCallback(max_overhead=None, max_probe_samples=24)
    fast = CollapseCallback(every_n_steps=4, name="fast")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(many workers|logging interval|log_every).*")
        watched = fitted(tmp_path, callback, fast)
    assert interpreter_settings() == state
    for (name, value), other in zip(
        watched.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    last = callback.history[-1]
    assert callback.failures == fast.failures == last["monitor/failed_insights"] == 0
    assert {"jepa_score/mean", "log_density/mean", "outliers/knn", "collapse/rankme", "quality/knn"} <= set(last)  # fmt: skip
    absent = (
        "density/polarity",
        "views/",
        "contrast",
        "data/",
        "quality/knn_pixels",
        "outliers/contrast",
    )
    assert [tag for tag in last if tag.startswith(absent)] == []
    assert "fast/collapse/rankme" in fast.history[-1]
    assert callback.monitor is not None
    assert callback.monitor.images.shape == (40, 9, 2)


def test_the_scores_are_those_of_the_texts(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(
        max_overhead=None, max_probe_samples=4, options=ScoreOptions("exact"), labels=None
    )
    module = fitted(tmp_path, callback)
    truth = [score_of_one(module.model, text, "mean") for text in TextItems(40, 3).texts[:4]]
    found = callback.history[-1]["jepa_score/mean"]
    assert found == pytest.approx(sum(truth) / 4, abs=1e-3)


def test_a_monitor_takes_texts_of_any_length_and_its_encoder_pools_as_told() -> None:
    model = TinyText(True, width=16)
    monitor = DensityMonitor(TextItems(24, 3), reference=[padded(lists(40, 4), "left")])
    assert monitor.labels is not None
    report = monitor.evaluate(TokenEncoder(model, "last"))
    truth = [score_of_one(model, text, "last") for text in TextItems(24, 3).texts]
    torch.testing.assert_close(
        report.probe.scores, torch.tensor(truth, dtype=torch.float64), rtol=0, atol=1e-3
    )
    first = monitor.evaluate(model.float()).scalars["jepa_score/mean"]
    assert not math.isclose(first, report.scalars["jepa_score/mean"], abs_tol=1e-3)
    assert monitor.plan(model).startswith("a look embeds 64 texts, and scores 64 of them")


@pytest.mark.parametrize("name", ["tokens", "layers", "attention", "alignment", "lidar", "leverage"])  # fmt: skip
def test_what_is_of_images_is_absent_with_a_reason(name: str) -> None:
    monitor = DensityMonitor(padded(lists(24)), insights=[name])
    with pytest.warns(UserWarning, match="of images, and the probe holds texts"):
        report = monitor.evaluate(TinyText())
    assert report.failed == {name: "LookupError: it is of images, and the probe holds texts"}


def test_other_insights_work_on_texts() -> None:
    names = ["neighbors", "dimension", "separation", "tasks"]
    data = TextItems(48, 3)
    monitor = DensityMonitor(
        data, insights=names, compare_with=TinyText(seed=2), max_probe_samples=4
    )
    report = monitor.evaluate(TinyText())
    assert report.failed == {}
    for name in ("neighbors/", "dimension/", "separation/", "tasks/"):
        assert [tag for tag in report.scalars if tag.startswith(name)], name


def test_any_source_of_texts_is_read() -> None:
    items = TextItems(10, 5)
    expected = collect_images({"input_ids": items.texts}, 10)
    sources: list[Any] = [items, DataLoader(items, 4, collate_fn=collate), [padded(items.texts)], expected]  # fmt: skip
    for source in sources:
        assert torch.equal(collect_images(source, 10), expected)
    pairs = [(padded(items.texts[:4]), torch.arange(4)), (padded(items.texts[4:]), torch.arange(6))]
    assert torch.equal(collect_images(pairs, 10), expected)


@pytest.mark.parametrize(
    ("probe", "encoder", "message"),
    [
        (padded(lists(20)), nn.Linear(3, 2), "`model` must have `get_input_embeddings"),
        (padded(lists(20)), lambda x: x, "`encoder` must be a model with `get_input_embeddings"),
        ({"input_ids": [[99]] * 20}, TinyText(), "ids below 40"),
    ],
)
def test_what_cannot_be_watched_is_told(probe: Any, encoder: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DensityMonitor(probe).evaluate(encoder)


def test_an_empty_text_is_an_error_that_names_the_set() -> None:
    with pytest.raises(ValueError, match=r"`probe` must have at least one token.*text 1 has none"):
        DensityMonitor({"input_ids": [[1], []]})
