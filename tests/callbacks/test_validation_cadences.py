"""With and without a validation loop, however it is paced: one collapse, one reaction, same look."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Tiny, Validated, loader, seldom, trainer

from jepa_monitor import JepaScoreCallback
from jepa_monitor.callbacks import CollapseCallback

BATCHES = 6  # an epoch
COLLAPSE = 1  # epochs after which the encoder maps everything to a point
RINGS = 3 * BATCHES  # the second look that finds it

CADENCES: dict[str, tuple[type[Tiny], dict[str, Any]]] = {
    "no validation": (Tiny, {}),
    "every epoch": (Validated, {}),
    "twice an epoch": (Validated, {"val_check_interval": 0.5}),
    "every 4 batches of an epoch": (Validated, {"val_check_interval": 4}),
    "every 2 epochs": (Validated, {"check_val_every_n_epoch": 2}),
    "every 4 batches of the run": (
        Validated, {"check_val_every_n_epoch": None, "val_check_interval": 4},
    ),
    "switched off": (Validated, {"limit_val_batches": 0}),
    "no sanity check": (Validated, {"num_sanity_val_steps": 0}),
}  # fmt: skip

CALLBACKS: dict[str, Any] = {
    "score": lambda **kwargs: JepaScoreCallback(
        max_probe_samples=2, polarity_samples=0, max_overhead=None, **kwargs
    ),
    "collapse": lambda **kwargs: CollapseCallback(every_n_steps=BATCHES, **kwargs),
}


def dying(kind: type[Tiny]) -> Tiny:
    """A module of the kind that learns nothing and collapses."""

    class Dying(kind):  # type: ignore[misc, valid-type]
        def on_train_batch_start(self, *_: Any) -> None:
            if self.global_step == COLLAPSE * BATCHES:
                self.encoder[-1].weight.data.zero_()
                self.encoder[-1].bias.data.fill_(1.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Dying()


@pytest.mark.parametrize("reaction", ["stop", *seldom("warn", "call")])
@pytest.mark.parametrize("watching", CALLBACKS)
@pytest.mark.parametrize("cadence", CADENCES)
def test_one_collapse_one_reaction(
    tmp_path: pathlib.Path, cadence: str, watching: str, reaction: str
) -> None:
    kind, settings = CADENCES[cadence]
    called: list[int] = []

    def call(trainer: pl.Trainer, module: pl.LightningModule, reading: Any) -> None:
        assert reading.alarm
        called.append(trainer.global_step)

    pl.seed_everything(7, verbose=False)
    callback = CALLBACKS[watching](
        on_collapse=call if reaction == "call" else reaction, patience_steps=1
    )
    module = dying(kind)
    runner = trainer(tmp_path, [callback], max_epochs=5, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(module, loader(48, 2), loader(16, 3))
    said = [str(w.message) for w in caught if "complete collapse" in str(w.message)]
    assert callback.failures == 0
    alarms = [int(values["step"]) for values in callback.history if values["collapse/alarm"]]
    assert alarms[0] == RINGS
    assert [int(values["step"]) for values in callback.history] == list(
        range(0, runner.global_step + 1, BATCHES)
    )
    assert called == ([RINGS] if reaction == "call" else [])
    assert len(said) == (reaction != "call")
    assert all(f"at step {RINGS}:" in message for message in said)
    assert runner.global_step == (RINGS if reaction == "stop" else 5 * BATCHES)
