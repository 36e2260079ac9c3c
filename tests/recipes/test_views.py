"""Views of an image: how many, how large, which part of it, and what becomes of the colours."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torchvision.transforms import v2

from jepa_monitor.recipes.views import (
    GaussianNoisePatch,
    Inject,
    MultiCrop,
    Views,
    crop_and_flip,
    distort,
)


def ramp(size=64):
    """Row and column of every pixel, as two of three channels: a crop tells where it came from."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_makes_the_views_that_tensors_make(channels) -> None:
    coarse = torch.rand(channels, 6, 6, generator=torch.Generator().manual_seed(1))
    image = (255 * torch.nn.functional.interpolate(coarse[None], 40, mode="bicubic")[0]).clamp(
        0, 255
    )
    image = image.to(torch.uint8)
    cut = crop_and_flip(36, (0.3, 1.0), True)
    changes = distort(1.0, channels, 36, blur=0.5, solarize=0.2)
    made = v2.Compose([*cut, *changes, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    crops = MultiCrop([made])
    apart = []
    for seed in range(60):
        found = []
        for draw, given in ((crops, image), (crops, torch.stack([image, image])), (made, image)):
            torch.manual_seed(seed)
            found.append(draw(given))
        by_pillow = found[0].global_crops[0]
        assert by_pillow.shape == (channels, 36, 36)
        for pair in (found[1].global_crops, found[1].clean_crops):
            assert torch.equal(pair[0], by_pillow)
        apart.append(float((by_pillow - found[2]).abs().mean()))
    assert max(apart) < 0.02


def test_whole_images_need_no_pillow() -> None:
    cut = v2.Compose([*crop_and_flip(24, (1.0, 1.0), True), v2.ToImage()])
    mirrored = 0
    for seed in range(20):
        image = torch.randint(256, (1, 24, 24), dtype=torch.uint8)
        found = []
        for pillow in (True, False):
            torch.manual_seed(seed)
            found.append(MultiCrop([cut], pillow=pillow)(image).global_crops[0])
        assert torch.equal(found[0], found[1])
        mirrored += torch.equal(found[1], image.flip(-1))
    assert 0 < mirrored < 20


@pytest.mark.parametrize(("side", "size", "most"), [(24, 24, 0), (32, 32, 0), (64, 32, 1)])
def test_crops_by_pillow_are_those_of_tensors(side, size, most) -> None:
    cut = v2.Compose(
        [*crop_and_flip(size, (0.2, 1.0), True), v2.ToImage(), v2.ToDtype(torch.float32)]
    )
    crops = MultiCrop([cut])
    for seed in range(20):
        image = torch.randint(256, (3, side, side), dtype=torch.uint8)
        torch.manual_seed(seed)
        found = crops(image).global_crops[0]
        torch.manual_seed(seed)
        assert (found - cut(image)).abs().max() <= most  # of 255, where a crop is shrunk


@pytest.mark.parametrize("scale", [(0.05, 0.3), (0.4, 1.0)])
def test_crops_keep_the_share_of_the_area_that_was_asked_for(scale) -> None:
    torch.manual_seed(0)
    cut = v2.Compose(crop_and_flip(32, scale, flip=False))
    shares = []
    for _ in range(300):
        crop = cut(ramp()).float()
        assert crop.shape == (3, 32, 32)
        height, width = (crop[0].max() - crop[0].min() + 1, crop[1].max() - crop[1].min() + 1)
        shares.append(float(height * width) / 64**2)
    # Resizing blurs the ends of the ramp by about a pixel of the crop.
    assert scale[0] - 0.03 < min(shares) < scale[0] + 0.1
    assert scale[1] - 0.1 < max(shares) < scale[1] + 0.03


def test_flips_mirror_half_of_the_images() -> None:
    torch.manual_seed(0)
    cut = v2.Compose(crop_and_flip(64, (1.0, 1.0), flip=True))
    kinds = [cut(ramp()) for _ in range(200)]
    mirrored = sum(torch.equal(crop, ramp().flip(-1)) for crop in kinds)
    assert mirrored + sum(torch.equal(crop, ramp()) for crop in kinds) == 200
    assert 70 < mirrored < 130


def changed(channels, repeats=200, size=24, **options):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(20, 200, (channels, 24, 24), dtype=np.uint8))
    change = v2.Compose(distort(1.0, channels, size, **options))
    return image, [change(image) for _ in range(repeats)]


def test_no_strength_means_no_change() -> None:
    assert distort(0.0, 3, 24) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_distortions_take_any_number_of_channels_and_keep_bytes(channels) -> None:
    image, results = changed(channels, 40, size=224, solarize=0.5)
    assert all(r.shape == image.shape and r.dtype == torch.uint8 for r in results)
    assert len({tuple(r.flatten().tolist()) for r in results}) > 10


def test_a_fifth_of_the_colour_images_turns_grey() -> None:
    _, results = changed(3, 400, blur=0.0)
    grey = sum(torch.equal(r[0], r[1]) and torch.equal(r[1], r[2]) for r in results)
    assert 50 < grey < 115


def test_blur_comes_as_often_as_asked_and_smooths() -> None:
    # Two channels: nothing but blur. At 224 pixels, where it is at its widest.
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8)
    change = v2.Compose(distort(1.0, 2, 224, blur=0.5))
    results = [change(image) for _ in range(200)]
    blurred = [r for r in results if not torch.equal(r, image)]
    assert 65 < len(blurred) < 135
    assert all(r.float().std() < image.float().std() for r in blurred)


def test_solarising_inverts_the_bright_half() -> None:
    image, results = changed(2, 200, blur=0.0, solarize=0.2)
    inverted = torch.where(image >= 128, 255 - image, image)
    count = sum(torch.equal(r, inverted) for r in results)
    assert count + sum(torch.equal(r, image) for r in results) == 200
    assert 20 < count < 60


def test_multi_crop_applies_every_transform_to_the_same_image() -> None:
    image = torch.arange(4.0).view(1, 2, 2)
    views = MultiCrop([lambda x: x + 1, lambda x: 2 * x], [lambda x: -x] * 3)(image)
    assert isinstance(views, Views)
    assert torch.equal(torch.stack(views.global_crops), torch.stack([image + 1, 2 * image]))
    assert torch.equal(torch.stack(views.local_crops), torch.stack([-image] * 3))


# ------------------------------------------------------------------------------- noise patches
def test_sides_places_and_strengths_of_noise_patches_are_uniform() -> None:
    torch.manual_seed(0)
    patch, image = GaussianNoisePatch(0.4), torch.zeros(1, 12, 20, dtype=torch.uint8)
    drawn = [patch.make_params([image]) for _ in range(3000)]
    sides = np.array([d["side"] for d in drawn])
    assert chisquare(np.bincount(sides, minlength=13)[1:]).pvalue > 1e-3
    assert (sides.min(), sides.max()) == (1, 12)
    assert kstest([d["std"] / 0.4 for d in drawn], "uniform").pvalue > 1e-3
    for name, length in (("top", 12), ("left", 20)):
        chosen = np.array([d[name] for d in drawn if d["side"] == 5])
        assert chisquare(np.bincount(chosen, minlength=length - 4)).pvalue > 1e-3


def test_noise_patches_change_their_square_only_and_by_their_strength() -> None:
    torch.manual_seed(0)
    image = torch.full((3, 70, 90), 128, dtype=torch.uint8)
    params = {"side": 60, "top": 7, "left": 20, "std": 0.1}
    found = GaussianNoisePatch().transform(image, params).double()
    inside = torch.zeros(70, 90, dtype=torch.bool)
    inside[7:67, 20:80] = True
    assert (found[:, ~inside] == 128).all()
    noise = found[:, inside] - 128
    assert noise.std().item() == pytest.approx(25.5, rel=0.03)
    assert abs(noise.mean().item()) < 5 * 25.5 / 103.9  # root of 3 * 60 * 60 pixels
    assert kstest(noise.flatten().numpy(), norm(scale=25.5).cdf).statistic < 0.02
    assert torch.equal(image, torch.full_like(image, 128))  # the original stays
    loud = GaussianNoisePatch().transform(image, {**params, "std": 1.0})
    assert loud.dtype == torch.uint8
    beyond = norm.sf(127.5, scale=255)  # clipped, not wrapped around
    assert (loud[:, inside] == 255).double().mean().item() == pytest.approx(beyond, abs=0.02)


def test_a_patch_lies_somewhere_else_each_time_and_follows_the_seed() -> None:
    image = torch.full((1, 16, 16), 128, dtype=torch.uint8)
    patch = GaussianNoisePatch(0.5)
    torch.manual_seed(3)
    first = [patch(image) for _ in range(5)]
    torch.manual_seed(3)
    assert all(torch.equal(patch(image), x) for x in first)
    assert not torch.equal(first[0], first[1])


def test_a_pair_is_cut_with_the_same_numbers_and_has_local_crops_of_the_first_only() -> None:
    cut = v2.Compose([v2.ToImage(), *crop_and_flip(16, (0.2, 0.8), flip=True)])
    crops = MultiCrop([cut, cut], [cut])
    other = ramp().flip(0)  # another image, whose colours tell where they came from just as well
    torch.manual_seed(0)
    pair = crops(torch.stack([ramp(), other]))
    torch.manual_seed(0)
    alone = crops(ramp())
    assert not alone.clean_crops
    assert torch.equal(torch.stack(pair.global_crops), torch.stack(alone.global_crops))
    assert torch.equal(pair.local_crops[0], alone.local_crops[0])
    assert torch.equal(torch.stack(pair.clean_crops), torch.stack(alone.global_crops).flip(1))


def test_what_is_done_first_is_done_once() -> None:
    seen = []

    def count(image):
        seen.append(image)
        return image + 1

    views = MultiCrop([torch.neg, torch.neg], [torch.neg], whole=count)(torch.ones(1, 2, 2))
    assert len(seen) == 1
    assert all(torch.equal(v, torch.full((1, 2, 2), -2.0)) for v in views[0] + views[1])


def test_no_blur_where_it_would_be_narrower_than_a_third_of_a_pixel() -> None:
    kinds = [type(t.transforms[0]).__name__ for t in distort(1.0, 2, 32)]
    assert kinds == []
    assert len(distort(1.0, 2, 64)) == 1


def test_injected_noise_has_the_strength_of_its_severity_and_is_drawn_anew() -> None:
    torch.manual_seed(0)
    grey = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    for severity, sigma in (("1", 0.04), ("5", 0.10)):
        inject = Inject(f"gaussian_noise:{severity}")
        first, second = inject(grey), inject(grey)
        assert first.dtype == torch.uint8
        assert first.float().std() / 255 == pytest.approx(sigma, rel=0.05)
        difference = (first.float() - second.float()).std() / 255
        assert difference == pytest.approx(2**0.5 * sigma, rel=0.05)
    assert grey.eq(128).all()


def test_injected_fog_brightens_what_is_dark_and_is_shared_by_an_image_and_its_copy() -> None:
    image = ramp(32)
    fog = Inject("fog:3")
    torch.manual_seed(1)
    alone = fog(image)
    torch.manual_seed(1)
    pair = fog(torch.stack([image, image // 2]))
    assert torch.equal(pair[0], alone)
    # Clouds of .75 of the range, scaled back by top / (top + .75): of both images the same clouds.
    clouds = []
    for before, after in ((image, pair[0]), (image // 2, pair[1])):
        top = float(before.max()) / 255
        clouds.append(after.double() / 255 * (top + 0.75) / top - before.double() / 255)
    step = 0.5 / 255 * (top + 0.75) / top  # of rounding, at most
    assert float((clouds[0] - clouds[1]).abs().max()) < 2.1 * step
    assert 0.7 < float(clouds[0].max()) < 0.8
    assert float(clouds[0].min()) > -0.1


@pytest.mark.parametrize("word", ["smog:1", "fog", "fog:0", "fog:1.5", "fog:6"])
def test_unknown_corruptions_are_refused(word) -> None:
    with pytest.raises(ValueError, match=f"`inject` must be KIND:SEVERITY with fog.*'{word}'"):
        Inject(word)
    with pytest.raises(TypeError, match="`inpt` must be a tensor of bytes"):
        Inject("fog:1").transform(torch.zeros(3, 8, 8), {"seed": 0})
