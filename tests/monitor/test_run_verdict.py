"""What a look says in words and in one picture, where it is known what is true."""

from __future__ import annotations

import base64
import io
import itertools
import pathlib
import re

import pytest
import torch
from helpers import Validated, images, loader, mlp, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from jepa_monitor import DensityMonitor, JepaScoreCallback
from jepa_monitor.insights import Insight, Look, Panel, default_insights
from jepa_monitor.monitor.verdict import judge

HEALTHY = {
    "collapse/state": 0.0,
    "collapse/steps_in_state": 300.0,
    "collapse/alarm": 0.0,
    "collapse/normalized_std": 0.9,
    "collapse/effective_rank": 40.0,
    "collapse/effective_rank_relative": 0.8,
}


def said(**changes: float) -> str:
    scalars = HEALTHY | {tag.replace("__", "/"): value for tag, value in changes.items()}
    return str(judge(scalars, default_insights(8), step=500))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "^Healthy since step 200\\.$"),
        ({"collapse__state": 1.0}, ("^Dimensional collapse since step 200: perhaps an early phase, .*"
         "They have a spread of 0.9 of 1 and use 40.0 directions, 80% .* No alarm yet")),
        ({"collapse__state": 2.0, "collapse__alarm": 1.0}, "^Complete collapse since step 200. .* would"),
        ({"data__duplicates": 1.0, "data__duplicates_low": 0.9},
         "^Not collapsed, but the training images repeat\\. 100% of the pairs"),
        ({"density__precondition": 1.0}, "Gaussian enough for the score to be a density"),
        ({"density__precondition": 0.0}, "not Gaussian, so the score is no density"),
        ({"density__precondition": 0.0, "density__normality_effect": 0.123, "density__calibration_error": 0.03},
         r"not Gaussian \(departure 0.12, 0.005 would do; coverage is off by 0.03\), so the score is no"),
        ({"density__precondition": 0.0, "density__normality_effect": 0.001, "density__normality_p": 0.4},
         r"not Gaussian \(their variances fall off a cliff\), so"),
        ({"density__precondition_needed": 400.0}, "Too few embeddings .*: 400 can"),
        ({"density__polarity_low": 0.6, "density__polarity_high": 0.9}, "the right way up: worse"),
        ({"density__polarity_low": 0.1, "density__polarity_high": 0.4}, "The score is inverted"),
        ({"density__polarity_low": 0.3, "density__polarity_high": 0.7}, "Too few images to tell"),
        ({"density__generalisation_gap": 0.2, "density__generalisation_p": 1e-4}, "score lower than tr"),
        ({"density__generalisation_gap": -0.2, "density__generalisation_p": 1e-4}, "score higher than"),
        ({"density__generalisation_gap": 0.2, "density__generalisation_p": 0.2}, "^Healthy since step 200.$"),
        ({"outliers__knn": 0.2, "outliers__knn_low": 0.0, "outliers__knn_high": 0.1, "outliers__alarm": 1.0},
         "20% of the probe are outliers by knn, where 0% to 10% are usual. That is not as usual."),
        ({"outliers__knn": 0.05, "outliers__knn_low": 0.0, "outliers__knn_high": 0.1, "outliers__alarm": 0.0},
         "5% of the probe are outliers by knn, where 0% to 10% are usual.$"),
    ],
)  # fmt: skip
def test_numbers_in_words(changes: dict[str, float], words: str) -> None:
    assert re.search(words, said(**changes))


def test_before_training_there_is_no_advice_and_no_share_of_the_run() -> None:
    scalars = HEALTHY | {
        "advice/quality": 0.4, "advice/best": 0.4, "advice/step": 0.0,
        "monitor/seconds": 2.0, "monitor/overhead": 0.9,
    }  # fmt: skip
    at_first, later = (str(judge(scalars, default_insights(8), step=step)) for step in (0, 500))
    assert at_first.endswith("This look took 2 s.")
    assert "advice" not in at_first.lower()
    assert "Advice: keep this one" in later
    assert later.endswith("all of them 90.0% of the run.")


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e-3 * x.flatten(1)[:, :12] + 1


def test_a_report_says_what_is_true_of_its_encoder() -> None:
    data = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    monitor = DensityMonitor(data[:100], reference=data[100:], max_probe_samples=40)
    healthy = monitor.evaluate(nn.Identity()).verdict
    assert (healthy.headline, healthy.alarming) == ("Healthy", False)
    assert "as usual" not in str(healthy)
    assert "not Gaussian" not in str(healthy)
    broken = monitor.evaluate(Constant()).verdict
    assert (broken.headline, broken.alarming) == ("Complete collapse", True)
    few = DensityMonitor(data[:10]).evaluate(nn.Identity()).verdict
    assert few.headline == "Too few images to tell a collapse"


class Mine(Insight):
    name = "mine"
    panels = (Panel("mine", "a curve of my own", ("mine/x",), healthy=(0.0, 2.0)),)

    def scalars(self, look: Look) -> dict[str, float]:
        return {"mine/x": 1.0}

    def says(self, scalars: object) -> str:
        return "<script>alert(1)</script> & more."


def test_an_overview_has_the_verdict_every_panel_and_the_images() -> None:
    monitor = DensityMonitor(
        images(40),
        reference=images(60, 2),
        polarity_samples=4,
        insights=[Mine()],
        labels=torch.arange(40) % 4,
        online=mlp(192, 20),
    )
    report = monitor.evaluate(mlp(192))
    figure = report.overview()
    assert report.verdict.headline in figure.texts[0].get_text()
    assert "alert(1)" in figure.texts[1].get_text()
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]
    for panel in (panel for insight in report.insights for panel in insight.panels):
        of_a_run = panel.page == "advice" or panel.title.startswith(
            ("state (0", "pairs of training")
        )
        there = any(re.match(tag, known) for tag in panel.tags for known in report.scalars)
        assert of_a_run or (panel.title in titles) is there
    assert titles[-1] == "least likely, most likely"
    assert len(figure.axes[-1].images) == 1


class Wordy(Mine):
    name, panels = "wordy", ()

    def scalars(self, look: Look) -> dict[str, float]:
        return {}

    def says(self, scalars: object) -> str:
        return "This goes on " + "and on " * 150 + "to its end."


def test_sentences_of_an_overview_are_whole_and_repeated_images_have_a_chart() -> None:
    monitor = DensityMonitor(images(40), insights=[Mine(), Wordy()], polarity_samples=0)
    watch = monitor.watch(every_n_steps=1, max_overhead=None, patience_steps=100)
    net, batch = mlp(192), (images(1).expand(16, -1, -1, -1), torch.zeros(16))
    watch(net, 0)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in watch.overview().axes]
    assert not any("training images" in title for title in titles)
    watch.see(batch)
    watch(net, 1)
    figure = watch.overview()
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]
    assert "pairs of training images that are the same" in titles
    words = figure.texts[1].get_text().replace("\n", " ")
    assert "as many as if there were no more than 1 in all" in words
    assert words.endswith(
        "no look from another."
    )  # the advice, before what is too long and the cost
    assert "and on" not in words


def test_a_notebook_shows_verdict_and_picture_and_runs_nothing() -> None:
    monitor = DensityMonitor(images(40), insights=[Mine()])
    page = monitor.evaluate(mlp(192))._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    picture = base64.b64decode(re.search('base64,([^"]+)', page)[1])  # type: ignore[index]
    assert Image.open(io.BytesIO(picture)).width == 800


class Collapsing(Validated):
    def on_train_batch_start(self, *_: object) -> None:
        if self.global_step >= 8:
            nn.init.zeros_(self.encoder[-1].weight)
            nn.init.constant_(self.encoder[-1].bias, 100)


def test_a_run_is_told_in_words_when_they_change_and_drawn_at_each_look(
    tmp_path: pathlib.Path,
) -> None:
    callback = JepaScoreCallback(name="run", every_n_steps=4, max_overhead=None)
    logger = TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, [callback], max_epochs=4, logger=logger)
    run.fit(Collapsing(), loader(32), loader(32, 2))
    events = EventAccumulator(logger.log_dir, {"images": 0, "tensors": 0})
    events.Reload()
    looks = len(callback.history)
    drawn = events.Images("run/monitor/overview")
    assert len(drawn) == looks == 5
    picture = Image.open(io.BytesIO(drawn[-1].encoded_image_string))
    assert picture.mode == "P"
    assert picture.size == (drawn[-1].width, drawn[-1].height)
    assert max(len(each.encoded_image_string) for each in drawn) < 40_000
    told = events.Tensors("run/monitor/verdict/text_summary")
    words = [event.tensor_proto.string_val[0].decode() for event in told]
    assert words[0].startswith("Healthy since step 0.")
    assert words[-1].startswith("Complete collapse since step")
    assert 2 <= len(words) <= looks
    without_numbers = [re.sub(r"[0-9.]+", "#", text) for text in words]
    assert all(before != after for before, after in itertools.pairwise(without_numbers))
