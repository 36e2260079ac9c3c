"""Contrast and octaves of frequency against NumPy's own Fourier transform and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_monitor.functional.bands import band_energies
from jepa_monitor.functional.contrast import log_contrast


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_contrast_is_the_length_of_what_differs_from_the_mean_of_each_channel() -> None:
    images = pictures(5, 3, 6, 4) + torch.tensor([1.0, -2.0, 30.0]).view(3, 1, 1)
    centred = images.double() - images.double().mean((2, 3), keepdim=True)
    expected = np.log(np.linalg.norm(centred.numpy().reshape(5, -1), axis=1))
    np.testing.assert_allclose(log_contrast(images).numpy(), expected, rtol=1e-12)
    # A gain adds its logarithm; an offset of a channel changes nothing.
    moved = 2.5 * images + torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    np.testing.assert_allclose(
        log_contrast(moved).numpy(), expected + np.log(2.5), rtol=1e-5, atol=1e-5
    )


def test_contrast_of_vectors_and_of_constants() -> None:
    rows = pictures(4, 7)
    expected = np.log(np.linalg.norm(rows - rows.mean(1, keepdim=True), axis=1))
    np.testing.assert_allclose(log_contrast(rows).numpy(), expected, rtol=1e-6)
    assert torch.equal(log_contrast(torch.ones(1, 3, 4, 4)), torch.tensor([-torch.inf]).double())


@pytest.mark.parametrize(("height", "width", "bands"), [(32, 32, 4), (24, 9, 2), (256, 200, 6)])
def test_bands_add_up_to_the_variance_and_hold_the_frequencies_they_say(
    height: int, width: int, bands: int
) -> None:
    images = pictures(3, 2, height, width)
    found = band_energies(images)
    assert found.shape == (3, bands)
    variance = images.double().var((2, 3), unbiased=False).sum(1)
    np.testing.assert_allclose(found.sum(1).numpy(), variance.numpy(), rtol=1e-10)
    power = np.abs(np.fft.fft2(images.double().numpy()) / (height * width)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    finest = power[..., frequency > 0.25].sum((1, 2))
    np.testing.assert_allclose(found[:, 0].numpy(), finest, rtol=1e-10)
    second = (frequency <= 0.25) & ((frequency > 0.125) | (bands == 2)) & (frequency > 0)
    np.testing.assert_allclose(found[:, 1].numpy(), power[..., second].sum((1, 2)), rtol=1e-10)


@pytest.mark.parametrize("images", [torch.rand(2, 5), torch.rand(2, 3, 3, 9)])
def test_bands_need_images_of_some_size(images: Tensor) -> None:
    with pytest.raises(ValueError, match="`images` must have shape"):
        band_energies(images)
