"""Textures are what they are said to be: shares of ink by their geometry, kinds alike on average, seeds that decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.textures import KINDS, draw_textures

# Share of the area that is ink, of a pattern without end: areas of one period.
INK = {
    "stripes": 1 / 2,
    "checks": 1 / 2,
    "dots": math.pi * 0.3**2,
    "bricks": 1 - 0.8 * 0.86,
    "waves": 1 / 2,
    "zigzags": 1 / 2,
    "grid": 1 - 0.78**2,
    "blobs": 1 / 2,  # above the median
}


def test_every_kind_has_its_share_of_ink() -> None:
    images, kinds = draw_textures(600, 64, seed=0)
    pixels = images.astype(float) / 255
    middle = (np.quantile(pixels, 0.02, axis=(1, 2)) + np.quantile(pixels, 0.98, axis=(1, 2))) / 2
    light = (pixels > middle[:, None, None]).mean((1, 2))
    for kind, share in INK.items():
        found = light[kinds == KINDS.index(kind)]
        # Ink is light in about half of the images.
        assert np.abs(found - 0.5).mean() == pytest.approx(abs(share - 0.5), abs=0.03), kind
        if share < 0.4:
            assert 0.25 < (found > 0.5).mean() < 0.75


def test_no_pixel_tells_the_kind() -> None:
    images, kinds = draw_textures(4000, 16, seed=3)
    pixels = images.reshape(len(images), -1).astype(float)
    means = np.stack([pixels[kinds == kind].mean(0) for kind in range(len(KINDS))])
    # Each is the mean of 400: were it not that of all, it would be off by more than chance.
    z = (means - pixels.mean(0)) / (pixels.std(0) / math.sqrt(400))
    assert np.square(z).mean() == pytest.approx(1, abs=0.25)


def test_kinds_are_as_many_and_the_seed_decides() -> None:
    images, kinds = draw_textures(105, 24, seed=1)
    assert images.shape == (105, 24, 24)
    assert images.dtype == np.uint8
    assert sorted(np.bincount(kinds)) == [10] * 5 + [11] * 5
    again, same = draw_textures(105, 24, seed=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(kinds, same)
    others, _ = draw_textures(105, 24, seed=2)
    assert (images != others).mean() > 0.9
    assert len(np.unique(images.reshape(105, -1), axis=0)) == 105


@pytest.mark.parametrize(("count", "size", "name"), [(0, 24, "count"), (10, 7, "size")])
def test_too_small_numbers_are_refused(count: int, size: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        draw_textures(count, size, 0)


def test_textures_are_what_is_trained_on_unless_told_otherwise() -> None:
    data = ImageDataModule(image_size=16)
    data.setup()
    assert data.channels == 1
    assert (len(data.plain_train_set), len(data.val_set)) == (1600, 1000)
    for images, seed in ((data.plain_train_set, 0), (data.val_set, 1)):
        drawn, kinds = draw_textures(len(images), 16, seed)
        image, kind = images[7]
        assert kind == kinds[7]
        mean, std = (torch.tensor(data.state_dict()[name]) for name in ("mean", "std"))
        expected = (torch.from_numpy(drawn[7]).float() / 255 - mean) / std
        torch.testing.assert_close(image[0], expected)
