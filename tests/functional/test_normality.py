"""The verdict on the law of embeddings: laws that are normal, laws that are not, and too few."""

import math

import pytest
import torch
from helpers import seldom
from scipy import stats

from jepa_monitor.functional import normality


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def uniform(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, k, generator=generator, dtype=torch.float64)


def rotation(k):
    return torch.linalg.qr(normal(k, k, seed=7)).Q


def falling(k, decades):
    return torch.logspace(0, -decades, k, dtype=torch.float64)


def clusters(n, k, seed=0):
    labels = torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))
    return normal(n, k, seed) + 5 * normal(10, k, seed=9)[labels]


def six(n, k, seed=0):
    labels = torch.randint(6, (n,), generator=torch.Generator().manual_seed(seed))
    means = torch.zeros(6, k, dtype=torch.float64)
    means[:, :6] = torch.eye(6) * 4 / math.sqrt(2)
    return normal(n, k, seed) + (means @ rotation(k))[labels]


def laplace(n, k, seed=0):
    u = uniform(n, k, seed) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


def student(n, k, seed=0):
    return normal(n, k, seed) * (5 / normal(n, 5, seed + 500).square().sum(1, keepdim=True)).sqrt()


def cliff(n, k, seed=0):
    scale = torch.ones(k, dtype=torch.float64)
    scale[3 * k // 4 :] = 1e-2
    return (normal(n, k, seed) * scale) @ rotation(k)


OTHER = {
    "clusters": clusters,
    "six": six,
    "laplace": laplace,
    "uniform": uniform,
    "rotated uniform": lambda n, k, seed=0: uniform(n, k, seed) @ rotation(k),
    "student": student,
    "cliff": cliff,
}


@pytest.mark.parametrize("decades", [3, *seldom(0)])
@pytest.mark.parametrize(("n", "k"), [(40, 2), (300, 16), (64, 128), (256, 128)])
def test_normal_embeddings_are_refused_no_more_often_than_promised(n, k, decades):
    looks = 40
    found = [
        normality(normal(n, k, seed) * falling(k, decades) + 1, seed=seed) for seed in range(looks)
    ]
    small = sum(verdict.p_value < 0.05 for verdict in found)
    assert small <= stats.binom.isf(1e-3, looks, 0.05)
    assert sum(verdict.gaussian is False for verdict in found) <= stats.binom.isf(1e-3, looks, 0.01)
    assert all(
        (verdict.gaussian is None) == (n < verdict.needed)
        for verdict in found
        if verdict.gaussian is not False
    )


def test_p_value_of_the_parts_is_not_far_too_large_either():
    # Bonferroni's correction is for the worst case; here it costs little.
    found = [normality(normal(128, 24, seed), seed=seed).p_value for seed in range(60)]
    assert sum(p < 0.5 for p in found) > 10


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("k", [16, 64, 192])
def test_other_laws_are_refused_at_4096(name, k):
    verdict = normality(OTHER[name](4096, k))
    assert verdict.gaussian is False
    assert verdict.reason == "spectrum" or verdict.p_value < 1e-6


@pytest.mark.parametrize("name", ["clusters", "laplace", "student"])
def test_gross_departures_are_refused_in_fewer_embeddings_than_a_verdict_takes(name):
    verdict = normality(OTHER[name](512, 768))
    assert verdict.needed == 2304
    assert verdict.gaussian is False


def test_where_each_departure_shows():
    assert normality(uniform(1024, 32)).parts["coordinates"].p_value < 1e-6
    rotated = normality(OTHER["rotated uniform"](1024, 32))
    assert rotated.reason == "radius"
    assert rotated.parts["coordinates"].p_value > 1e-6
    one = normal(1024, 64)
    one[:, 5] = one[:, 5].sign() + 0.1 * normal(1024, 1, seed=3)[:, 0]
    assert normality(one).parts["coordinates"].p_value < 1e-20
    leading = normal(1024, 64)
    leading[:, 0] = 9 * leading[:, 0].sign()
    assert normality(leading @ rotation(64)).parts["axes"].p_value < 1e-20


def test_a_departure_too_small_to_matter_is_no_refusal():
    z = normal(8000, 4)
    slightly = z + 0.07 * (z.square() - 1)
    assert normality(slightly).p_value < 1e-6
    assert normality(slightly).gaussian is True
    assert normality(slightly, tolerance=0.0).gaussian is False


def test_effect_does_not_grow_with_n():
    few, many = (normality(laplace(n, 8)).effect for n in (1500, 12_000))
    assert few == pytest.approx(many, rel=0.35)
    assert few > 0.01


def test_the_verdict_does_not_depend_on_scale_shift_or_type():
    z = normal(400, 24) * falling(24, 2)
    first, moved = normality(z), normality(1e-3 * z + 4)
    assert moved.p_value == pytest.approx(first.p_value, rel=1e-6)
    assert normality(z.float()).p_value == pytest.approx(first.p_value, rel=0.05)


@pytest.mark.parametrize("value", [0.0, 0.1, 50.0])
def test_a_point_is_not_normal(value):
    verdict = normality(torch.full((100, 8), value))
    assert (verdict.gaussian, verdict.reason, verdict.rank) == (False, "spectrum", 0)


def test_half_of_the_directions_missing_is_not_normal_and_one_missing_is():
    half = normal(512, 16) @ normal(16, 32, seed=1)
    verdict = normality(half)
    assert (verdict.gaussian, verdict.reason, verdict.rank) == (False, "spectrum", 16)
    z = normal(512, 32)
    assert normality(z - z.mean(1, keepdim=True)).gaussian is True  # as a LayerNorm leaves it


def test_random_numbers_of_others_are_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    normality(normal(64, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_errors():
    with pytest.raises(ValueError, match="`embeddings` must have at least 32 rows, got 31"):
        normality(normal(31, 2))
    with pytest.raises(ValueError, match=r"`significance` must lie in \(0, 1\), got 0"):
        normality(normal(64, 2), significance=0)
    with pytest.raises(ValueError, match="`tolerance` must lie in"):
        normality(normal(64, 2), tolerance=-1.0)
