"""A plain loop is watched as a Trainer is: when a look is due, what goes wrong, what is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import float64_score, images, mlp
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.monitor import watch as watching
from jepa_monitor.monitor.watch import Evaluation, Look, Watch


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(watching, "_seconds", lambda: self.now)


def point(step: int, encoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """Healthy until a step, then a point."""
    return lambda batch: encoder(batch) * 0 + 1 if step else encoder(batch)


def monitor(**settings: Any) -> DensityMonitor:
    return DensityMonitor(images(20, 3), max_probe_samples=2, **settings)


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("every", "steps", "looked"),
    [
        (10, range(41), [0, 10, 20, 30, 40]),
        (10, range(0, 61, 3), [0, 12, 21, 30, 42, 51, 60]),  # strides of several optimizers
        (10, [7, 8, 30, 31, 45], [7, 30, 45]),  # from the first call on
        (1, [0, 5, 5, 9], [0, 5, 9]),  # a call an epoch
    ],
)
def test_looks_are_taken_when_multiples_have_passed(
    every: int, steps: Any, looked: list[int]
) -> None:
    look_at = monitor().watch(every_n_steps=every, max_overhead=None)
    encoder = mlp(192)
    looks = [look_at(encoder, step) for step in steps]
    assert [look.step for look in looks if look] == looked
    assert [int(values["step"]) for values in look_at.history] == looked
    assert all(not look.scalars and look.evaluation is None for look in looks if not look)


def test_a_look_has_the_scalars_of_the_dashboard() -> None:
    encoder = mlp(192)
    look = monitor().watch()(encoder, 0)
    expected = float64_score(encoder, images(20, 3)[:2]).mean().item()
    assert look.scalars["jepa_score/mean"] == pytest.approx(expected, abs=0.02)
    assert look.evaluation is not None
    assert look.evaluation.report.probe.embeddings.shape == (20, 8)
    assert look.scalars["collapse/state"] == look.scalars["collapse/alarm"] == 0
    assert look.scalars["monitor/failures"] == look.scalars["monitor/skipped"] == 0
    assert 0 <= look.scalars["monitor/overhead"] <= 1


def test_the_alarm_of_a_loop_warns_once_and_says_when_to_stop() -> None:
    look_at = monitor().watch(max_overhead=None, patience_steps=2)
    encoder = mlp(192)
    with pytest.warns(UserWarning, match="complete collapse") as caught:
        looks = [look_at(point(int(step > 2), encoder), step) for step in range(8)]
    assert [look.scalars["collapse/alarm"] for look in looks] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [look.alarm_begins for look in looks] == [step == 4 for step in range(8)]
    assert len(texts(caught.list)) == 1
    assert "DensityMonitor at step 4: " in texts(caught.list)[0]


def test_what_goes_wrong_is_counted_and_never_raised() -> None:
    def broken(batch: Tensor) -> Tensor:
        raise RuntimeError("no luck")

    look_at = monitor().watch(max_overhead=None)
    with pytest.warns(UserWarning, match="RuntimeError: no luck") as caught:
        looks = [look_at(broken if step in (1, 2) else mlp(192), step) for step in range(4)]
    assert len(texts(caught.list)) == 1
    assert all(looks)
    assert [look.scalars["monitor/failures"] for look in looks] == [0, 1, 2, 2]
    assert ["jepa_score/mean" in look.scalars for look in looks] == [True, False, False, True]
    assert [int(values["step"]) for values in look_at.history] == [0, 3]
    with pytest.raises(RuntimeError, match="no luck"):
        monitor().watch(strict=True)(broken, 0)


def test_an_alarm_rings_on_across_a_failed_look() -> None:
    look_at = monitor().watch(max_overhead=None, patience_steps=2)
    encoder = mlp(192)

    def broken(batch: Tensor) -> Tensor:
        raise RuntimeError("no luck")

    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(9):
            seen = broken if step == 6 else point(int(step > 2), encoder)
            found.append(look_at(seen, step))
    assert [look.step for look in found if look.alarm_begins] == [4]
    assert sum("complete collapse" in text for text in texts(caught)) == 1


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_a_resumed_loop_goes_on_with_its_story(cut: int) -> None:
    encoder, steps = mlp(192), range(0, 90, 9)

    def run(cut: int | None) -> tuple[list[Look], list[str]]:
        look_at, found = monitor().watch(every_n_steps=10, max_overhead=None, patience_steps=20), []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i, step in enumerate(steps):
                if i == cut:
                    state = look_at.state_dict()
                    look_at = monitor().watch(
                        every_n_steps=10, max_overhead=None, patience_steps=20
                    )
                    look_at.load_state_dict(state)
                found.append(look_at(point(int(step > 20), encoder), step))
        return found, texts(caught)

    (whole, said), (parted, said_again) = run(None), run(cut)
    assert [look.step for look in parted if look] == [look.step for look in whole if look]
    assert [look.reading for look in parted] == [look.reading for look in whole]
    assert said == said_again
    assert sum("complete collapse" in text for text in said) == 1


def evaluation(seconds: float, clock: Clock, **scalars: float) -> Callable[[], Evaluation]:
    def evaluate() -> Evaluation:
        clock.now += seconds
        return Evaluation(scalars, torch.zeros(0, 4))

    return evaluate


def test_the_first_minute_of_looks_is_free_and_then_their_share_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    story = Watch("Us", every_n_steps=1, max_overhead=0.1)
    taken = []
    for step in range(1, 201):
        clock.now += 10.0  # of training, a step
        if story.is_due(step) and story.has_time(step):
            taken.append(step)
            story.look(step, evaluation(20.0, clock))
        assert not story.has_time(step)  # decided once
    # Three looks in the first minute; the fourth when 80 of the seconds so far and its own 20 are a
    # tenth: 10 n + 60 + 20 = 800, n = 72; then every 18 steps (200 = 18 · 10 + 20).
    assert taken == [1, 2, 3, 72, 90, 108, 126, 144, 162, 180, 198]
    assert story.skipped == 200 - len(taken)
    assert story.owes(200)
    assert not story.owes(198)


def test_without_a_limit_nothing_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    story = Watch("Us", every_n_steps=1)
    for step in range(1, 10):
        assert story.is_due(step)
        assert story.has_time(step)
        story.look(step, evaluation(1e6, clock))
    assert story.skipped == 0


@pytest.mark.parametrize(
    ("highest", "told"),
    [
        ([0.4, 0.4, 0.4, 0.4], [1]),  # said at the second look in a row, once
        ([0.4, 0.6, 0.4, 0.6], []),  # not twice in a row
        ([0.6, 0.5, 0.51, 0.9], []),  # no more than noise
        ([0.6, 0.4, 0.4, 0.6], [2]),
    ],
)
def test_inverted_is_said_when_it_is_more_than_noise_and_twice_in_a_row(
    monkeypatch: pytest.MonkeyPatch, highest: list[float], told: list[int]
) -> None:
    clock, story, said = Clock(monkeypatch), Watch("Us"), []
    for step, value in enumerate(highest):
        scalars = {"density/polarity": value - 0.2, "density/polarity_high": value}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            story.look(step, evaluation(1.0, clock, **scalars))
        said += [step] * len(caught)
        assert all("JEPA-SCORE is inverted" in text for text in texts(caught))
    assert said == told


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` must be at least 1, got 0"),
        ({"every_n_steps": 2.5}, TypeError, "`every_n_steps` must be an integer"),
        ({"max_overhead": 1.5}, ValueError, "`max_overhead` must be a share of at most 1"),
        ({"max_overhead": "5 %"}, TypeError, "`max_overhead` must be a number"),
        ({"patience_steps": 0}, ValueError, "`patience_steps` must be at least 1"),
        ({"strict": 1}, TypeError, "`strict` must be True or False"),
    ],
)
def test_arguments_are_checked(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        monitor().watch(**arguments)


def test_the_final_weights_are_looked_at_and_nothing_is_looked_at_twice() -> None:
    look_at = monitor().watch(every_n_steps=10, max_overhead=None)
    encoder = mlp(192)
    looks = [look_at(encoder, step, last=step == 13) for step in range(14)]
    assert [look.step for look in looks if look] == [0, 10, 13]
    assert not look_at(encoder, 13, last=True)


def test_the_plan_says_what_a_look_takes() -> None:
    counted: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(192, 40)

        def forward(self, batch: Tensor) -> Tensor:
            found = self.net(batch)
            if found.requires_grad:
                found.register_hook(lambda gradient: counted.append(len(gradient)))
            return found

    watched = DensityMonitor(
        images(20, 3), reference=images(30, 4), max_probe_samples=2, polarity_samples=2
    )
    assert watched.plan(Counting()) == (
        "a look embeds 50 images and 40 views, and scores 4 of them and 8 changed ones "
        "with 16 backward passes each, 192 in all."
    )
    counted.clear()
    watched.evaluate(Counting())
    assert sum(counted) == 192 + 12  # and one each, which tells whether images mix


def test_all_of_the_time_is_a_share_too_and_more_is_not() -> None:
    assert watching.check_overhead(1) == 1.0
    with pytest.raises(ValueError, match="`max_overhead` must be a share of at most 1"):
        watching.check_overhead(1.01)


def test_a_set_that_cannot_be_read_is_called_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"`ood\['dark'\]` must be a tensor"):
        monitor(ood={"dark": 3})
