"""What data say before anything is trained: in go images and settings, out come a table and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jepa_monitor._checks import check_choice, check_positive_int
from jepa_monitor.cli.advice_mae import MaeSettings
from jepa_monitor.cli.advice_objective import ObjectiveSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
    from torch import Tensor

    from jepa_monitor.cli.images import Source

__all__ = ["Advice", "AdviceSettings", "advise"]


@dataclasses.dataclass(frozen=True)
class AdviceSettings:
    """How to look at the images.

    Args:
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

    side: int = 16
    codes: int = 16
    colour: bool = False
    limit: int = 10_000
    seed: int = 0
    max_pixels: int = 200_000_000

    def __post_init__(self) -> None:
        for name in ("side", "codes", "limit", "max_pixels"):
            check_positive_int(getattr(self, name), name)
        if self.codes > self.numbers:
            raise ValueError(f"`codes` must be at most {self.numbers}, got {self.codes}.")

    @property
    def numbers(self) -> int:
        """Of an image, D."""
        return self.side**2 * (3 if self.colour else 1)


class Advice(NamedTuple):
    """What was found.

    Args:
        facts: What to say of it, by name.
        table: A row for each setting tried.
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
    mae: MaeSettings,
    objective: ObjectiveSettings,
) -> Advice:
    """Say of images what choices they suggest before anything is trained: closed forms of linear models.

    Args:
        what: mae: patch size and mask of a masked autoencoder, from the linear one's closed form.
            objective: joint embedding or reconstruction, for images with a corruption and an
            augmentation.
        data: A folder, a list (.txt, .csv, .jsonl), FILE.npz:SPLIT, shards or torchvision/NAME:SPLIT, as
            ``jepa-monitor score`` takes them.
        out: Where the table goes too: .parquet, .csv or .jsonl; default: nowhere.
        picture: Where a picture of it goes, a .png; default: nowhere.
        settings: How to look at the images.
        mae: What to try for ``mae``.
        objective: What to compare for ``objective``.

    Returns:
        The table and what to know of it.

    Raises:
        ValueError: If the images are too few, or all the same.
    """
    from jepa_monitor._files import check_place
    from jepa_monitor.cli.advice_mae import mae_facts, mae_table, plot_mae
    from jepa_monitor.cli.advice_objective import plot_objective
    from jepa_monitor.cli.console import Bars, stderr_console
    from jepa_monitor.cli.objectives import objective_table
    from jepa_monitor.cli.sources import open_source
    from jepa_monitor.cli.tables import check_format, info_of, with_info, write_table

    check_choice(what, "what", ("mae", "objective"))
    if what == "mae":
        mae.check(settings.side)
    for path, argument in ((out, "out"), (picture, "picture")):
        if path is not None:
            check_place(Path(path), argument)
    place = None if out is None else check_format(out)
    source = open_source(data, settings.max_pixels)
    with Bars(stderr_console(), disable=False) as bars:
        images, unread = _read(source, settings, bars.update)
        if what == "mae":
            table = mae_table(images, settings, mae, bars.update)
            told, tried = mae_facts(table), dataclasses.asdict(mae)
        else:
            told, table = objective_table(images, settings, objective, bars.update)
            tried = dataclasses.asdict(objective)
    shown = f"{settings.side} x {settings.side} pixels, {'colour' if settings.colour else 'grey'}"
    facts = [
        ("images", f"{len(images)} of {source.name}; half to fit, half to judge"),
        ("not read", str(unread)),
        ("as", shown),
        *told,
    ]
    kept = {"facts": dict(facts), "settings": dataclasses.asdict(settings) | tried}
    table = with_info(table, info_of(table) | kept)
    if place is not None:
        write_table(table, place)
    if picture is not None:
        from jepa_monitor._files import write_bytes
        from jepa_monitor.insights._drawing import as_png

        plot = plot_mae if what == "mae" else plot_objective
        write_bytes(Path(picture), as_png(f"advice/{what}", plot(table)))
    return Advice(facts, table)


def _read(
    source: Source, settings: AdviceSettings, tell: Callable[[str, int, int], None]
) -> tuple[Tensor, int]:
    """Read images in random order as (N, C, H, W) in [0, 1], float64, and count the unreadable."""
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional

    from jepa_monitor.cli.errors import BadImage

    def prepared(found: Image.Image | Tensor) -> Tensor:
        image = found if isinstance(found, Image.Image) else functional.to_pil_image(found)
        fitted = ImageOps.fit(image.convert("RGB"), (settings.side,) * 2, Image.Resampling.BOX)
        pixels: Tensor = functional.pil_to_tensor(fitted).double() / 255
        return pixels if settings.colour else pixels.mean(0, keepdim=True)

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
