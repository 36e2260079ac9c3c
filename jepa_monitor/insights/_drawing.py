"""What all pictures share: colours, and whether inputs can be shown at all."""

from __future__ import annotations

import base64
import html
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["HIGH", "LOW", "MUTED", "OOD_COLORS", "as_html", "as_png", "for_display", "is_drawable"]

# Okabe and Ito's colours, which are apart for all eyes.
LOW, HIGH, MUTED = "#D55E00", "#0072B2", "#777777"
OOD_COLORS = [LOW, "#009E73", "#CC79A7", "#E69F00"]
_PALETTE, _WHITE = 48, 255
_IN_FEW_COLOURS = ("monitor/overview",)


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


def as_png(tag: str, figure: Figure) -> bytes:
    """Draw a figure as whoever writes it does: loggers, event files of the past, pages, notebooks.

    Args:
        tag: Its tag. What is drawn at every look gets a few dozen colours: a quarter of the bytes, and
            no curve looks different. A sheet of photographs keeps all.
        figure: The figure.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL.Image import fromarray

    canvas: Any = FigureCanvasAgg(figure)  # untyped
    canvas.draw()  # once: savefig lays everything out twice
    picture = fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    small = tag.endswith(_IN_FEW_COLOURS)
    if small:
        picture = _in_few_colours(picture)
    with BytesIO() as file:
        picture.save(file, format="png", optimize=small)
        return file.getvalue()


def _in_few_colours(picture: Image) -> Image:
    """Choose white, and the other colours by the pixels that are not white: few, so it is quick."""
    from PIL.Image import Dither, Quantize, fromarray

    pixels = np.asarray(picture)
    drawn = fromarray(pixels[(pixels != _WHITE).any(2)][None])
    palette = drawn.quantize(_PALETTE - 1, Quantize.MAXCOVERAGE, kmeans=3, dither=Dither.NONE)
    chosen = palette.getpalette() or []
    palette.putpalette([*chosen[: 3 * (_PALETTE - 1)], _WHITE, _WHITE, _WHITE])
    return picture.quantize(palette=palette, dither=Dither.NONE)


def as_html(tag: str, figure: Figure, words: str) -> str:
    """Draw a figure for a notebook.

    Args:
        tag: Its tag.
        figure: The figure.
        words: For those who cannot see it.

    Returns:
        An image element that holds the picture.
    """
    picture = base64.b64encode(as_png(tag, figure)).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{picture}">'
