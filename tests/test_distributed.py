"""Two processes share the work: same results as one, no process waits for another, one logs."""

from __future__ import annotations

import copy
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from distributed_runs import monitor
from helpers import Validated, images, in_two_processes, loader, mlp, trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, distributed, nn
from torch.utils.data import IterableDataset

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.monitor.watch import Evaluation

# Clocks, and nothing else, may differ between processes.
CLOCKS = ("seconds", "overhead")


def timeless(scalars: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in scalars.items() if not tag.endswith(CLOCKS)}


class Tally:
    """Counts where no look puts anything back: in an object of its own."""

    def __init__(self) -> None:
        self.seen: list[int] = []


class Counting(nn.Module):
    """Counts the passes and the images that it sees; fails at a pass of one process, if told to."""

    def __init__(self, failing: tuple[int, int] | None = None, outputs: int = 40) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = mlp(192, outputs)
        self.tally = Tally()
        self.failing = failing

    @property
    def seen(self) -> list[int]:
        return self.tally.seen

    def forward(self, batch: Tensor) -> Tensor:
        self.seen.append(len(batch))
        if self.failing == (distributed.get_rank(), len(self.seen)):
            raise RuntimeError("no luck")
        return self.net(batch)


class Dropping(Counting):
    """Draws at random in eval mode too."""

    def forward(self, batch: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(batch), 0.3)


def both_ways(kind: type[Counting] = Counting, **options: Any) -> dict[str, Any]:
    found = {}
    for shared in (True, False):
        encoder = kind()
        report = monitor(shared, **options).evaluate(encoder)
        sets = {"probe": report.probe, "reference": report.reference, **report.ood}
        found[shared] = {
            "scalars": timeless(report.scalars),
            "scores": {name: data.scores for name, data in sets.items()},
            "density": {name: data.log_density for name, data in sets.items()},
            "embeddings": {name: data.embeddings for name, data in sets.items()},
            "spectra": {name: data.singular_values for name, data in sets.items()},
            "method": report.method,
            "seen": encoder.seen,
        }
    return found


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Gives each process images of its own, as sharded streams do."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(images(9, 10 + distributed.get_rank()))


def stream() -> Tensor:
    return DensityMonitor(Stream(), distributed=True).images


def failures() -> list[str]:
    """Fail in one process at the first and a middle pass, an error, and at the last; then be sound."""
    messages = []
    sound = Counting()
    monitor(True).evaluate(sound)
    for rank in (0, 1):
        for at in (1, 2, len(sound.seen) // 2):
            with pytest.raises(RuntimeError) as caught:
                monitor(True).evaluate(Counting((rank, at)))
            messages.append(str(caught.value))
    with pytest.raises(ValueError) as caught:
        DensityMonitor(images(3) if distributed.get_rank() else images(0), distributed=True)
    messages.append(str(caught.value))
    for rank in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = monitor(True).evaluate(Counting((rank, len(sound.seen))))
        assert set(report.failed) == {"views", "clusters"}  # in both processes
    monitor(True).evaluate(Counting())
    return messages


class Written(CSVLogger):
    """Counts what is asked of it in this process; Lightning would drop it without a word."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        self.asked = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.asked += any(tag.startswith(("jepa_score", "fast/collapse")) for tag in metrics)
        super().log_metrics(metrics, step)


def train(folder: pathlib.Path, *callbacks: pl.Callback) -> dict[str, Any]:
    pl.seed_everything(7, verbose=False)
    module, logger = Validated(), Written(folder)
    runner = trainer(folder, list(callbacks), strategy="ddp", devices=2, logger=logger)
    runner.fit(module, loader(48, 2, shuffle=True), loader(16, 3))
    metrics = {tag: float(value) for tag, value in runner.callback_metrics.items()}
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "losses": module.losses,
        "metrics": timeless(metrics),
        "asked": logger.asked,
    }


def fit(folder: pathlib.Path) -> dict[str, Any]:
    options = ScoreOptions(precision="float64")
    callback = JepaScoreCallback(
        max_probe_samples=7, max_overhead=None, options=options, strict=True
    )
    fast = CollapseCallback(every_n_steps=1, name="fast", strict=True)
    found = train(folder, callback, fast)
    module = Validated()
    module.load_state_dict(found["weights"])
    alone = DensityMonitor(images(16, 3), max_probe_samples=7, options=options).evaluate(
        module.encoder
    )
    found["alone"] = timeless(alone.scalars)
    found["history"] = [timeless(values) for values in callback.history]
    found["fast"] = [timeless(values) for values in fast.history]
    return found


def fit_with_a_failing_process(folder: pathlib.Path) -> dict[str, Any]:
    def encoder(module: pl.LightningModule) -> Any:
        if module.global_rank == 1 and module.global_step == 3:
            raise RuntimeError("no luck")
        if module.global_rank == 0 and module.global_step == 6:
            return lambda batch: 1 / 0
        return module.encoder

    callback = JepaScoreCallback(encoder, max_overhead=None)
    fast = CollapseCallback(encoder, every_n_steps=1, name="fast", on_collapse="stop")
    found = train(folder, callback, fast)
    steps = [values["step"] for values in callback.history]
    return found | {"failures": (callback.failures, fast.failures), "steps": steps}


def fit_of_two_opinions(folder: pathlib.Path) -> dict[str, Any]:
    """Process 1 sees a collapse from step 2 on, process 0 does not."""

    class Differing(CollapseCallback):
        def measure(self, trainer: pl.Trainer, encoder: Any) -> Evaluation:
            found = super().measure(trainer, encoder)
            if trainer.global_rank == 1 and trainer.global_step >= 2:
                return Evaluation(found.scalars, torch.ones_like(found.embeddings))
            return found

    called: list[tuple[int, str]] = []
    callbacks = {
        "stop": Differing(every_n_steps=1, patience_steps=2, on_collapse="stop", name="a"),
        "call": Differing(
            every_n_steps=1,
            patience_steps=2,
            on_collapse=lambda t, m, reading: called.append((t.global_step, reading.reason)),
            name="b",
        ),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(folder, *callbacks.values())
    said = [str(w.message) for w in caught if "Differing at step" in str(w.message)]
    steps = [int(values["step"]) for values in callbacks["stop"].history]
    return {"steps": steps, "said": said, "called": called, "losses": len(found["losses"])}


def validate(folder: pathlib.Path) -> dict[str, float]:
    callback = JepaScoreCallback(strict=True)
    runner = trainer(folder, [callback], strategy="ddp", devices=2)
    runner.validate(Validated(), loader(9, 3), verbose=False)
    return timeless(callback.history[-1])


SCENARIOS: dict[str, Callable[[pathlib.Path], Any]] = {
    "exact": lambda _: both_ways(method="exact", precision="float64"),
    "sketch": lambda _: both_ways(method="sketch", precision="float64"),
    "float32": lambda _: both_ways(method="exact"),
    "random": lambda _: both_ways(Dropping, method="sketch", precision="float64"),
    "stream": lambda _: stream(),
    "failures": lambda _: failures(),
    "plain": train,
    "fit": fit,
    "failing fit": fit_with_a_failing_process,
    "two opinions": fit_of_two_opinions,
    "validate": validate,
}


def every_scenario(rank: int, folder: pathlib.Path) -> dict[str, Any]:
    return {name: scenario(folder / name / str(rank)) for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in every scenario."""
    return in_two_processes(every_scenario, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("scenario", ["exact", "sketch", "float32", "random"])
def test_two_processes_find_what_one_does(processes: list[dict[str, Any]], scenario: str) -> None:
    first, second = (copy.deepcopy(process[scenario][True]) for process in processes)
    alone = copy.deepcopy(processes[0][scenario][False])
    tolerance = 1e-6 if scenario != "float32" else 1e-4
    assert first["method"] == alone["method"]
    for kind in ("scores", "density", "embeddings", "spectra"):
        torch.testing.assert_close(first[kind], second[kind], rtol=0, atol=0)
        # float32 rounds by the size of a number, and a density is some 600 nats.
        rounding = 5e-6 if scenario == "float32" and kind == "density" else 0
        torch.testing.assert_close(first[kind], alone[kind], rtol=rounding, atol=tolerance)
    assert first["scalars"] == second["scalars"]
    moved = [found["scalars"].pop("monitor/random") for found in (first, alone)]
    assert all((value > 0) == (scenario == "random") for value in moved)
    if scenario != "float32":
        assert first["scalars"] == pytest.approx(alone["scalars"], abs=1e-6)
    assert len(alone["scalars"]) > 50


def test_processes_do_equally_many_passes_and_half_the_work(
    processes: list[dict[str, Any]],
) -> None:
    seen = [process["exact"][True]["seen"] for process in processes]
    assert seen[0] == seen[1]
    assert sum(seen[0]) < 0.7 * sum(processes[0]["exact"][False]["seen"])


def test_a_stream_that_is_split_gives_all_processes_the_same_images(
    processes: list[dict[str, Any]],
) -> None:
    for process in processes:
        assert torch.equal(process["stream"], images(9, 10))


def test_a_failure_in_one_process_is_an_error_in_both(processes: list[dict[str, Any]]) -> None:
    # The line below says what the encoder was given.
    first, second = ([said.split("\n")[0] for said in p["failures"]] for p in processes)
    assert len(first) == len(second) == 7
    half = len(first) // 2
    assert set(first[:half]) == {"no luck"} == set(second[half:-1])
    assert set(second[:half]) == {"process 0 failed with RuntimeError: no luck"}
    assert set(first[half:-1]) == {"process 1 failed with RuntimeError: no luck"}
    assert first[-1].startswith("`probe` must have shape")
    assert second[-1].startswith("process 0 failed with ValueError: `probe` must have shape")


def test_training_is_what_it_would_have_been(processes: list[dict[str, Any]]) -> None:
    for process in processes:
        plain = process["plain"]
        for watched in (process["fit"], process["failing fit"]):
            assert watched["losses"] == plain["losses"]
            torch.testing.assert_close(watched["weights"], plain["weights"], rtol=0, atol=0)


def test_callbacks_find_what_one_process_does(processes: list[dict[str, Any]]) -> None:
    first, second = (process["fit"] for process in processes)
    assert first["history"] == second["history"]
    assert first["fast"] == second["fast"]
    assert first["metrics"] == {**second["metrics"], **_losses(first)}
    assert [values["step"] for values in first["history"]] == [0, 3, 6]
    assert [values["step"] for values in first["fast"]] == [0, 1, 2, 3, 4, 5, 6]
    for tag in ("jepa_score/mean", "jepa_score/p05", "collapse/rankme", "jepa_score/std"):
        assert first["history"][-1][tag] == pytest.approx(first["alone"][tag], abs=1e-6)
    # In float32, from a hook in which the two processes' BatchNorm statistics differ.
    assert first["fast"][-1]["fast/collapse/rankme"] == pytest.approx(
        first["alone"]["collapse/rankme"], abs=1e-4
    )


def test_processes_that_see_different_things_stop_together(
    processes: list[dict[str, Any]],
) -> None:
    first, second = (process["two opinions"] for process in processes)
    # It has lasted for the patience, two steps, at step 4.
    assert first["steps"] == second["steps"] == [0, 1, 2, 3, 4]
    assert first["losses"] == second["losses"] == 4
    assert first["called"] == second["called"]
    ((step, reason),) = first["called"]
    assert step == 4
    assert "complete collapse" in reason
    assert len(first["said"]) == 1
    assert first["said"][0] == f"Differing at step 4: {reason} Training stops."
    assert second["said"] == []


def _losses(process: dict[str, Any]) -> dict[str, float]:
    """The module's own values, which it does not reduce over processes."""
    return {tag: process["metrics"][tag] for tag in ("train/loss", "val/loss")}


def test_only_the_first_process_logs(processes: list[dict[str, Any]]) -> None:
    assert [process["fit"]["asked"] for process in processes] == [3 + 7, 0]


def test_a_failing_process_is_counted_by_all_and_stops_none(
    processes: list[dict[str, Any]],
) -> None:
    for process in processes:
        assert process["failing fit"]["failures"] == (2, 2)
        assert process["failing fit"]["steps"] == [0]


def test_validate(processes: list[dict[str, Any]]) -> None:
    first, second = (process["validate"] for process in processes)
    assert first == second
    assert first["monitor/images"] == 9  # each once, although Lightning pads to 5 + 5
    expected = DensityMonitor(images(9, 3)).evaluate(Validated().encoder)
    assert set(timeless(expected.scalars)) <= set(first)
