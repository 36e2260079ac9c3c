"""Common corruptions: each against its definition, SciPy, and clouds drawn point by point."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from jepa_monitor.probes.augmentations import augment, draw_distortions, only
from jepa_monitor.probes.common_corruptions import CORRUPTIONS, RANDOM, corrupt, parse_corruption

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500, 250, 100, 75, 50)
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 4, side: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=seeded(9))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_noises_have_the_variance_of_the_table(severity: int) -> None:
    grey = torch.full((40, 1, 32, 32), 0.5)
    noisy = corrupt(grey, "gaussian_noise", severity, seeded())
    assert float(noisy.std()) == pytest.approx(NOISE[severity - 1], rel=0.02)
    shot = corrupt(grey, "shot_noise", severity, seeded())
    assert float(shot.var()) == pytest.approx(0.5 / PHOTONS[severity - 1], rel=0.03)
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (3, 0.7), (5, 1.0)])
def test_blur_is_that_of_scipy(severity: int, sigma: float) -> None:
    images = pictures().double()
    found = corrupt(images, "gaussian_blur", severity, seeded())
    expected = scipy.ndimage.gaussian_filter(
        images.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    small = corrupt(images[..., :16, :16], "gaussian_blur", severity, seeded())
    expected = scipy.ndimage.gaussian_filter(
        images[..., :16, :16].numpy(), (0, 0, sigma / 2, sigma / 2), mode="nearest", truncate=4
    )
    np.testing.assert_allclose(small.numpy(), expected, atol=1e-9)


def clouds(side: int, decay: float, generator: torch.Generator) -> np.ndarray:
    """Diamonds and squares point by point: midpoints are the mean of four neighbours on a torus, and noise."""
    field = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        lattice = range(0, side, step)

        def noise(wide: float = wibble, cells: range = lattice) -> np.ndarray:
            drawn = torch.rand(1, len(cells), len(cells), generator=generator, dtype=torch.float64)
            return wide * (2 * wide * drawn[0].numpy() - wide)

        def at(y: int, x: int) -> float:
            return float(field[y % side, x % side])

        for dy, dx in ((half, half), (0, half), (half, 0)):
            drawn, before = noise(), field.copy()
            for i, y in enumerate(lattice):
                for j, x in enumerate(lattice):
                    py, px = y + dy, x + dx
                    near = (
                        [(py - half, px - half), (py - half, px + half),
                         (py + half, px - half), (py + half, px + half)]
                        if dy and dx
                        else [(py - half, px), (py + half, px), (py, px - half), (py, px + half)]
                    )  # fmt: skip
                    before[py, px] = sum(at(*place) for place in near) / 4 + drawn[i, j]
            field[:] = before
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_fog_is_clouds_scaled_back_into_the_range(severity: int) -> None:
    strength, decay = FOG[severity - 1]
    image = pictures(1, 16).double() * 0.8
    found = corrupt(image, "fog", severity, seeded(3))
    fog = clouds(16, decay, seeded(3))
    top = float(image.max())
    expected = np.clip((image[0].numpy() + strength * fog) * top / (top + strength), 0, 1)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 12, 20), (2, 1, 3, 5)])
def test_images_stay_images(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=seeded(5))
    before = images.clone()
    state = torch.random.get_rng_state()
    found = corrupt(images, kind, 5, seeded())
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = corrupt(images, kind, 5, seeded(1))
    assert torch.equal(found, again) is (kind not in RANDOM)


def test_each_image_has_its_own_draw() -> None:
    images = torch.full((2, 1, 16, 16), 0.5)
    for kind in RANDOM:
        first, second = corrupt(images, kind, 3, seeded())
        assert float((first - second).abs().max()) > 0.01


def test_black_images_in_fog_stay_black() -> None:
    """They have no range to be scaled back into, as in the published definition."""
    found = corrupt(torch.zeros(1, 1, 8, 8), "fog", 3, seeded())
    assert not found.any()


def test_parts_of_views_by_themselves() -> None:
    images, drawn = pictures(64), draw_distortions(64, seed=0)
    torch.testing.assert_close(augment(images, only(drawn, ())), images, atol=1e-5, rtol=0)
    flipped = augment(images, only(drawn, ("flip",)))
    mirrored = (drawn[:, 4] < 0.5).view(-1, 1, 1, 1)
    expected = torch.where(mirrored, images.flip(-1), images)
    torch.testing.assert_close(flipped, expected, atol=1e-5, rtol=0)
    whole = augment(images, only(drawn, ("crop", "flip", "colour")))
    assert torch.equal(whole, augment(images, drawn))
    with pytest.raises(ValueError, match="`parts` must be one of crop, flip, colour, got 'blur'"):
        only(drawn, ("blur",))


def test_words_for_a_corruption_are_those_that_corrupt_takes() -> None:
    for kind in CORRUPTIONS:
        for severity in range(1, 6):
            assert parse_corruption(f"{kind}:{severity}", "corruption") == (kind, severity)
    for words in ("smog:1", "fog", "fog:", "fog:0", "fog:6", "fog:1.5", "fog:01", "fog:3:1", ""):
        with pytest.raises(ValueError, match="`inject` must be KIND:SEVERITY ") as error:
            parse_corruption(words, "inject")
        assert str(error.value).endswith(f"gaussian_blur and 1 to 5, got {words!r}.")


def test_bad_arguments_are_named() -> None:
    images = pictures(1, 8)
    with pytest.raises(ValueError, match="`kind` must be one of fog, gaussian_noise"):
        corrupt(images, "smog", 1, seeded())
    for severity in (0, 6, True, 2.5):
        with pytest.raises(ValueError, match="`severity` must be 1, 2, 3, 4 or 5"):
            corrupt(images, "fog", severity, seeded())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`images` must be \(N, C, H, W\)"):
        corrupt(images[0], "fog", 1, seeded())
    with pytest.raises(TypeError, match="`images` must be floating point"):
        corrupt(images.byte(), "fog", 1, seeded())
