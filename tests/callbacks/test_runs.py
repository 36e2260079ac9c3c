"""Each run has data and a story of its own; what is due is counted once; what is said is said once."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Hidden, Tiny, Validated, float64_score, images, loader, mlp, trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.monitor import watch as watching
from jepa_monitor.monitor.alarm import CollapseAlarm


class Tested(Validated):
    test_step = Validated.validation_step


def watch(**kwargs: Any) -> JepaScoreCallback:
    return JepaScoreCallback(
        **({"max_overhead": None, "max_probe_samples": 2, "polarity_samples": 0} | kwargs)
    )


def steps(callback: Any) -> list[int]:
    return [int(values["step"]) for values in callback.history]


def test_folds_have_their_own_data_and_their_own_story(tmp_path: pathlib.Path) -> None:
    score, fast = watch(), CollapseCallback(every_n_steps=2, name="fast", patience_steps=4)
    for fold in range(3):
        module = Validated()
        trainer(tmp_path, [score, fast]).fit(module, loader(48, 10 + fold), loader(16, 20 + fold))
        assert score.failures == fast.failures == 0
        assert steps(score) == [0, 6, 12]
        assert steps(fast) == [0, 2, 4, 6, 8, 10, 12]
        assert score.monitor is not None
        assert torch.equal(score.monitor.images, images(16, 20 + fold))
        assert torch.equal(fast.images, images(16, 20 + fold))
        assert all(values["fast/collapse/alarm"] == 0 for values in fast.history)
        expected = float64_score(module.encoder, images(16, 20 + fold)[:2]).mean().item()
        assert score.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("first", ["fit", "validate", "test"])
@pytest.mark.parametrize("then", ["fit", "validate", "test"])
def test_one_run_after_the_other(tmp_path: pathlib.Path, first: str, then: str) -> None:
    callback, module = watch(), Tested()

    def run(function: str, seed: int) -> pl.Trainer:
        runner = trainer(tmp_path, [callback], max_epochs=1)
        if function == "fit":
            runner.fit(module, loader(24, 1), loader(16, seed))
        else:
            getattr(runner, function)(module, loader(16, seed), verbose=False)
        return runner

    run(first, 5)
    runner = run(then, 6)
    assert callback.failures == 0
    assert steps(callback) == ([0, 3] if then == "fit" else [0])
    expected = float64_score(module.encoder, images(16, 6)[:2]).mean().item()
    for found in (callback.history[-1], runner.callback_metrics):
        assert float(found["jepa_score/mean"]) == pytest.approx(expected, abs=0.02)
    # A law of the training data is there in every fit, whatever came before it.
    assert ("log_density/mean" in callback.history[-1]) == (then == "fit")


def test_a_checkpoint_holds_the_story_of_the_fit_whatever_came_after_it(
    tmp_path: pathlib.Path,
) -> None:
    callback, module = watch(), Tested()
    runner = trainer(tmp_path, [callback])
    runner.fit(module, loader(48, 2), loader(16, 3))
    fitted = list(callback.history)
    runner.validate(module, loader(16, 4), verbose=False)
    assert len(callback.history) == 1
    runner.save_checkpoint(tmp_path / "last.ckpt")
    (state,) = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"].values()
    assert state["history"] == fitted
    resumed = watch()
    again = trainer(tmp_path, [resumed], max_epochs=3)
    again.fit(Tested(), loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.history[:3] == fitted
    assert steps(resumed) == [0, 6, 12, 18]


def test_a_trainer_that_goes_on_goes_on_with_its_story(tmp_path: pathlib.Path) -> None:
    callback, module = CollapseCallback(every_n_steps=4), Validated()
    runner = trainer(tmp_path, [callback], max_epochs=1)
    runner.fit(module, loader(48, 2), loader(16, 3))
    runner.fit_loop.max_epochs = 2
    runner.fit(module, loader(48, 2), loader(16, 3))
    assert steps(callback) == [0, 4, 8, 12]


def test_a_run_resumed_without_our_state_is_looked_at_at_once(tmp_path: pathlib.Path) -> None:
    runner = trainer(tmp_path, [])
    runner.fit(Validated(), loader(48, 2), loader(16, 3))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    callback = watch(every_n_steps=100)
    stopping = EarlyStopping("jepa_score/mean", mode="max", patience=99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, [callback, stopping], max_epochs=3).fit(
            Validated(), loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt"
        )
    assert steps(callback) == [12]


def test_what_a_resumed_run_measured_last_is_there_from_the_start(tmp_path: pathlib.Path) -> None:
    seen: list[float] = []

    class Reading(Validated):
        def on_train_epoch_start(self) -> None:
            seen.append(float(self.trainer.callback_metrics["jepa_score/mean"]))

    callback = watch(every_n_epochs=2)
    runner = trainer(tmp_path, [callback], max_epochs=3)
    runner.fit(Reading(), loader(48, 2), loader(16, 3))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    seen.clear()
    trainer(tmp_path, [watch(every_n_epochs=2)], max_epochs=4).fit(
        Reading(), loader(48, 2), loader(16, 3), ckpt_path=tmp_path / "last.ckpt"
    )
    assert seen == [pytest.approx(callback.history[-1]["jepa_score/mean"])]


class Three(Tiny):
    """Three optimizers, each a step a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.encoder(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), lr=1e-3) for _ in range(3)]


@pytest.mark.parametrize("kind", ["score", "collapse"])
def test_steps_of_several_optimizers_are_counted_as_they_pass(
    tmp_path: pathlib.Path, kind: str
) -> None:
    make: Any = watch if kind == "score" else CollapseCallback
    callback = make(probe=images(16, 3), every_n_steps=10)
    trainer(tmp_path, [callback], max_epochs=2).fit(Three(), loader(48, 2))
    assert steps(callback) == [0, 12, 21, 30]


def slow_look(
    monkeypatch: pytest.MonkeyPatch, step_seconds: float, look_seconds: float
) -> tuple[Any, Any]:
    """A module and a way to its encoder that take so many seconds of a clock of our own."""
    now = [0.0]
    monkeypatch.setattr(watching, "_seconds", lambda: now[0])

    class Timed(Validated):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += step_seconds

    def find(module: pl.LightningModule) -> Any:
        if monkeypatch and module.trainer.state.fn == "fit":
            now[0] += look_seconds / 2  # it is asked for twice, before and in a look
        return module.encoder

    return Timed(), find


def test_a_short_run_gets_all_its_looks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, find = slow_look(monkeypatch, step_seconds=0.1, look_seconds=10)
    callback = watch(encoder=find, max_overhead=0.05)
    trainer(tmp_path, [callback], max_epochs=4).fit(module, loader(48, 2), loader(16, 3))
    assert steps(callback) == [0, 6, 12, 18, 24]
    assert callback.skipped == 0


def test_an_epoch_that_is_put_off_counts_once_and_the_last_weights_are_scored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, find = slow_look(monkeypatch, step_seconds=1, look_seconds=100)
    callback = watch(encoder=find, max_overhead=0.05)
    runner = trainer(tmp_path, [callback], max_epochs=5)
    runner.fit(module, loader(48, 2), loader(16, 3))
    # The first look has used up the free minute, and 30 seconds of training pay for nothing.
    assert callback.skipped == 4 + 1
    assert steps(callback) == [0, 30]
    assert callback.history[-1]["monitor/skipped"] == 5
    expected = float64_score(module.encoder, images(16, 3)[:2]).mean().item()
    assert callback.history[-1]["jepa_score/mean"] == pytest.approx(expected, abs=0.02)


class Dying(Validated):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.encoder[-1].weight.data.zero_()
            self.encoder[-1].bias.data.fill_(1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("score_first", [True, False])
@pytest.mark.parametrize("stopping", ["score", "fast", "neither"])
def test_both_callbacks_work_together_without_names(
    tmp_path: pathlib.Path, score_first: bool, stopping: str
) -> None:
    score = watch(on_collapse="stop" if stopping == "score" else "warn")
    fast = CollapseCallback(
        every_n_steps=1, patience_steps=1, on_collapse="stop" if stopping == "fast" else "warn"
    )
    both: list[pl.Callback] = [score, fast] if score_first else [fast, score]
    runner = trainer(tmp_path, both, max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(Dying(), loader(48, 2), loader(16, 3))
    # One of them says it, once, and what either is told to do is done.
    assert sum("complete collapse" in str(w.message) for w in caught) == 1
    assert runner.global_step == (18 if stopping == "neither" else 8)
    own = [{tag for tag in callback.history[-1] if tag != "step"} for callback in (score, fast)]
    assert not own[0] & own[1]
    assert {"jepa_score/mean", "monitor/failures"} <= own[0]
    assert {"collapse/rankme", "collapse/alarm", "monitor/collapse_failures"} <= own[1]


@pytest.mark.parametrize(
    "others",
    [
        lambda: [watch(), CollapseCallback("encoder.0")],
        lambda: [watch(probe=images(16)), CollapseCallback()],
        lambda: [watch(pool="flatten"), CollapseCallback()],
        lambda: [watch(encoder=mlp(192)), CollapseCallback(mlp(192))],
    ],
)
def test_names_must_differ_where_the_same_tags_would_mean_different_things(
    tmp_path: pathlib.Path, others: Any
) -> None:
    module = Validated()
    with pytest.raises(ValueError, match=r"`name` must be different.*both have ''"):
        trainer(tmp_path, others()).fit(module, loader(), loader(16, 3))
    assert module.losses == []


def test_the_console_says_what_a_look_takes(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer(tmp_path, [watch(), CollapseCallback(name="fast")]).fit(
            Validated(), loader(48, 2), loader(16, 3)
        )
    said = [record.message for record in caplog.records if "a look embeds" in record.message]
    assert sorted(said) == [
        "CollapseCallback: a look embeds 16 images, forward passes only.",
        (
            "JepaScoreCallback: a look embeds 64 images and 32 views, and scores 4 of them and 2 changed "
            "ones with 12 backward passes each, 72 in all."
        ),
    ]


def test_the_console_says_when_a_look_turns_out_to_take_more(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = watch(encoder=Hidden(), max_probe_samples=20, every_n_epochs=1)
    with caplog.at_level("INFO"):
        trainer(tmp_path, [callback], max_epochs=2).fit(Validated(), loader(256, 2), loader(20, 3))
    said = [record.message for record in caplog.records if "a look embeds" in record.message]
    assert "with 16 backward passes each, and 384 to check the sketch" in said[0]
    assert "sketches of 16 rows correlate 0." in said[1]
    assert "from now on a look embeds" in said[1]
    assert said[1].endswith("with 48 backward passes each, 2304 in all.")
    assert len(said) == 2  # once, not at each look
    assert len(callback.history) > 1


def test_a_fresh_alarm_is_in_the_state_of_a_callback_that_has_not_trained(
    tmp_path: pathlib.Path,
) -> None:
    callback = watch()
    trainer(tmp_path, [callback]).validate(Validated(), loader(16, 3), verbose=False)
    assert callback.state_dict()["alarm"] == CollapseAlarm().state_dict()


@pytest.mark.parametrize(("strategy", "told"), [("ddp_spawn", 1), ("ddp", 0), ("auto", 0)])
def test_it_is_said_where_the_history_stays_in_another_process(
    tmp_path: pathlib.Path, strategy: str, told: int
) -> None:
    # The hook as the first process calls it; nothing is started here.
    runner = trainer(tmp_path, [], strategy=strategy, devices=1 if strategy == "auto" else 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch().on_fit_start(runner, Validated())
    said = [str(w.message) for w in caught if "`history` and counts stay empty" in str(w.message)]
    assert len(said) == told
