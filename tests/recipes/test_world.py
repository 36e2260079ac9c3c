"""The world-model recipe: its environment, its loss, its command."""

from __future__ import annotations

import pathlib

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from jepa_monitor.callbacks import jepa_score
from jepa_monitor.recipes import world
from jepa_monitor.recipes.sprites import draw_sprites, sprite_clips


def test_the_disc_follows_actions_and_the_square_flies_and_bounces() -> None:
    clips = sprite_clips(50, 12, seed=3)
    assert clips.frames.shape == (50, 12, 1, 32, 32)
    assert clips.frames.dtype == torch.uint8
    disc, square = clips.places[..., :2], clips.places[..., 2:]
    expected = (disc[:, :-1] + 0.12 * clips.actions).clamp(0.15, 0.85)
    torch.testing.assert_close(disc[:, 1:], expected)
    steps = square.diff(dim=1)
    free = ((square > 0.15 + 0.07) & (square < 0.85 - 0.07)).all(2)
    before, after = steps[:, :-1][free[:, 1:-1]], steps[:, 1:][free[:, 1:-1]]
    torch.testing.assert_close(before, after)  # straight on, where no wall is near
    assert bool(((square >= 0.15) & (square <= 0.85)).all())
    torch.testing.assert_close(
        steps[free[:, :-1]].norm(dim=1), torch.full((int(free[:, :-1].sum()),), 0.07)
    )
    again = sprite_clips(50, 12, seed=3)
    assert torch.equal(again.frames, clips.frames)
    assert not torch.equal(sprite_clips(50, 12, seed=4).places, clips.places)


def test_sprites_are_where_they_are_said_to_be() -> None:
    places = torch.tensor([[0.3, 0.7, 0.8, 0.2]])
    frame = draw_sprites(places)[0, 0].float()
    y, x = torch.meshgrid(*[(torch.arange(32) + 0.5) / 32] * 2, indexing="ij")
    bright = (frame > 150).float()
    assert float((bright * x).sum() / bright.sum()) == pytest.approx(0.3, abs=0.01)
    assert float((bright * y).sum() / bright.sum()) == pytest.approx(0.7, abs=0.01)
    dim = ((frame > 60) & (frame < 140) & (x > 0.5)).float()
    assert float((dim * x).sum() / dim.sum()) == pytest.approx(0.8, abs=0.02)
    assert float((dim * y).sum() / dim.sum()) == pytest.approx(0.2, abs=0.02)
    with pytest.raises(ValueError, match="`count` must be at least 1 and `steps` 2, got 3 and 1"):
        sprite_clips(3, 1)


def test_the_predictor_sees_nothing_ahead() -> None:
    torch.manual_seed(0)
    predictor = world.LatentPredictor(6).eval()
    torch.testing.assert_close(
        predictor(torch.ones(1, 2, 6), torch.ones(1, 2, 2)), torch.ones(1, 2, 6)
    )
    torch.nn.init.normal_(predictor.head.weight)
    z, a = torch.randn(2, 3, 6), torch.randn(2, 3, 2)
    found = predictor(z, a)
    later = z.clone(), a.clone()
    later[0][:, 2], later[1][:, 2] = 9.0, 9.0
    torch.testing.assert_close(predictor(*later)[:, :2], found[:, :2])
    torch.testing.assert_close(predictor(z[:, :2], a[:, :2]), found[:, :2])
    assert not torch.allclose(predictor(*later)[:, 2], found[:, 2])


def test_norms() -> None:
    kinds = {norm: world.FrameEncoder(4, norm) for norm in world.NORMS}
    found = {
        n: any(isinstance(m, torch.nn.BatchNorm1d) for m in e.modules()) for n, e in kinds.items()
    }
    assert found == {"batch": True, "none": False}
    with pytest.raises(ValueError, match="`norm` must be one of batch, none, got 'layer'"):
        world.FrameEncoder(4, "layer")


def test_the_loss_is_that_of_the_paper_and_nothing_is_detached() -> None:
    torch.manual_seed(0)
    model = world.LatentWorld(world.Settings(sigreg_weight=0.0, width=5)).eval()
    logged = {}
    model.log_dict = logged.update  # type: ignore[method-assign, assignment]
    clips = sprite_clips(6, 5)
    loss = model.training_step([clips.frames, clips.actions], 0)
    z = model.encoder(world.as_pixels(clips.frames).flatten(0, 1)).unflatten(0, (6, 5))
    errors = [
        F.mse_loss(
            model.predictor(z[:, t : t + 3], clips.actions[:, t : t + 3]), z[:, t + 1 : t + 4]
        )
        for t in range(2)
    ]
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert logged["train/loss"] == loss
    # Of N(0, I) each step reads about 1.05, and of a point much more.
    assert 0 < float(logged["train/sigreg"]) < 10
    gradients = torch.autograd.grad(loss, list(model.encoder.parameters()))
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_the_command_trains_watches_and_repeats(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Which takes no pictures: they are most of the time, and drawn by tests of their own.
    monkeypatch.setattr(world, "TensorBoardLogger", CSVLogger)
    monkeypatch.setattr(jepa_score, "figures_of", lambda *_: {})
    small = [
        "--clips=48",
        "--epochs=2",
        "--batch_size=16",
        "--looks=1",
        "--held_out=32",
        "--width=6",
    ]
    runs = [world.main([*small, f"--folder={tmp_path / name}"]) for name in ("one", "two")]
    said = capsys.readouterr().out
    assert "Of held-out clips the next embedding is predicted but for" in said
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    looks = runs[0].looks
    assert [look["step"] for look in looks] == [0, 6]
    assert {"world/error", "world/drift_4", "world/surprise", "collapse/rankme"} <= set(looks[-1])
    assert [place["step"] for place in runs[0].places] == [0, 6]
    assert {"eval/disc_r2", "eval/square_r2"} < set(runs[0].places[-1])
    assert (tmp_path / "one" / "run.html").is_file()
