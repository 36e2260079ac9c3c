"""Geometry of dictionaries against closed forms, SciPy and the definitions in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy

from jepa_monitor.functional import (
    atom_use,
    dictionary_coherence,
    dictionary_stability,
    footprint_entropy,
    gaussian_hoyer,
    hoyer_sparsity,
    welch_bound,
)
from jepa_monitor.functional._assignment import best_matching


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(width):
    """d + 1 directions in d dimensions, all at the same angle."""
    corners = torch.eye(width + 1, dtype=torch.float64) - 1 / (width + 1)
    return corners @ torch.linalg.svd(corners).Vh[:width].T


# --------------------------------------------------------------------------------------- coherence
@pytest.mark.parametrize("width", [2, 5, 16])
def test_a_simplex_attains_the_welch_bound(width):
    found = dictionary_coherence(3 * simplex(width))
    for value in (found.coherence, found.mean, found.welch):
        assert value.item() == pytest.approx(1 / width)
    assert found.frame.item() == pytest.approx(1)  # it is a tight frame
    assert found.stable_rank.item() == pytest.approx(width)
    assert found.random > found.welch
    assert found.random_frame > 1


def test_pairs_agree_with_numpy():
    atoms = normal(40, 6) * torch.arange(1, 41)[:, None]
    found = dictionary_coherence(atoms)
    unit = atoms.numpy() / np.linalg.norm(atoms.numpy(), axis=1)[:, None]
    cosines = unit @ unit.T
    off = cosines[~np.eye(40, dtype=bool)]
    assert found.coherence.item() == pytest.approx(np.abs(off).max())
    assert found.mean.item() == pytest.approx(np.abs(off).mean())
    assert found.frame.item() == pytest.approx((cosines**2).sum() / (40**2 / 6))
    singular = np.linalg.svd(unit, compute_uv=False)
    assert found.stable_rank.item() == pytest.approx((singular**2).sum() / singular[0] ** 2)
    root = math.sqrt(6)
    hoyer = (root - np.abs(unit).sum(1)) / (root - 1)
    assert found.hoyer.item() == pytest.approx(hoyer.mean())


def test_random_directions_are_at_their_own_level():
    found = dictionary_coherence(normal(600, 32), seed=1)
    for name in ("mean", "frame", "stable_rank"):
        value, chance = getattr(found, name).item(), getattr(found, f"random_{name}").item()
        assert value == pytest.approx(chance, rel=0.05), name
    assert found.coherence.item() == pytest.approx(found.random.item(), rel=0.2)
    assert found.random_mean.item() == pytest.approx(math.sqrt(2 / (math.pi * 32)), rel=0.02)
    assert found.hoyer.item() == pytest.approx(found.gaussian_hoyer.item(), rel=0.02)
    assert found.antipodal == found.random_antipodal == 0


def test_antipodes_are_counted_and_zeros_left_out():
    atoms = torch.cat([torch.eye(5), -torch.eye(5)[:2], torch.zeros(3, 5)])
    found = dictionary_coherence(atoms)
    assert found.antipodal.item() == pytest.approx(4 / 7)
    assert found.zero.item() == pytest.approx(3 / 10)
    assert found.coherence.item() == 1
    assert found.hoyer.item() == pytest.approx(1)


def test_known_values_of_the_welch_bound_and_of_hoyer():
    assert welch_bound(2000, 768) == pytest.approx(0.0283, abs=5e-5)
    assert welch_bound(4, 4) == 0
    assert hoyer_sparsity(torch.eye(3)).tolist() == [1, 1, 1]
    assert hoyer_sparsity(-torch.ones(1, 7)).item() == pytest.approx(0, abs=1e-12)
    assert hoyer_sparsity(torch.zeros(1, 3)).isnan().all()
    drawn = hoyer_sparsity(normal(20_000, 5)).mean().item()
    assert drawn == pytest.approx(gaussian_hoyer(5), abs=5e-3)


# --------------------------------------------------------------------------------------- stability
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (30, 30), (12, 25)])
def test_matching_is_that_of_scipy(shape):
    for seed in range(4):
        gains = normal(*shape, seed=seed)
        rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
        assert best_matching(gains).tolist() == columns.tolist()
        assert rows.tolist() == list(range(shape[0]))


def test_matching_of_ties_is_as_good_as_scipys():
    gains = torch.randint(3, (20, 20), generator=torch.Generator().manual_seed(0)).double()
    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    found = best_matching(gains)
    assert sorted(found.tolist()) == list(range(20))
    assert gains[range(20), found].sum() == gains[rows, columns].sum()


def test_stability_is_the_mean_of_scipys_matching():
    first, second = normal(25, 8), normal(25, 8, seed=1)
    unit = [(x / x.norm(dim=1, keepdim=True)).numpy() for x in (first, second)]
    cosines = unit[0] @ unit[1].T
    expected = cosines[linear_sum_assignment(cosines, maximize=True)].mean()
    found = dictionary_stability(first, second)
    assert found.cosine.item() == pytest.approx(expected)
    assert found.random.item() == pytest.approx(expected, abs=0.06)
    again = dictionary_stability(
        first, 2 * first[torch.randperm(25)] + 0.01 * normal(25, 8, seed=2)
    )
    assert again.cosine > 0.99
    assert dictionary_stability(first, -first).cosine < 0.9  # the opposite is another atom


# --------------------------------------------------------------------------------------------- use
def test_use_agrees_with_its_definitions():
    codes, atoms = normal(60, 9).clamp(min=0), normal(9, 4, seed=1)
    codes[:, 2] = 0
    found = atom_use(codes, atoms)
    z, d = codes.numpy(), atoms.numpy()
    np.testing.assert_allclose(found.firing, (z > 0).mean(0))
    parts = z[:, :, None] * d  # what each atom adds to each point
    np.testing.assert_allclose(found.energy, (parts**2).sum(2).mean(0))
    np.testing.assert_allclose(found.mean_energy, np.linalg.norm(parts.mean(0), axis=1))
    assert found.active.item() == pytest.approx((z > 0).sum(1).mean())
    assert found.dead.item() == pytest.approx(1 / 9)


def test_footprints_of_one_place_and_of_all():
    codes = torch.zeros(30, 5, 2)
    codes[:, 3, 0] = 2.0
    codes[:, :, 1] = 1.0
    assert footprint_entropy(codes[..., :1]).entropy.item() == pytest.approx(0, abs=1e-12)
    both = footprint_entropy(codes[..., 1:])
    assert both.entropy.item() == pytest.approx(1)
    assert both.null.item() == pytest.approx(1)


@pytest.mark.parametrize(("images", "rate"), [(60, 0.1), (200, 0.05), (200, 0.3)])
def test_the_null_of_footprints_is_that_of_shuffled_places(images, rate):
    generator = torch.Generator().manual_seed(images)
    fires = torch.rand(images, 16, 30, generator=generator) < rate
    codes = fires * torch.rand(images, 16, 30, generator=generator)
    codes = codes * torch.linspace(0.05, 2, 16)[:, None]  # places differ
    found = footprint_entropy(codes)
    shuffled = []
    for _ in range(20):
        order = torch.rand(images, 16, 30, generator=generator).argsort(1)
        places = codes.gather(1, order).mean(0).numpy()
        shuffled.append(np.nanmean(entropy(places)) / math.log(16))
    assert found.null.item() == pytest.approx(np.mean(shuffled), abs=0.015)
    assert found.entropy < found.null
    assert found.atoms == 30
    own = np.nanmean(entropy(codes.mean(0).numpy())) / math.log(16)
    assert found.entropy.item() == pytest.approx(own)


def test_footprints_of_atoms_that_hardly_fire_are_not_told():
    codes = torch.zeros(20, 9, 2)
    codes[::2, 4, 0] = 1  # ten times
    codes[:8, 4, 1] = 1  # eight times
    found = footprint_entropy(codes)
    assert found.atoms == 1
    assert found.entropy.item() == pytest.approx(0, abs=1e-12)
    assert footprint_entropy(codes[..., 1:]).entropy.isnan()
    assert footprint_entropy(0 * codes).atoms == 0


# ------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dictionary_coherence(torch.zeros(4, 3)), "at least 2 atoms that are not 0, got 0"),
        (lambda: dictionary_coherence(normal(4, 1)), "d ≥ 2, got d = 1"),
        (lambda: dictionary_coherence(normal(4, 3), draws=0), "`draws` must be at least 1"),
        (lambda: welch_bound(1, 3), "`atoms` must be at least 2"),
        (lambda: gaussian_hoyer(1), "`width` must be at least 2"),
        (lambda: dictionary_stability(normal(4, 3), normal(4, 2)), "same last dimension"),
        (lambda: dictionary_stability(normal(4, 3), normal(3, 3)), "at least as many atoms"),
        (lambda: atom_use(normal(4, 3), normal(4, 2)), r"`codes` must have shape \(N, 4\)"),
        (lambda: footprint_entropy(normal(4, 1, 2)), "V ≥ 2"),
        (lambda: dictionary_coherence(normal(4, 3) * math.inf), "`dictionary` has 4 non-finite"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
