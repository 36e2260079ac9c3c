"""Do images repeat? Against brute force, closed forms and planted repetitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from jepa_monitor.functional import duplicate_share, view_variety
from jepa_monitor.functional.variety import thumbnails


def pictures(count: int, seed: int = 0, width: int = 192) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_the_share_is_that_of_a_loop_over_pairs() -> None:
    generator = np.random.default_rng(1)
    bank = pictures(6).numpy()
    batches = [bank[generator.integers(0, 6, n)] for n in (9, 14)]
    batches = [b + 0.02 * generator.normal(size=b.shape) for b in batches]
    everything = np.concatenate([b.ravel() for b in batches])
    usual = 2 * everything.var()
    pairs = [
        float(np.mean((x - y) ** 2) <= 0.01 * usual)
        for batch in batches
        for x, y in itertools.combinations(batch, 2)
    ]
    found = duplicate_share([torch.tensor(b) for b in batches])
    assert 0.05 < np.mean(pairs) < 0.5
    assert found.share.item() == pytest.approx(np.mean(pairs))
    assert found.low < found.share < found.high


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_one_over_the_share_is_the_number_of_images(kinds: int) -> None:
    drawn = torch.randint(kinds, (4000,), generator=torch.Generator().manual_seed(2))
    batches = list(pictures(kinds)[drawn].split(64))
    assert 1 / duplicate_share(batches).share.item() == pytest.approx(kinds, rel=0.03)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_neither_scale_nor_brightness_matters(scale: float, shift: float) -> None:
    same = pictures(1).expand(32, -1) + 0.01 * pictures(32, 3)
    other = pictures(32, 4)
    for data, expected in ((same, 1.0), (other, 0.0)):
        assert duplicate_share([scale * (data + shift)]).share == expected


def test_empty_images_are_one_image() -> None:
    assert duplicate_share([torch.full((16, 64), 0.3)]).share == 1
    half = torch.cat([torch.zeros(32, 64), pictures(32, width=64)])
    assert duplicate_share([half]).share.item() == pytest.approx(32 * 31 / (64 * 63))


def test_the_interval_of_the_share_covers_it() -> None:
    weights = np.array([0.5, 0.2] + [0.05] * 6)
    bank, generator = pictures(8, width=32), np.random.default_rng(5)
    truth, inside = (weights**2).sum(), 0
    for _ in range(400):
        found = duplicate_share([bank[generator.choice(8, 64, p=weights)] for _ in range(4)])
        inside += bool(found.low <= truth <= found.high)
    assert stats.binomtest(inside, 400, 0.95).pvalue > 1e-3


def views(share: float, count: int, seed: int, width: int = 48) -> tuple[Tensor, Tensor]:
    """Two views whose intraclass correlation is known."""
    image, *noise = (pictures(count, 10 * seed + i, width) for i in range(3))
    first, second = (math.sqrt(share) * image + math.sqrt(1 - share) * each for each in noise)
    return first, second


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_variety_is_the_intraclass_correlation(share: float) -> None:
    batches = [views(share, 64, seed) for seed in range(20)]
    found = view_variety(batches)
    # The textbook's estimate, by the mean squares of an analysis of variance in each pixel.
    between = within = 0.0
    for first, second in batches:
        stack = torch.stack([first, second]).numpy()
        between += 2 * stack.mean(0).var(0, ddof=1).sum()
        within += stack.var(0, ddof=1).mean(0).sum()
    assert found.share.item() == pytest.approx((between - within) / (between + within), abs=0.005)
    assert found.share.item() == pytest.approx(share, abs=0.01)
    assert found.low < share < found.high


def test_the_interval_of_the_variety_covers_it() -> None:
    inside = 0
    for seed in range(300):
        found = view_variety([views(0.3, 48, 4 * seed + i, 12) for i in range(2)])
        inside += bool(found.low <= 0.3 <= found.high)
    assert stats.binomtest(inside, 300, 0.95).pvalue > 1e-3


def test_the_jackknife_is_that_of_leaving_each_image_out() -> None:
    batches = [views(0.5, 7, 1), views(0.5, 9, 2)]
    found = view_variety(batches)
    left_out = []
    for which, (first, second) in enumerate(batches):
        for i in range(len(first)):
            keep = torch.arange(len(first)) != i
            fewer = list(batches)
            fewer[which] = (first[keep], second[keep])
            left_out.append(view_variety(fewer).share.item())
    n = len(left_out)
    error = math.sqrt((n - 1) / n * np.square(left_out - np.mean(left_out)).sum())
    assert (found.high - found.low).item() == pytest.approx(2 * stats.norm.ppf(0.975) * error)


def test_views_that_are_all_the_same_say_nothing() -> None:
    same = torch.ones(16, 8)
    assert all(math.isnan(value) for value in view_variety([(same, same)]))


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (5, 1, 8, 8), (5, 3, 4, 16, 24), (5, 16, 16)])
def test_thumbnails_are_means_of_blocks(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    height, width = shape[-2] // 8, shape[-1] // 8
    maps = images.numpy().reshape(5, -1, 8, height, 8, width).mean((3, 5))
    np.testing.assert_allclose(thumbnails(images).numpy(), maps.reshape(5, -1), rtol=1e-5)
    assert torch.equal(thumbnails(images.flatten(1)), images.flatten(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: duplicate_share([]), "`batches` must hold at least one"),
        (lambda: duplicate_share([pictures(1)]), "`batches`"),
        (lambda: duplicate_share([pictures(4)], 0.0), "`tolerance`"),
        (lambda: view_variety([]), "`batches` must hold at least one"),
        (lambda: view_variety([(pictures(4), pictures(5))]), "`first view`"),
        (lambda: view_variety([(pictures(2), pictures(2))]), "`batches`"),
        (lambda: thumbnails(torch.zeros(0, 3, 8, 8)), "`images`"),
    ],
)
def test_wrong_arguments(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
