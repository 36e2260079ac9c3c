"""What all pictures share: colours, and whether inputs can be shown at all."""

from __future__ import annotations

from torch import Tensor

__all__ = ["HIGH", "LOW", "MUTED", "OOD_COLORS", "for_display", "is_drawable"]

# Okabe and Ito's colours, which are apart for all eyes.
LOW, HIGH, MUTED = "#D55E00", "#0072B2", "#777777"
OOD_COLORS = [LOW, "#009E73", "#CC79A7", "#E69F00"]


def is_drawable(images: Tensor) -> bool:
    """Tell whether inputs can be shown as pictures.

    Args:
        images: (B, ...).

    Returns:
        Whether they are (B, C, H, W) with 1 or 3 channels.
    """
    return images.ndim == 4 and images.shape[1] in (1, 3)


def for_display(images: Tensor) -> Tensor:
    """Undo an unknown normalisation: stretch the set's range of each channel to [0, 1].

    Args:
        images: (B, C, H, W).

    Returns:
        (B, H, W, C).
    """
    low = images.amin((0, 2, 3), keepdim=True)
    high = images.amax((0, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp_min(1e-12)).permute(0, 2, 3, 1)
