"""The counting recipe: the rules of the environment, the losses, and what the runs print."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from jepa_monitor.recipes import counting
from jepa_monitor.recipes.counting import CountingEnv, Settings


def objects(image: torch.Tensor) -> int:
    """Count without knowing how images are drawn: what hangs together, in the brightest pixels.

    Objects may touch at their edges, so each of the 8×8 places is looked at by itself.
    """
    lit = image.amax(0) > 0
    places = lit.view(8, 8, 8, 8).permute(0, 2, 1, 3).reshape(64, 8, 8)
    parts = [ndimage.label(place, structure=[[1] * 3] * 3)[1] for place in places.numpy()]
    assert max(parts) <= 1
    return sum(parts)


def test_images_show_the_number_of_objects() -> None:
    env = CountingEnv(200, seed=1)
    assert env.images.shape == (200, 3, 64, 64)
    assert [objects(image) for image in env.images] == env.numbers.tolist()
    assert set(env.numbers.tolist()) == set(range(9))


def test_objects_of_an_image_are_alike_and_of_four_shapes() -> None:
    env = CountingEnv(300, seed=2)
    areas = set()
    for image, number, colour in zip(env.images, env.numbers, env.colours, strict=True):
        lit = image.amax(0) > 0
        if number:
            assert torch.equal(image[:, lit], colour[:, None].expand(3, int(lit.sum())))
            assert int(lit.sum()) % int(number) == 0
            areas.add(int(lit.sum()) // int(number))
    assert len(areas) == 4
    assert 49 in areas  # the square
    assert 7 in areas  # the line
    assert env.colours.min() >= 30 / 255
    assert env.colours.max() <= 225 / 255


def test_actions_add_remove_or_leave() -> None:
    env = CountingEnv(400, seed=3)
    numbers, images = env.numbers, env.images
    colours, shapes = env.colours, env.shapes
    actions = torch.linspace(-1, 1, 400)[torch.randperm(400)]
    following, rewards, ended = env.step(actions)
    change = torch.where(actions > 1 / 3, 1, torch.where(actions < -1 / 3, -1, 0))
    expected = (numbers + change).clamp(0, 8)
    assert torch.equal(env.numbers, expected)
    assert [objects(image) for image in following] == expected.tolist()
    assert torch.equal(rewards, (expected == 4).float())
    assert torch.equal(ended, expected == 4)
    assert torch.equal(env.colours, colours)
    assert torch.equal(env.shapes, shapes)
    same = expected == numbers
    assert torch.equal(following[same], images[same])
    # Where the number has changed all objects are put elsewhere, but for a rare coincidence.
    moved = (following[~same] != images[~same]).flatten(1).any(1)
    assert moved.all()


def test_only_the_chosen_environments_begin_anew() -> None:
    env = CountingEnv(50, seed=4)
    before, numbers = env.images, env.numbers
    which = torch.arange(50) % 2 == 0
    after = env.reset(which)
    assert torch.equal(after[~which], before[~which])
    assert torch.equal(env.numbers[~which], numbers[~which])
    assert not torch.equal(env.numbers[which], numbers[which])


def test_the_same_seed_gives_the_same_episodes() -> None:
    actions = torch.rand(5, 20) * 2 - 1
    films = []
    for seed in (7, 7, 8):
        env = CountingEnv(20, seed=seed)
        films.append(torch.stack([env.step(action)[0] for action in actions]))
        torch.rand(3)  # the global random numbers do not matter
    assert torch.equal(films[0], films[1])
    assert not torch.equal(films[0], films[2])


def test_held_out_observations_hold_every_number_equally_often() -> None:
    held_out = counting.observations(each=5)
    assert torch.bincount(held_out.numbers).tolist() == [5] * 9
    assert [objects(image) for image in held_out.images] == held_out.numbers.tolist()


def test_losses_are_what_they_are_said_to_be() -> None:
    torch.manual_seed(0)
    agent, env = counting.Agent(Settings()), CountingEnv(16, seed=5)
    images, live = env.images, env.numbers != 4
    actions = torch.rand(16) * 2 - 1
    following, rewards, _ = env.step(actions)
    both = torch.stack([(~live).float(), rewards])
    dynamics, head = agent(images, actions, following, both, live)
    now, then = agent.encoder(images), agent.encoder(following)
    predicted = agent.dynamics(torch.cat([now, actions[:, None]], 1))
    assert dynamics.item() == pytest.approx((predicted - then)[live].square().mean().item())
    guesses = agent.auxiliary.head(torch.cat([now, then]))[:, 0]
    assert head.item() == pytest.approx((guesses - both.flatten()).square().mean().item())
    # No target network, nothing detached: the gradient comes through both images.
    for position in (0, 2):
        inputs = [images, actions, following]
        inputs[position] = inputs[position].clone().requires_grad_()
        agent(*inputs, both, live)[0].backward()
        assert inputs[position].grad.abs().sum() > 0


def test_random_targets_have_unit_variance_and_stay() -> None:
    torch.manual_seed(0)
    auxiliary = counting.Auxiliary(Settings("random"))
    held_out = counting.observations(each=60)
    targets = held_out.images.flatten(1) @ auxiliary.target
    assert targets.shape == (540, 256)
    assert 0.3 < targets.std() < 3
    assert not any(auxiliary.target is parameter for parameter in auxiliary.parameters())


def test_dynamics_alone_shrinks_the_latent_space_to_a_point() -> None:
    run = counting.train(Settings("dynamics", steps=250), counting.observations(each=4), looks=1)
    assert run.looks[-1]["spread"] < 0.5 * run.looks[0]["spread"]
    assert run.looks[-1]["dynamics_loss"] < 0.05 * run.looks[0]["dynamics_loss"]
    assert run.looks[-1]["clusters"] <= 3
    assert len(run.looks) == len(run.latents)


def test_a_run_repeats_and_is_not_disturbed_by_the_looks() -> None:
    held_out = counting.observations(each=3)
    runs = [counting.train(Settings("joint", steps=40), held_out, looks=n) for n in (1, 4)]
    assert len(runs[0].looks) < len(runs[1].looks)
    assert torch.equal(runs[0].latents[-1], runs[1].latents[-1])


def test_command_line_trains_stores_and_shows(tmp_path, capsys) -> None:
    arguments = ["--method", "dynamics", "random", "--seeds", "3", "--folder", str(tmp_path)]
    found = counting.main([*arguments, "--steps", "20", "--looks", "1"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert table[2].startswith("| dynamics alone | ")
    assert (tmp_path / "latents.png").stat().st_size > 10_000
    assert counting.main([*arguments, "--show"]) == found
    assert [x for x in capsys.readouterr().out.splitlines() if x.startswith("|")] == table


def test_errors() -> None:
    with pytest.raises(ValueError, match="0 ≤ goal ≤ most ≤ 64, got 9, 8"):
        CountingEnv(1, goal=9)
    with pytest.raises(ValueError, match=r"`method` must be one of joint, .*, got 'none'"):
        counting.train(Settings("none"), counting.observations(each=2))
