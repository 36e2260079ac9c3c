"""The state on embeddings whose state is known, and the alarm on sequences whose story is known."""

from __future__ import annotations

import copy
import math
import pathlib
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Tiny, Validated, loader, trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from jepa_monitor.callbacks import CollapseCallback
from jepa_monitor.functional import collapse, hypersphere
from jepa_monitor.insights.collapse import collapse_scalars
from jepa_monitor.monitor.alarm import (
    AlarmReading,
    CollapseAlarm,
    CollapseMeasures,
    CollapseState,
    collapse_measures,
    collapse_state,
    default_patience,
)

HEALTHY, DIMENSIONAL, COMPLETE = CollapseState
_NAN = float("nan")


def cloud(n: int, k: int, rank: int | None = None, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Isotropic in `rank` random directions of K; `spread` below 1 adds a common direction."""
    generator = torch.Generator().manual_seed(seed)
    rank = k if rank is None else rank
    axes = torch.linalg.qr(torch.randn(k, k, generator=generator))[0]
    z = torch.randn(n, rank, generator=generator) @ axes[:, :rank].T / math.sqrt(rank)
    return spread * z + math.sqrt(1 - spread**2) * axes[:, 0]


@pytest.mark.parametrize(
    ("n", "k"), [(16, 128), (64, 512), (128, 128), (512, 16), (512, 64), (512, 2048), (2048, 384)]
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_isotropic_is_healthy_at_every_size_and_scale(n: int, k: int, scale: float) -> None:
    z = scale * cloud(n, k)
    assert collapse_state(z) == HEALTHY
    measures = collapse_measures(z)
    assert measures.share == pytest.approx(1, abs=0.03)
    assert measures.spread == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("n", "k"), [(64, 512), (128, 128), (512, 64), (512, 512)])
@pytest.mark.parametrize("rank", [1, 2])
def test_few_directions_are_dimensional(n: int, k: int, rank: int) -> None:
    assert collapse_state(cloud(n, k, rank)) == DIMENSIONAL
    assert collapse_state(cloud(n, k, rank, spread=0.5)) == DIMENSIONAL


@pytest.mark.parametrize(("n", "k"), [(64, 512), (512, 64), (512, 768)])
def test_the_square_root_of_the_directions_is_dimensional(n: int, k: int) -> None:
    alarm = CollapseAlarm()
    possible = min(n - 1, k)
    assert alarm.update(0, cloud(n, k)).state == HEALTHY
    assert alarm.update(1, cloud(n, k, possible // 3)).state == HEALTHY
    few = cloud(n, k, round(0.8 * possible**0.5))
    assert alarm.update(2, few).state == DIMENSIONAL
    assert collapse_state(few) == HEALTHY  # by itself it might be all that the data give


def test_one_large_embedding_is_no_collapse() -> None:
    z = cloud(512, 64)
    z[0] *= 1e5
    assert collapse.effective_rank(z) < 1.1
    assert collapse_state(z) == HEALTHY


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, 1e4])
def test_points_are_complete(dtype: torch.dtype, value: float) -> None:
    z = torch.full((64, 32), value, dtype=dtype)
    assert collapse_state(z) == COMPLETE
    measures = collapse_measures(z)
    assert (measures.spread, measures.directions, measures.share) == (0, 0, 0)


@pytest.mark.parametrize("rank", [1, 4, 32])
@pytest.mark.parametrize("spread", [1e-7, 1e-3, 0.03])
def test_a_narrow_cone_is_complete(spread: float, rank: int) -> None:
    assert collapse_state(cloud(256, 32, rank, spread=spread)) == COMPLETE


def test_one_different_image_saves_nothing() -> None:
    z = torch.ones(512, 64)
    z[7] = -1
    assert collapse_state(z) != HEALTHY


def test_one_dimension() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    assert collapse_state(signs) == HEALTHY  # one of one possible direction
    assert collapse_state(signs.abs()) == COMPLETE


def test_rows_that_are_not_finite() -> None:
    z = cloud(64, 32)
    z[:5] = _NAN
    measures = collapse_measures(z)
    assert (measures.samples, measures.nonfinite) == (59, 5)
    assert collapse_state(z) == HEALTHY
    z[:40, 3] = math.inf
    assert collapse_state(z) == COMPLETE
    for broken in (torch.full((64, 32), _NAN), cloud(16, 8).index_fill(0, torch.tensor(0), _NAN)):
        reading = CollapseAlarm().update(0, broken)
        assert reading.state == COMPLETE
        assert "hold NaN or infinity" in reading.reason


@pytest.mark.parametrize("n", [0, 1, 2, 15])
def test_too_few_embeddings_are_an_error_not_healthy(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 16 rows.*got {n}"):
        collapse_state(torch.randn(n, 8))


@pytest.mark.parametrize("shape", [(32,), (32, 2, 2), (32, 0)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(N, K\)"):
        collapse_state(torch.zeros(shape))


def test_hysteresis() -> None:
    def share(value: float) -> CollapseMeasures:
        return CollapseMeasures(1.0, 100.0**value, 100.0, 512, 0)

    def spread(value: float) -> CollapseMeasures:
        return CollapseMeasures(value, 50.0, 100.0, 512, 0)

    assert [collapse_state(share(x)) for x in (0.19, 0.21)] == [DIMENSIONAL, HEALTHY]
    for before in (DIMENSIONAL, COMPLETE):
        assert [collapse_state(share(x), before) for x in (0.24, 0.26)] == [DIMENSIONAL, HEALTHY]
    assert [collapse_state(share(x), HEALTHY, 0.6) for x in (0.29, 0.31)] == [DIMENSIONAL, HEALTHY]
    assert [collapse_state(share(x), DIMENSIONAL, 0.6) for x in (0.32, 0.34)] == [1, 0]
    for before in (HEALTHY, DIMENSIONAL):
        assert [collapse_state(spread(x), before) for x in (0.069, 0.071)] == [COMPLETE, HEALTHY]
    assert [collapse_state(spread(x), COMPLETE) for x in (0.099, 0.101)] == [COMPLETE, HEALTHY]
    assert [collapse_state(spread(x), HEALTHY, 0, 0.6) for x in (0.11, 0.13)] == [COMPLETE, HEALTHY]
    assert [collapse_state(spread(x), COMPLETE, 0, 0.6) for x in (0.17, 0.19)] == [2, 0]


def test_down_and_up() -> None:
    alarm = CollapseAlarm()
    ranks = [64, 16, 6, 5, 4, 3, 4, 5, 6, 8, 16, 64]
    found = [alarm.update(i, cloud(512, 64, rank)).state for i, rank in enumerate(ranks)]
    assert found == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_slow_collapse_is_seen_once_and_stays() -> None:
    alarm = CollapseAlarm(patience_steps=100)
    noise = torch.Generator().manual_seed(3)
    readings = []
    for i in range(60):
        spread = 0.9 ** (i + float(torch.rand(1, generator=noise)) * 2)
        readings.append(alarm.update(10 * i, cloud(256, 64, spread=min(spread, 1.0), seed=i)))
    states = [reading.state for reading in readings]
    assert states == sorted(states)
    assert states[0] == HEALTHY
    assert states[-1] == COMPLETE
    first = next(reading for reading in readings if reading.state)
    assert readings[-1].since_step == first.since_step
    assert readings[-1].steps_in_state == 590 - first.since_step
    # It had been healthy for longer than the patience, so the second look is an alarm.
    assert [reading.alarm for reading in readings].index(True) == states.index(first.state) + 1


def story(patience: int, states: str, every: int = 10) -> list[AlarmReading]:
    """h: healthy, d: dimensional, c: complete."""
    clouds = {"h": cloud(64, 32), "d": cloud(64, 32, 1), "c": torch.ones(64, 32)}
    alarm = CollapseAlarm(patience)
    return [alarm.update(i * every, clouds[state]) for i, state in enumerate(states)]


def alarms(readings: list[AlarmReading]) -> str:
    return "".join("!" if reading.alarm else "." for reading in readings)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("hhhhhhhhh", "........."),
        ("hhccchhhh", "........."),  # transient, shorter than 50 steps
        ("cccchhhhh", "........."),  # the same from the first step on
        ("hccccccchh", "......!!!."),  # outlasts the patience; ends after two healthy looks
        ("hcdcdcdcdh", "......!!!!"),  # both kinds are one collapse
        ("ccchhccc", "........"),  # passes within the first 20 looks, as noise may: patience anew
        ("ccchcchcc", ".....!!!!"),  # one healthy look is no recovery
        ("hchchchch", "........."),  # nothing is confirmed
        ("hhhhhhhcc", "........!"),  # established for 50 steps, then collapses
        ("hhhhhhhch", "........."),  # a single look
    ],
)
def test_stories(states: str, expected: str) -> None:
    readings = story(50, states)
    assert alarms(readings) == expected
    assert [int(reading.state) for reading in readings] == ["hdc".index(state) for state in states]


def test_reasons_say_what_was_seen_and_what_to_do() -> None:
    readings = story(50, "hccccccdd")
    assert readings[0].reason == "The embeddings differ in about 24.8 directions of 25 possible."
    assert "No alarm yet: for 10 steps of 50" in readings[2].reason
    assert readings[6].reason.startswith(
        "Cause: complete collapse. The embeddings point nearly the same way. They have a spread of 0 of 1 and"
    )
    assert "It has lasted 50 steps" in readings[6].reason
    assert "Look first at what keeps the embeddings apart" in readings[6].reason
    assert "use 1.0 directions" in readings[7].reason
    assert "Look first at what decorrelates the dimensions" in readings[7].reason
    assert "had recovered from an earlier collapse" in story(1000, "h" * 20 + "cchhcc")[-1].reason
    assert "it was healthy for 50 steps and more" in story(50, "hhhhhhhcc")[-1].reason


def test_scalars_of_a_reading() -> None:
    assert story(50, "hdd")[-1].scalars == {
        "collapse/state": 1.0,
        "collapse/steps_in_state": 10.0,
        "collapse/alarm": 0.0,
        "collapse/lost": pytest.approx(
            1 - 1 / 24.8, abs=0.01
        ),  # of about 24.8 directions one is left
        "collapse/returns": 0.0,
        "collapse/return_steps": 0.0,
        "collapse/from_start": 0.0,
    }


def test_the_same_step_twice_confirms_nothing_and_steps_go_forward() -> None:
    alarm = CollapseAlarm(patience_steps=1)
    point = torch.ones(32, 8)
    alarm.update(5, point)
    assert not alarm.update(5, point).alarm
    assert alarm.update(6, point).alarm
    with pytest.raises(ValueError, match=r"must not decrease: got 4 after 6. Call reset\(\)"):
        alarm.update(4, point)
    alarm.reset()
    assert not alarm.update(4, point).alarm


def test_a_failed_look_changes_nothing() -> None:
    alarm = CollapseAlarm()
    alarm.update(1, torch.ones(32, 8))
    before = alarm.state_dict()
    with pytest.raises(ValueError, match="at least 16 rows"):
        alarm.update(2, torch.ones(3, 8))
    assert alarm.state_dict() == before


@pytest.mark.parametrize(
    ("patience", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_patience_is_checked(patience: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="patience_steps"):
        CollapseAlarm(patience)


@pytest.mark.parametrize("cut", range(1, 8))
def test_an_alarm_taken_up_equals_one_uninterrupted(tmp_path: pathlib.Path, cut: int) -> None:
    clouds = [torch.ones(64, 32) if c == "c" else cloud(64, 32) for c in "hccchhcc"]
    whole, first, second = CollapseAlarm(50), CollapseAlarm(50), CollapseAlarm(50)
    expected = [whole.update(10 * i, z) for i, z in enumerate(clouds)]
    found = [first.update(10 * i, z) for i, z in enumerate(clouds[:cut])]
    torch.save(first.state_dict(), tmp_path / "alarm.pt")
    second.load_state_dict(torch.load(tmp_path / "alarm.pt", weights_only=True))
    found += [second.update(10 * i, z) for i, z in enumerate(clouds) if i >= cut]
    assert found == expected
    assert second.state_dict() == whole.state_dict()


def test_collapse_scalars_are_the_functions() -> None:
    z = cloud(256, 64, spread=0.7)
    scalars = collapse_scalars(z)
    for name in ("rankme", "effective_rank", "participation_ratio", "normalized_std"):
        assert scalars[f"collapse/{name}"] == pytest.approx(getattr(collapse, name)(z).item())
    for name in ("mean_cosine", "uniformity"):
        assert scalars[f"collapse/{name}"] == pytest.approx(getattr(hypersphere, name)(z).item())
    fit = collapse.alpha_req(z)
    assert scalars["collapse/alpha_req"] == pytest.approx(fit.alpha.item())
    assert scalars["collapse/alpha_req_r2"] == pytest.approx(fit.r2.item())
    isotropic = collapse_scalars(cloud(256, 64))
    for name in ("rankme", "effective_rank", "participation_ratio"):
        assert isotropic[f"collapse/{name}_relative"] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.ones(64, 32), torch.zeros(64, 32), torch.full((64, 32), _NAN), torch.zeros(0, 8),
        torch.zeros(1, 8), cloud(64, 32, 1), cloud(2, 3), cloud(64, 1), torch.ones(64, 32).half(),
        cloud(64, 32).index_fill(0, torch.tensor([0, 3]), _NAN),
    ],
)  # fmt: skip
def test_collapse_scalars_are_finite_or_absent(embeddings: Tensor) -> None:
    scalars = collapse_scalars(embeddings)
    assert all(math.isfinite(value) for value in scalars.values())
    assert ("collapse/rankme" in scalars) == (int(torch.isfinite(embeddings).all(1).sum()) > 1)


class Collapsing(Validated):
    """Its encoder maps everything to its last bias from the given step on."""

    def __init__(self, at: int = 3) -> None:
        super().__init__()
        self.at = at

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step >= self.at:
            self.encoder[-1].weight.data.zero_()
            self.encoder[-1].bias.data.fill_(1.0)


def fit(
    tmp_path: pathlib.Path, callback: pl.Callback, module: Tiny, steps: int = 12, **settings: Any
) -> pl.Trainer:
    pl.seed_everything(7, verbose=False)
    runner = trainer(tmp_path, [callback], max_epochs=-1, max_steps=steps, **settings)
    runner.fit(module, loader(48, 2, shuffle=True), loader(16, 3))
    return runner


def test_callback_logs_and_can_be_monitored(tmp_path: pathlib.Path) -> None:
    callback = CollapseCallback(every_n_steps=2)
    stopping = EarlyStopping("collapse/effective_rank", patience=10, mode="max")
    logger = CSVLogger(tmp_path)
    pl.seed_everything(7, verbose=False)
    runner = trainer(tmp_path, [stopping, callback], logger=logger)
    module = Validated()
    runner.fit(module, loader(48, 2), loader(16, 3))
    assert callback.failures == 0
    assert [values["step"] for values in callback.history] == list(range(0, 13, 2))
    expected = {"step"} | {
        f"monitor/collapse_{name}" for name in ("failures", "overhead", "skipped", "seconds")
    }
    expected |= {
        f"collapse/{name}"
        for name in (
            "rankme", "rankme_relative", "effective_rank", "effective_rank_relative",
            "participation_ratio", "participation_ratio_relative", "stable_rank",
            "stable_rank_relative", "normalized_std", "mean_cosine",
            "uniformity", "same_pairs", "state", "steps_in_state", "alarm", "lost", "returns",
            "return_steps", "from_start",
        )
    }  # fmt: skip
    assert set(callback.history[0]) == expected
    data = {f"data/duplicates{end}" for end in ("", "_low", "_high")}
    assert set(callback.history[-1]) == expected | data
    assert all(math.isfinite(value) for values in callback.history for value in values.values())
    embeddings = module.encoder.eval()(loader(16, 3).dataset.tensors[0])
    found = float(runner.callback_metrics["collapse/effective_rank"])
    assert found == pytest.approx(collapse.effective_rank(embeddings.detach()).item(), rel=1e-5)
    assert "collapse/alarm" in pathlib.Path(logger.log_dir, "metrics.csv").read_text()


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}]
)
def test_training_is_bit_for_bit_the_same(tmp_path: pathlib.Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = Validated()
    fit(tmp_path, pl.Callback(), plain, **settings)
    torch.manual_seed(0)
    watched = Validated()
    callback = CollapseCallback(every_n_steps=1)
    fit(tmp_path, callback, watched, **settings)
    assert len(callback.history) > 3
    assert plain.losses == watched.losses
    for (key, value), other in zip(
        plain.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


def test_warn_says_it_once(tmp_path: pathlib.Path) -> None:
    callback = CollapseCallback(every_n_steps=1, patience_steps=2)
    with pytest.warns(UserWarning, match="complete collapse") as caught:
        runner = fit(tmp_path, callback, Collapsing())
    assert sum("complete collapse" in str(warning.message) for warning in caught) == 1
    assert runner.global_step == 12
    assert [values["collapse/state"] for values in callback.history] == [0] * 4 + [2] * 9
    # Healthy for longer than the patience before: the second look is an alarm.
    assert [values["collapse/alarm"] for values in callback.history] == [0] * 5 + [1] * 8


def test_without_a_patience_a_short_run_is_given_a_thousand_steps(tmp_path: pathlib.Path) -> None:
    callback = CollapseCallback(every_n_steps=1)
    fit(tmp_path, callback, Collapsing())
    assert callback.alarm.patience_steps == 1000


def test_stop(tmp_path: pathlib.Path) -> None:
    callback = CollapseCallback(every_n_steps=1, patience_steps=5, on_collapse="stop")
    with pytest.warns(UserWarning, match=r"It has lasted 5 steps.*Training stops\."):
        runner = fit(tmp_path, callback, Collapsing(), steps=100)
    assert runner.global_step == 9


def test_a_function_gets_the_reading(tmp_path: pathlib.Path) -> None:
    calls: list[tuple[pl.Trainer, pl.LightningModule, AlarmReading]] = []
    callback = CollapseCallback(
        every_n_steps=1, patience_steps=2, on_collapse=lambda *given: calls.append(given)
    )
    module = Collapsing()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapse")
        runner = fit(tmp_path, callback, module)
    assert len(calls) == 1
    assert calls[0][:2] == (runner, module)
    assert (calls[0][2].state, calls[0][2].since_step) == (COMPLETE, 4)


@pytest.mark.parametrize(
    ("planned", "patience"), [(30, 1000), (24_000, 2400), (24_001, 2401), (math.inf, 1000)]
)
def test_default_patience(planned: float, patience: int) -> None:
    assert default_patience(planned) == patience


def test_a_resumed_run_goes_on_with_its_alarm(tmp_path: pathlib.Path) -> None:
    whole = CollapseCallback(every_n_steps=1, patience_steps=6)
    with pytest.warns(UserWarning, match="complete collapse"):
        fit(tmp_path, whole, Collapsing(2), steps=12)
    first = CollapseCallback(every_n_steps=1, patience_steps=6)
    runner = fit(tmp_path, first, Collapsing(2), steps=6)
    runner.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    second = CollapseCallback(every_n_steps=1, patience_steps=6)
    pl.seed_everything(7, verbose=False)
    again = trainer(tmp_path, [second], max_epochs=-1, max_steps=12)
    with pytest.warns(UserWarning, match="It has lasted 6 steps"):
        again.fit(
            Collapsing(2),
            loader(48, 2, shuffle=True),
            loader(16, 3),
            ckpt_path=tmp_path / "last.ckpt",
        )
    for name in ("step", "collapse/state", "collapse/steps_in_state", "collapse/alarm"):
        assert [v[name] for v in second.history] == [v[name] for v in whole.history], name


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_tell_no_story(tmp_path: pathlib.Path, stage: str) -> None:
    class Tested(Validated):
        test_step = Validated.validation_step

    callback = CollapseCallback()
    runner = trainer(tmp_path, [callback])
    getattr(runner, stage)(Tested(), loader(16, 3), verbose=False)
    assert float(runner.callback_metrics["collapse/state"]) == 0
    assert callback.state_dict()["alarm"] == CollapseAlarm().state_dict()


def test_too_few_images_are_refused_before_the_first_step(tmp_path: pathlib.Path) -> None:
    module = Validated()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="`probe` must hold at least 16 images, got 8"):
        fit(tmp_path, CollapseCallback(probe=torch.rand(8, 3, 8, 8)), module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_collapse": "shout"}, "`on_collapse` must be one of warn, stop"),
        ({"max_samples": 15}, "`max_samples` must be at least 16, got 15"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"patience_steps": 0}, "patience_steps"),
        ({"encoder": 3}, "`encoder` must be a dotted path"),
        ({"pool": "max"}, "pool"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        CollapseCallback(**arguments)


def test_the_alarm_leaves_a_state_where_the_state_says() -> None:
    # Between entering (0.07) and leaving (0.10): what it is depends on what it was.
    between = CollapseMeasures(0.085, 90.0, 100.0, 512, 0)
    collapsed = CollapseMeasures(0.05, 90.0, 100.0, 512, 0)
    alarm = CollapseAlarm()
    assert alarm.update(0, between).state == CollapseState.HEALTHY
    assert alarm.update(1, collapsed).state == CollapseState.COMPLETE
    assert alarm.update(2, between).state == CollapseState.COMPLETE
    clear = CollapseMeasures(0.11, 90.0, 100.0, 512, 0)
    assert alarm.update(3, clear).state == CollapseState.HEALTHY
