"""What data say before anything is trained: in go images and settings, out come a table and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jepa_monitor._checks import check_choice, check_positive_int

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

    from jepa_monitor.cli.images import Source

__all__ = ["Advice", "AdviceSettings", "advise", "plot_advice"]

_PICTURES = ("influence_length", "explained", "rank")


@dataclasses.dataclass(frozen=True)
class AdviceSettings:
    """What to try.

    Args:
        sizes: Sides of patches, in pixels of the images as they are after ``side``; default: 2 4 8.
        masks: Shares of patches that are hidden, from 0 to less than 1; default: .5 .75 .9.
        side: Images are cut to squares and resized to so many pixels a side; their D numbers need 2D
            images.
        codes: Numbers that the linear encoder keeps of an image.
        colour: Take all three channels instead of their mean: 3 times the numbers.
        limit: Number of images to take, drawn at random.
        seed: Of the draw, and of the halves: one fits, the other judges.
        max_pixels: Images of more pixels are refused as decompression bombs.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    sizes: list[float] | None = None
    masks: list[float] | None = None
    side: int = 16
    codes: int = 16
    colour: bool = False
    limit: int = 10_000
    seed: int = 0
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        for name in ("side", "codes", "limit", "max_pixels"):
            check_positive_int(getattr(self, name), name)
        for size in self.patch_sizes:
            if size != int(size) or size < 1:
                raise ValueError(f"`sizes` must be whole numbers of pixels, got {size:g}.")
            if self.side % int(size) or size == self.side:
                raise ValueError(
                    f"`sizes` must divide images of {self.side} pixels (`side`) into several patches, "
                    f"got {size:g}."
                )
        for mask in self.mask_shares:
            if not 0 <= mask < 1:
                raise ValueError(f"`masks` must be from 0 to less than 1, got {mask:g}.")
        if not self.patch_sizes or not self.mask_shares:
            raise ValueError("`sizes` and `masks` must hold at least one number each.")
        if self.codes > self.numbers:
            raise ValueError(f"`codes` must be at most {self.numbers}, got {self.codes}.")

    @property
    def patch_sizes(self) -> list[int | float]:
        """Sides of patches, in pixels."""
        return [2, 4, 8] if self.sizes is None else list(self.sizes)

    @property
    def mask_shares(self) -> list[float]:
        """Shares of patches that are hidden."""
        return [0.5, 0.75, 0.9] if self.masks is None else self.masks

    @property
    def numbers(self) -> int:
        """Of an image, D."""
        return self.side**2 * (3 if self.colour else 1)


class Advice(NamedTuple):
    """What was found.

    Args:
        facts: What to say of it, by name.
        table: A row for each patch size and mask.
    """

    facts: list[tuple[str, str]]
    table: pa.Table


def advise(
    what: str,
    /,
    data: str,
    out: str | None = None,
    picture: str | None = None,
    *,
    settings: AdviceSettings,
) -> Advice:
    """Say what images themselves foretell of a method, before anything is trained.

    With mae: over what distance a masked autoencoder must look, by patch size and mask, in closed form for
    a linear one (arXiv 2508.15404). It foretells a scale, not an accuracy.

    Args:
        what: mae.
        data: A folder, a list, FILE.npz or FILE.npz:SPLIT, shards, or torchvision/NAME:SPLIT, as
            ``jepa-monitor score`` takes them.
        out: Where the table goes too: .parquet, .csv or .jsonl; default: nowhere.
        picture: Where a picture of it goes, a .png; default: nowhere.
        settings: What to try.

    Returns:
        The table and what to know of it.

    Raises:
        ValueError: If the images are too few, or all the same.
    """
    from jepa_monitor._files import check_place
    from jepa_monitor.cli.console import Bars, stderr_console
    from jepa_monitor.cli.sources import open_source
    from jepa_monitor.cli.tables import check_format, with_info, write_table

    check_choice(what, "what", ("mae",))
    for path, argument in ((out, "out"), (picture, "picture")):
        if path is not None:
            check_place(Path(path), argument)
    place = None if out is None else check_format(out)
    source = open_source(data, settings.max_pixels)
    with Bars(stderr_console(), disable=False) as bars:
        images, unread = _read(source, settings, bars.update)
        table = _mae_table(images, settings, bars.update)
    facts = [
        ("images", f"{len(images)} of {source.name}; half to fit, half to judge"),
        ("not read", str(unread)),
        (
            "as",
            f"{settings.side} x {settings.side} pixels, {'colour' if settings.colour else 'grey'}",
        ),
        ("even weights", f"a distance of {table['even'][0].as_py():.1f} pixels"),
        ("what it says", "how far the map must look, and no accuracy"),
    ]
    kept = {"facts": dict(facts), "settings": dataclasses.asdict(settings)}
    if place is not None:
        write_table(with_info(table, kept), place)
    if picture is not None:
        from jepa_monitor._files import write_bytes
        from jepa_monitor.insights._drawing import as_png

        write_bytes(Path(picture), as_png("advice/mae", plot_advice(table)))
    return Advice(facts, table)


def _read(
    source: Source, settings: AdviceSettings, tell: Callable[[str, int, int], None]
) -> tuple[Tensor, int]:
    """Read images in random order as (N, D), float64, and count those that could not be read."""
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional

    from jepa_monitor.cli.errors import BadImage

    def prepared(found: Image.Image | Tensor) -> Tensor:
        image = found if isinstance(found, Image.Image) else functional.to_pil_image(found)
        fitted = ImageOps.fit(image.convert("RGB"), (settings.side,) * 2, Image.Resampling.BOX)
        pixels: Tensor = functional.pil_to_tensor(fitted).double() / 255
        return pixels.flatten() if settings.colour else pixels.mean(0).flatten()

    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(source), generator=generator)[: settings.limit].tolist()
    images: list[Tensor] = []
    for done, index in enumerate(order):
        try:
            images.append(prepared(source.load(index)[0]))
        except BadImage:
            continue
        if done % 256 == 0 or done == len(order) - 1:
            tell("read", done + 1, len(order))
    least = 2 * settings.numbers
    if len(images) < least:
        raise ValueError(
            f"`data` must hold at least {least} images that can be read, twice their numbers, got "
            f"{len(images)} in {source.name}: take a smaller `side`."
        )
    return torch.stack(images), len(order) - len(images)


def _mae_table(
    images: Tensor, settings: AdviceSettings, tell: Callable[[str, int, int], None]
) -> pa.Table:
    """Solve every setting on one half, and judge it on the other."""
    import pyarrow as pa

    from jepa_monitor.functional.linear_mae import (
        influence,
        linear_mae,
        masked_loss,
        masked_patch_map,
        patch_grid,
    )

    half = len(images) // 2
    mean = images[:half].mean(0)
    fitted, judged = (part - mean for part in (images[:half], images[half:]))
    moment, other = fitted.T @ fitted / len(fitted), judged.T @ judged / len(judged)
    rows = []
    tried = [(int(size), mask) for size in settings.patch_sizes for mask in settings.mask_shares]
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


def plot_advice(table: pa.Table) -> Figure:
    """Draw influence length, explained share and rank by patch size and mask.

    Args:
        table: See :func:`advise`.

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
