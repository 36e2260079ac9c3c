"""A world model from clips to the sentence: numbers, predictors of every kind, and nothing disturbed."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from helpers import images, mlp
from torch import Tensor, nn

from jepa_monitor import DensityMonitor
from jepa_monitor.functional import action_share, prediction_error, rankme, surprise
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.insights import Clips
from jepa_monitor.insights.world import WorldModel

COUNT, STEPS = 40, 7


def walk(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames whose first two pixels are moved by actions, and two of which drift on."""
    draw = torch.Generator().manual_seed(seed)
    actions = torch.randn(COUNT, STEPS - 1, 2, generator=draw)
    speed = 0.5 * torch.randn(COUNT, 1, 2, generator=draw)
    start = 3 * torch.randn(COUNT, 1, 4, generator=draw)
    moves = torch.cat([actions, speed.expand(-1, STEPS - 1, -1)], 2)
    places = torch.cat([start, start + moves.cumsum(1)], 1)
    frames = torch.zeros(COUNT, STEPS, 3, 8, 8)
    frames[..., 0, 0, :4] = places
    return frames, actions


class Reader(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch[:, 0, 0, :4]


class Perfect(nn.Module):
    """Knows the world: by the last two frames and the action."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        self.calls += 1
        before = torch.cat([z[:, :1], z[:, :-1]], 1)
        drift = (z - before)[..., 2:]
        return z + self.weight * self.drop(torch.cat([a, drift], 2))


def look(predict: Any, encoder: Any = None, history: int = 3, **changes: Any) -> dict[str, float]:
    frames, actions = walk()
    world = Clips(frames, actions, predict, history)
    monitor = DensityMonitor(images(24), max_probe_samples=2, world=world, **changes)
    scalars = monitor.evaluate(encoder or Reader()).scalars
    return {tag.removeprefix("world/"): v for tag, v in scalars.items() if tag.startswith("world/")}


def test_numbers_are_those_of_the_functions() -> None:
    torch.manual_seed(0)
    frames, actions = walk()
    encoder, step = mlp(192, 6), nn.Linear(8, 6)

    def predict(z: Tensor, a: Tensor) -> Tensor:
        return z + 0.3 * step(torch.cat([z, a], 2))

    found = look(predict, encoder)
    with torch.no_grad():
        z = encoder(frames.flatten(0, 1)).unflatten(0, (COUNT, STEPS))
        made, others = predict(z[:, :-1], actions), predict(z[:, :-1], actions.roll(1, 0))
        ahead = [z[:, 2]]
        for t in range(2, STEPS - 1):
            ahead.append(predict(ahead[-1][:, None], actions[:, t : t + 1])[:, 0])
    error = prediction_error(made, z[:, 1:], z[:, :-1])
    share = action_share(made, others, z[:, 1:])
    told = surprise(made[:, 3], z[:, 4])
    for name, values in (("error", error[:3]), ("action_share", share), ("surprise", told)):
        for end, value in zip(("", "_low", "_high"), values, strict=True):
            assert found.pop(f"{name}{end}") == pytest.approx(value.item(), rel=1e-5, abs=1e-6), (
                name
            )
    assert found.pop("error_still") == pytest.approx(error.still.item(), rel=1e-5)
    for k in (1, 2, 4):
        drift = prediction_error(ahead[k][:, None], z[:, 2 + k : 3 + k], z[:, 2:3])
        assert found.pop(f"drift_{k}") == pytest.approx(drift.value.item(), rel=1e-4)
        assert found.pop(f"drift_{k}_still") == pytest.approx(drift.still.item(), rel=1e-4)
    assert found.pop("rankme") == pytest.approx(
        min(float(rankme(part)) for part in z.unbind(1)), rel=1e-4
    )
    assert found.pop("rankme_together") == pytest.approx(float(rankme(z.flatten(0, 1))), rel=1e-4)
    worst = max(float(sliced_epps_pulley(part).statistic) for part in z.unbind(1))
    assert found.pop("gaussianity") == pytest.approx(worst, rel=1e-4)
    for tag, path in (("straightness", z), ("straightness_pixels", frames.flatten(2))):
        steps = path.double().diff(dim=1).numpy()
        unit = steps / np.linalg.norm(steps, axis=2, keepdims=True)
        assert found.pop(tag) == pytest.approx((unit[:, 1:] * unit[:, :-1]).sum(2).mean(), abs=1e-5)
    assert found == {}


def test_a_model_that_knows_the_world_and_one_that_does_not() -> None:
    found = look(Perfect())
    # Of the first frame nobody knows the drift.
    assert found["error"] < 0.02 < found["error_still"]
    assert found["drift_4"] < 1e-9
    assert found["action_share"] > 0.8
    assert found["surprise"] > 0.99
    said = WorldModel().says({f"world/{tag}": value for tag, value in found.items()})
    assert said.startswith("The next embedding is predicted but for ")
    assert "where standing still misses" in said
    still = look(lambda z, a: z)
    said = WorldModel().says({f"world/{tag}": value for tag, value in still.items()})
    assert "no better than by standing still" in said
    assert "actions make no difference" in said
    wild = look(lambda z, a: -9 * z)
    assert "worse than by the mean" in WorldModel().says({f"world/{t}": v for t, v in wild.items()})
    assert WorldModel().says({}) == ""


def test_the_predictor_sees_no_more_than_its_history_and_nothing_ahead() -> None:
    seen = []

    def predict(z: Tensor, a: Tensor) -> Tensor:
        seen.append(z.shape[1])
        return z

    look(predict, history=2)
    assert set(seen) == {1, 2}
    frames, actions = walk()
    longer = torch.cat([actions, torch.zeros(COUNT, 1, 2)], 1)
    world = Clips(frames, longer, Perfect())
    monitor = DensityMonitor(images(24), max_probe_samples=2, world=world)
    assert monitor.evaluate(Reader()).scalars["world/error"] == pytest.approx(
        look(Perfect())["error"]
    )


def test_the_predictor_is_left_as_it_was() -> None:
    predict = Perfect().train()
    state = torch.get_rng_state()
    look(predict)
    assert predict.training
    assert predict.drop.training
    assert predict.calls == 0
    assert predict.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    method = look(predict.forward)
    assert method["drift_4"] < 1e-9  # without dropout
    assert predict.training


def test_a_point_is_told_by_its_ranks_and_says_nothing_else() -> None:
    class Point(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return torch.ones(len(batch), 4) + 0 * batch.flatten(1)[:, :4]

    found = look(lambda z, a: z, Point())
    assert "error" not in found
    assert "action_share" not in found
    assert found["rankme"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("wrong", ["shape", "nan"])
def test_a_predictor_that_fails_is_said_and_the_rest_goes_on(wrong: str) -> None:
    def predict(z: Tensor, a: Tensor) -> Tensor:
        return z[:, -1] if wrong == "shape" else z / 0

    with pytest.warns(UserWarning, match="goes without 'world'"):
        assert look(predict) == {}


def test_clips_are_drawn(tmp_path: pathlib.Path) -> None:
    frames, actions = walk()
    monitor = DensityMonitor(
        images(24), max_probe_samples=2, world=Clips(frames, actions, Perfect())
    )
    report = monitor.evaluate(Reader())
    (figure,) = [f for tag, f in report.figures().items() if tag == "world/clips"]
    assert len(figure.axes) == 12
    figure.savefig(tmp_path / "clips.png")
    flat = Clips(frames.flatten(2), actions, Perfect())
    none = DensityMonitor(images(24).flatten(1), max_probe_samples=2, world=flat).evaluate(
        nn.Linear(192, 4)
    )
    assert "world/clips" not in none.figures()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"frames": [1]}, TypeError, "`frames` must be a floating-point tensor, got list"),
        ({"actions": torch.ones(40, 6, 2).long()}, TypeError, r"`actions` must be .* got torch\.int64"),
        ({"predict": 3}, TypeError, "`predict` must be callable, got int"),
        ({"history": 0}, ValueError, "`history` must be"),
        ({"frames": torch.zeros(40, 2, 3, 8, 8)}, ValueError, "2 clips of 3 frames or more"),
        ({"actions": torch.zeros(40, 3, 2)}, ValueError, r"`actions` must have shape \(40, 7 or 6, A\)"),
        ({"actions": torch.full((40, 6, 2), torch.nan)}, ValueError, "`actions` must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    frames, actions = walk()
    with pytest.raises(error, match=message):
        Clips(**({"frames": frames, "actions": actions, "predict": Perfect()} | changes))
    with pytest.raises(TypeError, match="`world` must be Clips or None, got Tensor"):
        DensityMonitor(images(8), world=frames)
