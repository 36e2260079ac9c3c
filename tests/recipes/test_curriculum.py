"""Noise, denoised copies and stages of data against closed forms, SciPy and data modules without them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm, poisson

from jepa_monitor.recipes.curriculum import (
    DenoisedImages,
    NoisyImages,
    add_noise,
    check_copies,
    parse_level,
)
from jepa_monitor.recipes.data import ImageDataModule
from jepa_monitor.recipes.views import GaussianNoisePatch

STAGES = {"image_size": 16, "global_views": 2, "local_views": 1}


def flat(value, side=300):
    return torch.full((1, side, side), value, dtype=torch.uint8)


def noisy(value, kind, level, seed=0):
    return add_noise(flat(value), kind, level, np.random.default_rng(seed)).double().numpy()


def prepared(name="digits", **options):
    data = ImageDataModule(name, **{**STAGES, **options})
    data.setup()
    return data


# --------------------------------------------------------------------------------------- noise
@pytest.mark.parametrize(
    ("kind", "level", "deviation"),
    [
        ("gaussian", 20.0, 20.0),
        ("shot", 60.0, 255 * np.sqrt(120 / 255 / 60)),
        ("speckle", 0.2, 0.2 * 120),
    ],
)
def test_noise_has_the_variance_of_its_law(kind, level, deviation) -> None:
    found = noisy(120, kind, level)
    assert found.mean() == pytest.approx(120, abs=5 * deviation / 300)
    assert found.std() == pytest.approx(deviation, rel=0.02)  # rounding adds 1/12


def test_noise_is_clipped() -> None:
    # The mean of max(0, n) is sigma / sqrt(2 pi); half of it is 0, and what rounds to it.
    found = noisy(0, "gaussian", 60.0)
    assert found.mean() == pytest.approx(60 / np.sqrt(2 * np.pi), rel=0.02)
    assert (found == 0).mean() == pytest.approx(norm.cdf(0.5 / 60), abs=0.01)
    assert noisy(250, "gaussian", 60.0).max() == 255


def test_shot_noise_counts_photons() -> None:
    photons = noisy(255, "shot", 5.0) / 51
    for count in range(5):
        assert (photons == count).mean() == pytest.approx(poisson(5).pmf(count), abs=0.01)
    assert photons.max() == 5  # white is as white as it gets
    assert noisy(0, "shot", 5.0).max() == noisy(0, "speckle", 5.0).max() == 0


def test_noise_of_an_image_never_changes_and_no_two_are_alike() -> None:
    images = [(flat(120, 8), 3), (flat(120, 8), 4)]
    first = NoisyImages(images, "gaussian:50", split=0)
    torch.manual_seed(5)
    again = NoisyImages(images, "gaussian:50", split=0)
    other = NoisyImages(images, "gaussian:50", split=1)
    assert torch.equal(first[1][0], again[1][0])
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], other[0][0])
    assert [len(first), first[0][1], first[1][1]] == [2, 3, 4]


def test_denoised_images_are_those_of_scipys_gaussian_filter() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 20, 14), dtype=np.uint8)
    found, label = DenoisedImages([(torch.from_numpy(image), 7)], 0.8)[0]
    expected = gaussian_filter(image.astype(float), (0, 0.8, 0.8), mode="mirror", radius=(0, 3, 3))
    np.testing.assert_allclose(found, expected, atol=0.51)
    assert label == 7


@pytest.mark.parametrize("text", ["blur", "gaussian", "gaussian:", "gaussian:x", "gaussian:0"])
def test_bad_levels_are_refused(text) -> None:
    message = rf"`noise` must be one of gaussian:LEVEL, shot:LEVEL.*positive LEVEL, got '{text}'"
    with pytest.raises(ValueError, match=message):
        parse_level(text, "noise", ("gaussian", "shot"))


# --------------------------------------------------------------------------------------- stages
def test_noise_is_part_of_the_data_set_held_out_images_included() -> None:
    data, clean = (prepared(noise=noise, image_size=8) for noise in ("gaussian:60", None))
    for split, part in enumerate(("plain_train_set", "val_set")):
        crop, label = getattr(data, part)[9]
        original, _ = clean._load_arrays()[split][0][9], None
        rng = np.random.default_rng((split, 9))
        expected = add_noise(original, "gaussian", 60, rng).double()
        slope, offset = np.polyfit(expected.flatten(), crop.flatten(), 1)
        np.testing.assert_allclose(crop, slope * expected + offset, atol=1e-4)
        assert label == getattr(clean, part)[9][1]
    pixels = torch.stack([image for image, _ in data.plain_train_set])
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-3)


def test_the_first_stage_has_small_crops_and_the_second_is_as_without_stages() -> None:
    data, plain = (
        prepared(first_epochs=3, first_scale=0.5, distortion=1.0),
        prepared(distortion=1.0),
    )
    assert len(data.train_set) == 1437
    for epoch, side in [(0, 8), (2, 8), (3, 16), (7, 16)]:
        views, label = data.train_set[(epoch, 4)]
        assert label == plain.train_set[4][1]
        assert [tuple(c.shape) for c in views.global_crops] == [(1, side, side)] * 2
        assert [tuple(c.shape) for c in views.local_crops] == [(1, side // 2, side // 2)]
        full = plain.train_set[(epoch, 4)][0]
        same = torch.equal(views.global_crops[0], full.global_crops[0])
        assert same == (epoch >= 3)
    for crop, full in zip(data.train_set[4][0][0], plain.train_set[4][0][0], strict=True):
        assert torch.equal(crop, full)  # without an epoch, as the monitor asks


def test_a_small_crop_shows_the_same_part_of_the_image() -> None:
    small, _ = prepared(first_epochs=1, first_scale=0.5).train_set[(0, 4)]
    large, _ = prepared().train_set[(0, 4)]
    for a, b in zip(small.global_crops, large.global_crops, strict=True):
        shrunk = torch.nn.functional.interpolate(b[None], (8, 8), mode="bilinear", antialias=True)
        assert np.corrcoef(shrunk.flatten(), a.flatten())[0, 1] > 0.97


def test_the_second_stage_has_noise_patches_and_so_has_a_run_without_stages() -> None:
    plain, everywhere = prepared(crop_scale=1.0), prepared(crop_scale=1.0, noise_patch=0.5)
    later = prepared(crop_scale=1.0, noise_patch=0.5, first_epochs=2)
    unchanged = plain.plain_train_set[6][0]
    for epoch in range(4):
        first, second = everywhere.train_set[(epoch, 6)][0].global_crops
        assert torch.equal(first, second)  # one patch for the image, not one for each crop
        assert not torch.equal(first, unchanged)
        found = later.train_set[(epoch, 6)][0].global_crops[0]
        assert torch.equal(found, unchanged if epoch < 2 else first)


def test_every_view_is_corrupted_by_a_draw_of_its_own() -> None:
    plain, worse = prepared(crop_scale=1.0), prepared(crop_scale=1.0, inject="gaussian_noise:1")
    first, second = worse.train_set[(0, 6)][0].global_crops
    unchanged = plain.plain_train_set[6][0]
    assert torch.equal(plain.train_set[(0, 6)][0].global_crops[0], unchanged)
    assert torch.equal(worse.plain_train_set[6][0], unchanged)  # what the monitor and k-NN see
    inner = (unchanged > unchanged.min()) & (unchanged < unchanged.max())  # not clipped
    size = 0.04 / plain.state_dict()["std"][0]
    for noisy in (first, second):
        assert (noisy - unchanged)[inner].std().item() == pytest.approx(size, rel=0.3)
    assert not torch.equal(first, second)
    again = worse.train_set[(0, 6)][0].global_crops
    assert torch.equal(again[0], first)
    with pytest.raises(ValueError, match=r"`inject` must be KIND:SEVERITY with fog.*'smog:1'"):
        prepared(inject="smog:1")


@pytest.mark.parametrize("distortion", [0.0, 1.0])
def test_pairs_are_the_same_cut_of_the_noisy_and_of_the_clean_image(distortion) -> None:
    options = {"noise": "gaussian:100", "distortion": distortion}
    paired = prepared(**options, first_epochs=1, denoised="digits", paired=True)
    alone, clean = prepared(**options), prepared(distortion=distortion)
    assert not paired.train_set[(0, 3)][0].clean_crops  # none in the first stage
    for epoch, index in [(1, 3), (5, 700)]:
        views, _ = paired.train_set[(epoch, index)]
        noisy_views, _ = alone.train_set[(epoch, index)]
        for a, b in zip(views.global_crops, noisy_views.global_crops, strict=True):
            assert torch.equal(a, b)
        # Normalised by the statistics of the noisy images instead of the clean ones: a straight line.
        clean_views, _ = clean.train_set[(epoch, index)]
        for a, b in zip(views.clean_crops, clean_views.global_crops, strict=True):
            slope, offset = np.polyfit(b.flatten(), a.flatten(), 1)
            np.testing.assert_allclose(a, slope * b + offset, atol=1e-4)
            assert slope > 0
        assert len(views.clean_crops) == 2


def test_the_first_stage_sees_denoised_images_and_the_second_noisy_ones() -> None:
    data = prepared(noise="gaussian:100", denoised="blur:0.6", first_epochs=1, crop_scale=1.0)
    pixels = data._load_arrays()[0][0][6].double().numpy()
    mean, std = data._load_arrays()[0][0].double().mean(), data._load_arrays()[0][0].double().std()
    smooth = gaussian_filter(pixels, (0, 0.6, 0.6), mode="mirror", radius=(0, 2, 2))
    for epoch, expected in [(0, smooth), (1, pixels)]:
        crop = data.train_set[(epoch, 6)][0].global_crops[0] * std + mean
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(expected)[None], (16, 16), mode="bilinear"
        )[0]
        np.testing.assert_allclose(crop, enlarged, atol=2)  # rounded twice, and bytes resized


def test_folders_have_stages_too(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name in ("photos", "denoised"):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
                np.save(tmp_path / name / label / f"{i}.npy", pixels)
    source, copy = (f"imagefolder:{tmp_path / name}" for name in ("photos", "denoised"))
    options = {"image_size": 8, "noise": "shot:5", "first_epochs": 1, "paired": True}
    for denoised in (copy, "blur:1"):
        data = prepared(source, **options, denoised=denoised)
        assert data.train_set[(0, 2)][0].global_crops[0].shape == (3, 8, 8)
        assert len(data.train_set[(1, 2)][0].clean_crops) == 2
    np.save(tmp_path / "denoised" / "b" / "5.npy", np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"`denoised` has 9 training images, the data set 8"):
        prepared(source, **options, denoised=copy)


def test_copies_in_another_order_or_size_are_refused() -> None:
    images = [(flat(0, 8), label) for label in (0, 1, 2)]
    check_copies(images, [(flat(9, 8), label) for label in (0, 1, 2)])
    with pytest.raises(ValueError, match=r"image 1 .* label 2, in the data set .* and 1"):
        check_copies(images, [(flat(9, 8), label) for label in (0, 2, 1)])
    with pytest.raises(ValueError, match=r"image 0 has shape \(1, 9, 9\)"):
        check_copies(images, [(flat(9, 9), label) for label in (0, 1, 2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_scale": 0.0}, r"first_scale=0\.0 must be in \(0, 1\]"),
        ({"first_scale": 0.5}, r"first_scale=0\.5 .* expected first_epochs of at least 1"),
        ({"denoised": "blur:1"}, r"denoised='blur:1' .* expected first_epochs of at least 1"),
        ({"first_epochs": -1}, "first_epochs=-1 must be at least 0"),
        ({"first_epochs": 1, "paired": True}, "expected denoised with it"),
        ({"noise": "salt:1"}, "`noise` must be one of gaussian:LEVEL, shot:LEVEL, speckle:LEVEL"),
        ({"denoised": "sharpen:1", "first_epochs": 1}, r"`denoised` must be .* got 'sharpen:1'"),
        ({"noise_patch": -0.1}, r"noise_patch=-0\.1 must be at least 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


def test_a_noise_patch_above_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`max_std` must be in \(0, 1\], got 1\.5"):
        GaussianNoisePatch(1.5)
    with pytest.raises(TypeError, match=r"must be a tensor of bytes, got torch.float32"):
        GaussianNoisePatch()(torch.zeros(1, 4, 4))
