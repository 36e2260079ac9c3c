"""Where Lightning averages weights, the averages are scored, whatever the order of the callbacks."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Validated, float64_score, images, loader, seldom, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback

weight_averaging = pytest.importorskip(
    "lightning.pytorch.callbacks.weight_averaging", reason="came with lightning 2.6"
)
EMAWeightAveraging = weight_averaging.EMAWeightAveraging

PROBE = images(16, 3)
VALIDATIONS: dict[str, dict[str, Any]] = {
    "every epoch": {},
    "twice an epoch": {"val_check_interval": 0.5},
    "none": {"limit_val_batches": 0},
}


def watch(**kwargs: Any) -> JepaScoreCallback:
    return JepaScoreCallback(
        probe=PROBE, max_probe_samples=2, polarity_samples=0, max_overhead=None, strict=True,
        **kwargs,
    )  # fmt: skip


def score_of(path: str) -> float:
    module = Validated()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return float64_score(module.encoder, PROBE[:2]).mean().item()


def fit(folder: pathlib.Path, *callbacks: pl.Callback, **settings: Any) -> Validated:
    pl.seed_everything(7, verbose=False)
    module = Validated()
    runner = trainer(folder, list(callbacks), enable_checkpointing=True, **settings)
    runner.fit(module, loader(48, 2), loader(16, 3))
    return module


@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 3}])
@pytest.mark.parametrize("validation", VALIDATIONS)
@pytest.mark.parametrize("first", ["averaging", *seldom("monitor")])
def test_a_checkpoints_value_is_that_of_the_averages_in_it(
    tmp_path: pathlib.Path, first: str, validation: str, cadence: dict[str, int]
) -> None:
    every = {"every_n_train_steps": 3} if cadence else {}
    ours = [watch(**cadence), EMAWeightAveraging(decay=0.9)]
    checkpoint = ModelCheckpoint(
        tmp_path, "{step}", monitor="jepa_score/mean", mode="max", save_top_k=-1, **every
    )
    ours = ours if first == "monitor" else ours[::-1]
    fit(tmp_path, *ours, checkpoint, **VALIDATIONS[validation])
    saved = checkpoint.best_k_models
    assert len(saved) >= 2
    for path, value in saved.items():
        assert float(value) == pytest.approx(score_of(path), abs=0.02)


def test_the_order_does_not_matter_and_the_run_is_what_it_would_be(tmp_path: pathlib.Path) -> None:
    plain = fit(tmp_path, EMAWeightAveraging(decay=0.9))
    found = []
    for first in (True, False):
        score, fast = watch(), CollapseCallback(probe=PROBE, every_n_steps=1)
        ours = [score, fast]
        averaging = [EMAWeightAveraging(decay=0.9)]
        module = fit(tmp_path, *(ours + averaging if first else averaging + ours))
        found.append((score.history, fast.history))
        for (name, value), other in zip(
            module.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            assert torch.equal(value, other), name
    clocks = ("seconds", "overhead")
    bare = [
        [
            [{k: v for k, v in look.items() if not k.endswith(clocks)} for look in one]
            for one in each
        ]
        for each in found
    ]
    assert bare[0] == bare[1]
    last = float64_score(plain.encoder, PROBE[:2]).mean().item()  # the averages, after training
    assert found[0][0][-1]["jepa_score/mean"] == pytest.approx(last, abs=0.02)


def test_every_way_to_name_the_encoder_leads_to_its_average(tmp_path: pathlib.Path) -> None:
    pl.seed_everything(7, verbose=False)
    module = Validated()
    stranger = copy.deepcopy(module.encoder)
    ways = {
        "path": "encoder",
        "module": module.encoder,
        "function": lambda module: module.encoder,
        "stranger": stranger,
    }
    callbacks = {name: watch(encoder=spec, name=name) for name, spec in ways.items()}
    runner = trainer(tmp_path, [*callbacks.values(), EMAWeightAveraging(decay=0.9)])
    runner.fit(module, loader(48, 2), loader(16, 3))
    last = float64_score(module.encoder, PROBE[:2]).mean().item()
    for name in ("path", "module", "function"):
        found = callbacks[name].history[-1][f"{name}/jepa_score/mean"]
        assert found == pytest.approx(last, abs=0.02)
    # A module from elsewhere is nobody's average: it has not moved.
    scores = [values["stranger/jepa_score/mean"] for values in callbacks["stranger"].history]
    assert scores == [pytest.approx(scores[0])] * 3


def test_it_is_said_once(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, watch(), EMAWeightAveraging(decay=0.9))
    said = [r.message for r in caplog.records if "EMAWeightAveraging averages" in r.message]
    assert len(said) == 1
    assert "watches Validated.encoder (Sequential), with the weights that" in said[0]


def test_validate_scores_what_lightning_validates_and_test_what_it_tests(
    tmp_path: pathlib.Path,
) -> None:
    class Tested(Validated):
        test_step = Validated.validation_step

    callback, module = watch(), Tested()
    runner = trainer(tmp_path, [callback, EMAWeightAveraging(decay=0.9)])
    runner.fit(module, loader(48, 2), loader(16, 3))
    expected = float64_score(module.encoder, PROBE[:2]).mean().item()
    for run in (runner.validate, runner.test):
        run(module, loader(16, 3), verbose=False)
        found = callback.history[-1]["jepa_score/mean"]
        assert found == pytest.approx(expected, abs=0.02)
