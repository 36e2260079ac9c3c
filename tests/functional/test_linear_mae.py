"""Linear masked autoencoders: against all masks one by one, PCA, SciPy, gradient steps, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import seldom
from sklearn.decomposition import PCA
from torch import Tensor

from jepa_monitor.functional.linear_mae import (
    influence,
    linear_mae,
    masked_loss,
    masked_patch_map,
    patch_grid,
)

SIDE, PATCHES = 4, patch_grid(4, 2)


def images(count: int = 400, side: int = SIDE) -> Tensor:
    """Smooth in both directions, centred, float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, side, side, generator=generator, dtype=torch.float64)
    x = (x.cumsum(1).cumsum(2) + 0.3 * x).flatten(1)
    return x - x.mean(0)


def over_all_masks(x: Tensor, weights: Tensor, mask: float, hidden_only: bool = False) -> float:
    """The share of variance that is left, a mask at a time."""
    total = 0.0
    for hidden in itertools.product((False, True), repeat=4):
        seen = ~torch.tensor(hidden)[PATCHES]
        chance = np.prod([mask if gone else 1 - mask for gone in hidden])
        error = (x - (x * seen) @ weights).square()
        total += chance * float((error * ~seen if hidden_only else error).sum())
    return total / float(x.square().sum()) / (mask if hidden_only else 1)


@pytest.mark.parametrize("mask", [0.0, 0.3, 0.75])
def test_the_loss_is_that_of_all_masks_one_by_one(mask: float) -> None:
    x = images()
    weights = (
        torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    )
    found = masked_loss(weights, x.T @ x, PATCHES, mask)
    assert float(found) == pytest.approx(over_all_masks(x, weights, mask))
    if mask:
        apart = weights * (PATCHES[:, None] != PATCHES[None])
        found = masked_loss(apart, x.T @ x, PATCHES, mask, hidden_only=True)
        assert float(found) == pytest.approx(over_all_masks(x, apart, mask, hidden_only=True))


@pytest.mark.parametrize("mask", [0.5, *seldom(0.25, 0.9)])
def test_the_closed_form_is_what_adam_finds_in_2000_steps(mask: float) -> None:
    x = images()
    moment = x.T @ x / len(x)
    found = linear_mae(moment, PATCHES, mask, rank=3)
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(16, 3, generator=generator), torch.randn(3, 16, generator=generator)]
    maps = [(each.double() / 4).requires_grad_() for each in maps]
    optimiser = torch.optim.Adam(maps, lr=0.02)
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    chances = ((1 - mask) * masks + mask * (1 - masks)).prod(1)
    seen = masks[:, PATCHES]
    for step in range(2000):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / 2000)
        shown = x[None, :100] * seen[:, None]
        error = (x[None, :100] - shown @ maps[0] @ maps[1]).square().sum((1, 2))
        loss = (chances * error).sum() / x[:100].square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    part = x[:100]
    least = linear_mae(part.T @ part, PATCHES, mask, rank=3)
    assert loss.item() == pytest.approx(1 - float(least.explained), rel=0.01)
    assert loss.item() >= 1 - float(least.explained) - 1e-9
    whole = found.encoder @ found.decoder
    assert over_all_masks(x, whole, mask) == pytest.approx(1 - float(found.explained))


def test_without_a_mask_it_is_pca() -> None:
    x = images()
    found = linear_mae(x.T @ x, PATCHES, 0.0, rank=4)
    pca = PCA(4).fit(x.numpy())
    assert float(found.explained) == pytest.approx(pca.explained_variance_ratio_.sum())
    expected = pca.components_.T @ pca.components_
    np.testing.assert_allclose((found.encoder @ found.decoder).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("mask", [0.2, 0.8])
def test_it_is_the_reconstruction_of_the_theorem_on_augmentations(mask: float) -> None:
    """Theorem 3.1 of arXiv 2505.12477, with x̄ = (1 − m)x and Σ = m(1 − m) blockdiag(S), by SciPy."""
    x = images()
    moment = (x.T @ x / len(x)).numpy()
    mean = (1 - mask) * x.numpy()
    within = mask * (1 - mask) * moment * (PATCHES[:, None] == PATCHES[None]).numpy()
    second = mean.T @ mean / len(x) + within
    root = scipy.linalg.inv(scipy.linalg.sqrtm(second).real)
    left, values, right = scipy.linalg.svd(x.numpy().T @ mean / len(x) @ root)
    expected = root @ right[:3].T @ np.diag(values[:3]) @ left[:, :3].T
    found = linear_mae(torch.from_numpy(moment), PATCHES, mask, rank=3)
    np.testing.assert_allclose((found.encoder @ found.decoder).numpy(), expected, atol=1e-8)


def test_hidden_patches_are_foretold_as_by_least_squares_over_all_masks() -> None:
    x, mask = images(200), 0.6
    found = masked_patch_map(x.T @ x, PATCHES, mask)
    for q in range(4):
        own = q == PATCHES
        inputs, targets = [], []
        for hidden in itertools.product((False, True), repeat=3):
            others = [*hidden[:q], True, *hidden[q:]]
            chance = np.prod([mask if gone else 1 - mask for gone in hidden])
            seen = ~torch.tensor(others)[PATCHES]
            inputs.append((x * seen)[:, ~own] * chance**0.5)
            targets.append(x[:, own] * chance**0.5)
        expected = np.linalg.lstsq(
            torch.cat(inputs).numpy(), torch.cat(targets).numpy(), rcond=None
        )
        np.testing.assert_allclose(found[~own][:, own].numpy(), expected[0], atol=1e-8)
    assert not found[PATCHES[:, None] == PATCHES[None]].any()


def test_pixels_that_never_change_do_not_matter() -> None:
    x = images()
    padded = torch.zeros(len(x), 6, 6, dtype=torch.float64)
    padded[:, 1:5, 1:5] = x.unflatten(1, (4, 4))
    flat = padded.flatten(1)
    grid = patch_grid(6, 3)
    found = linear_mae(flat.T @ flat, grid, 0.5, rank=3)
    kept = flat.square().sum(0) > 0
    smaller = linear_mae(x.T @ x, grid[kept], 0.5, rank=3)
    assert float(found.explained) == pytest.approx(float(smaller.explained))
    assert float(found.rank) == pytest.approx(float(smaller.rank))


def test_distances_by_hand() -> None:
    grid = patch_grid(4, 2)
    still = influence(torch.eye(16), 4, grid)
    assert float(still.distance) == 0.0
    assert float(still.in_patch) == 1.0
    even = influence(-torch.ones(16, 16), 4, grid)
    assert float(even.distance) == pytest.approx(float(even.even))
    assert float(even.in_patch) == pytest.approx(1 / 4)
    assert float(even.length) == float("inf")
    places = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert float(even.even) == pytest.approx(apart.mean())
    right = torch.zeros(16, 16)
    right[torch.arange(15), torch.arange(1, 16)] = (
        1.0  # from the left neighbour, or the line before
    )
    expected = (12 * 1 + 3 * 10**0.5) / 15
    assert float(influence(right, 4, grid).distance) == pytest.approx(expected)


def test_the_length_of_an_exponential_is_found() -> None:
    side = 12
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(
        -1, 2
    )
    apart = torch.from_numpy(np.linalg.norm(places[:, None] - places[None], axis=-1))
    found = influence((-apart / 2.5).exp(), side, patch_grid(side, 4))
    assert float(found.length) == pytest.approx(2.5, rel=0.03)


def test_larger_patches_and_masks_look_farther() -> None:
    x = images(800, 8)
    reach = {}
    for size, mask in itertools.product((2, 4), (0.25, 0.9)):
        grid = patch_grid(8, size)
        found = linear_mae(x.T @ x, grid, mask, rank=8)
        reach[size, mask] = float(influence(found.encoder @ found.decoder, 8, grid).distance)
    assert reach[2, 0.25] < reach[2, 0.9] < reach[4, 0.9]
    assert reach[2, 0.25] < reach[4, 0.25] < reach[4, 0.9]


def test_bad_arguments_are_named() -> None:
    moment = torch.eye(16)
    with pytest.raises(ValueError, match="`size` must divide the side of the images, 6, got 4"):
        patch_grid(6, 4)
    with pytest.raises(ValueError, match="`mask` must be from 0 to less than 1, got 1"):
        linear_mae(moment, PATCHES, 1.0, 2)
    with pytest.raises(ValueError, match="`rank` must be at most 16, got 17"):
        linear_mae(moment, PATCHES, 0.5, 17)
    with pytest.raises(
        ValueError, match=r"`patches` must hold a whole number for each of 16 inputs"
    ):
        linear_mae(moment, PATCHES[:8], 0.5, 2)
    with pytest.raises(ValueError, match="do the images differ at all"):
        linear_mae(torch.zeros(16, 16), PATCHES, 0.5, 2)
    with pytest.raises(TypeError, match="`second_moment` must be a floating-point"):
        linear_mae(torch.eye(16).long(), PATCHES, 0.5, 2)
    with pytest.raises(ValueError, match="`patches` must be two at least"):
        masked_patch_map(moment, torch.zeros(16, dtype=torch.long), 0.5)
    with pytest.raises(ValueError, match="`weights` must be 0 within each patch"):
        masked_loss(moment, moment, PATCHES, 0.5, hidden_only=True)
    with pytest.raises(ValueError, match="`weights` must not be all 0"):
        influence(torch.zeros(16, 16), 4, PATCHES)
