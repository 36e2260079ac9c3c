"""Views: each distortion by itself against what it must be, and all of them on images of any scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.probes.augmentations import augment, draw_distortions

# The whole image, not mirrored, not recoloured.
NOTHING = {"area": 1.0, "ratio": 0.5, "x": 0.5, "y": 0.5, "mirror": 0.9, "jitter": 0.9,
           "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "grey": 0.9}  # fmt: skip


def pictures(count: int = 3, size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(
        count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def only(count: int = 3, **changes: float) -> Tensor:
    return torch.tensor(list((NOTHING | changes).values())).double().expand(count, -1)


def test_nothing_and_a_mirror() -> None:
    x = pictures()
    torch.testing.assert_close(augment(x, only()), x)
    torch.testing.assert_close(augment(x, only(mirror=0.1)), x.flip(-1))


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0)])
def test_a_crop_is_a_part_enlarged(x: float, y: float) -> None:
    data = pictures()
    left, top = int(8 * x), int(8 * y)
    part = data[:, :, top : top + 8, left : left + 8]
    expected = F.interpolate(part, size=16, mode="bilinear", align_corners=False)
    found = augment(data, only(area=(0.25 - 0.2) / 0.8, x=x, y=y))
    inner = (..., slice(1, -1), slice(1, -1))  # at its border a crop sees beyond itself
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-6, rtol=0)
    wide = augment(data, only(area=(0.5 - 0.2) / 0.8, ratio=1.0, y=0.0))
    ramp = torch.linspace(-1, 1, 16).double()
    slope = augment(ramp.expand(3, 3, 16, 16), only(area=(0.5 - 0.2) / 0.8, ratio=1.0))
    steps = slope[0, 0, 0].diff()[1:-1] / ramp.diff()[1:-1]
    assert steps == pytest.approx(torch.full_like(steps, (0.5 * 4 / 3) ** 0.5), rel=1e-5)
    assert wide.shape == data.shape


def test_colours() -> None:
    x = pictures()
    deviation = x.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    brighter = augment(x, only(jitter=0.1, brightness=1.0))
    torch.testing.assert_close(brighter, x + 0.4 * deviation, atol=1e-6, rtol=0)
    mean = x.mean((1, 2, 3), keepdim=True)
    flatter = augment(x, only(jitter=0.1, contrast=0.0))
    torch.testing.assert_close(flatter, mean + 0.6 * (x - mean), atol=1e-6, rtol=0)
    grey = x.mean(1, keepdim=True)
    richer = augment(x, only(jitter=0.1, saturation=1.0))
    torch.testing.assert_close(richer, grey + 1.4 * (x - grey), atol=1e-6, rtol=0)
    torch.testing.assert_close(augment(x, only(grey=0.1)), grey.expand_as(x), atol=1e-6, rtol=0)
    one = pictures(channels=1)
    torch.testing.assert_close(augment(one, only(grey=0.1)), one)
    torch.testing.assert_close(augment(x, only(brightness=1.0)), x)  # of 20 % nothing is changed


def test_views_are_those_of_an_image_whatever_its_scale_and_its_company() -> None:
    x, how = pictures(6), draw_distortions(6, 3)
    views = augment(x, how)
    torch.testing.assert_close(augment(50 * x - 7, how), 50 * views - 7, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(augment(x[2:4], how[2:4]), views[2:4])
    assert bool(torch.isfinite(augment(torch.ones(6, 3, 8, 8), how)).all())


def test_numbers_are_drawn_in_private() -> None:
    state = torch.get_rng_state()
    first = draw_distortions(2000, 0)
    assert torch.equal(first, draw_distortions(2000, 0))
    assert not torch.equal(first, draw_distortions(2000, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert first.mean(0).sub(0.5).abs().max() < 0.03
