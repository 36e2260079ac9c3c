"""Patches and masks of masked autoencoders, from images alone: in go images, out come a table and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

    from jepa_monitor.cli.advice import AdviceSettings

__all__ = ["MaeSettings", "mae_facts", "mae_table", "plot_mae"]

_PICTURES = ("influence_length", "explained", "rank")


@dataclasses.dataclass(frozen=True)
class MaeSettings:
    """What to try for a masked autoencoder (mae).

    Args:
        sizes: Sides of patches, in pixels of the images as they are after ``side``; default: 2 4 8.
        masks: Shares of patches that are hidden, from 0 to less than 1; default: .5 .75 .9.

    Raises:
        ValueError: If a value is out of range.
    """

    sizes: list[float] | None = None
    masks: list[float] | None = None

    def __post_init__(self) -> None:
        for size in self.patch_sizes:
            if size != int(size) or size < 1:
                raise ValueError(f"`sizes` must be whole numbers of pixels, got {size:g}.")
        for mask in self.mask_shares:
            if not 0 <= mask < 1:
                raise ValueError(f"`masks` must be from 0 to less than 1, got {mask:g}.")
        if not self.patch_sizes or not self.mask_shares:
            raise ValueError("`sizes` and `masks` must hold at least one number each.")

    @property
    def patch_sizes(self) -> list[int | float]:
        """Sides of patches, in pixels."""
        return [2, 4, 8] if self.sizes is None else list(self.sizes)

    @property
    def mask_shares(self) -> list[float]:
        """Shares of patches that are hidden."""
        return [0.5, 0.75, 0.9] if self.masks is None else self.masks

    def check(self, side: int) -> None:
        """Check that patches divide images.

        Args:
            side: Of the images, in pixels.

        Raises:
            ValueError: If a patch does not, or is all of an image.
        """
        for size in self.patch_sizes:
            if side % int(size) or size == side:
                raise ValueError(
                    f"`sizes` must divide images of {side} pixels (`side`) into several patches, got "
                    f"{size:g}."
                )


def mae_facts(table: pa.Table) -> list[tuple[str, str]]:
    """Say what to know of the table.

    Args:
        table: See :func:`mae_table`.

    Returns:
        Pairs of a name and what to say.
    """
    return [
        ("even weights", f"a distance of {table['even'][0].as_py():.1f} pixels"),
        ("what it says", "how far the map must look, and no accuracy"),
    ]


def mae_table(
    images: Tensor,
    settings: AdviceSettings,
    mae: MaeSettings,
    tell: Callable[[str, int, int], None],
) -> pa.Table:
    """Solve every setting on one half, and judge it on the other.

    Args:
        images: In [0, 1], (N, C, H, W).
        settings: Of the images.
        mae: What to try.
        tell: Is told of phases, as progress bars are.

    Returns:
        A row for each patch size and mask.
    """
    import pyarrow as pa

    from jepa_monitor.functional.linear_mae import (
        influence,
        linear_mae,
        masked_loss,
        masked_patch_map,
        patch_grid,
    )

    images = images.flatten(1)
    half = len(images) // 2
    mean = images[:half].mean(0)
    fitted, judged = (part - mean for part in (images[:half], images[half:]))
    moment, other = fitted.T @ fitted / len(fitted), judged.T @ judged / len(judged)
    rows = []
    tried = [(int(size), mask) for size in mae.patch_sizes for mask in mae.mask_shares]
    for done, (size, mask) in enumerate(tried):
        patches = patch_grid(settings.side, size, 3 if settings.colour else 1)
        found = linear_mae(moment, patches, mask, settings.codes)
        whole = found.encoder @ found.decoder
        hidden = masked_patch_map(moment, patches, mask)
        reach, beyond = (influence(each, settings.side, patches) for each in (whole, hidden))
        row = {
            "patch": size,
            "mask": mask,
            "influence_length": float(reach.distance),
            "decay_length": float(reach.length) if reach.length.isfinite() else None,
            "in_patch": float(reach.in_patch),
            "explained": 1 - float(masked_loss(whole, other, patches, mask)),
            "rank": float(found.rank),
            "hidden_influence_length": float(beyond.distance),
            "hidden_explained": 1
            - float(masked_loss(hidden, other, patches, mask, hidden_only=True)),
            "even": float(reach.even),
        }
        rows.append(row)
        tell("solve", done + 1, len(tried))
    return pa.Table.from_pylist(rows)


def plot_mae(table: pa.Table) -> Figure:
    """Draw influence length, explained share and rank by patch size and mask.

    Args:
        table: See :func:`mae_table`.

    Returns:
        The figure.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = table.to_pylist()
    sizes = sorted({row["patch"] for row in rows})
    masks = sorted({row["mask"] for row in rows})
    titles = {
        "influence_length": f"influence length (px; even: {rows[0]['even']:.1f})",
        "explained": "share explained, held out",
        "rank": "effective rank",
    }
    figure = Figure(figsize=(3 * 3.1, 1 + 0.5 * len(sizes)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), _PICTURES, strict=True):
        values = np.full((len(sizes), len(masks)), np.nan)
        for row in rows:
            values[sizes.index(row["patch"]), masks.index(row["mask"])] = row[name]
        axes.imshow(values, cmap="cividis", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (y, x), value in np.ndenumerate(values):
            shown = f"{value:.2f}" if name == "explained" else f"{value:.1f}"
            colour = "black" if value > middle else "white"
            axes.text(x, y, shown, ha="center", va="center", color=colour, fontsize=9)
        axes.set_title(titles[name], fontsize=10)
        axes.set_xticks(range(len(masks)), [f"{mask:g}" for mask in masks])
        axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlabel("share hidden")
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel("patch (px)")
    return figure
