"""How much of an image is coarse and how much is fine: energies of octaves of frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor._checks import check_images

__all__ = ["band_energies"]

_MOST = 6  # octaves; the coarsest takes what is left


def band_energies(images: Tensor) -> Tensor:
    r"""Mean squared amplitude of an image in octaves of spatial frequency, all channels together.

    The finest band holds frequencies above 1/4 cycle a pixel, the next those above 1/8, and so on, six
    at most, or as many as the shorter side has; the coarsest takes all that is left but the mean.
    By Parseval's theorem the bands add up to the sum over channels of the variance over positions.

    Args:
        images: (B, C, H, W), finite, H, W ≥ 4.

    Returns:
        Energies, finest first, (B, bands), float64.

    Raises:
        TypeError: If the images are not floating-point numbers.
        ValueError: If they are not finite, or not images of at least 4 × 4.

    Example:
        >>> import torch
        >>> stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
        >>> band_energies(stripes)
        tensor([[1., 0.]], dtype=torch.float64)
    """
    check_images(images)
    if images.ndim != 4 or min(images.shape[2:]) < 4:
        raise ValueError(
            f"`images` must have shape (B, C, H, W), H, W ≥ 4, got {tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    vertical = torch.fft.fftfreq(height, dtype=torch.float64, device=images.device)
    horizontal = torch.fft.fftfreq(width, dtype=torch.float64, device=images.device)
    frequency = torch.hypot(vertical[:, None], horizontal[None])
    spectrum = torch.fft.fft2(images.double(), norm="forward").abs().square().sum(1)
    count = min(_MOST, min(height, width).bit_length() - 2)
    # Octave k is (½ 2^−(k+1), ½ 2^−k]; the corners are finer than any, the last one takes the rest.
    octave = (-frequency.log2() - 1).floor().clamp(0, count - 1)
    octave[0, 0] = -1  # the mean
    return torch.stack([(spectrum * (octave == k)).sum((1, 2)) for k in range(count)], 1)
