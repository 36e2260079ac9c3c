"""The images that all checkpoints of a run are looked at with: in go names of data, out come tensors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_monitor.cli.images import Source
from jepa_monitor.cli.loaded import LoadedEncoder
from jepa_monitor.cli.sources import open_source
from jepa_monitor.cli.task import Prepared
from jepa_monitor.monitor.alarm import MIN_SAMPLES

__all__ = ["Found", "ProbeImages", "find_data", "read_images"]

_HELD_OUT = ("val", "valid", "validation", "test")


class Found(NamedTuple):
    """Data by what they are for.

    Args:
        probe: Held-out images.
        reference: Training images, or ``None``.
        ood: Others by name.
        assumed: What nobody said, in a sentence; or nothing.
    """

    probe: Source
    reference: Source | None
    ood: dict[str, Source]
    assumed: tuple[str, ...]

    def fingerprint(self) -> dict[str, str | None]:
        """Identify the data.

        Returns:
            Name and content of each set.
        """
        sets = {"data": self.probe, "reference": self.reference, **self.ood}
        return {
            name: None if source is None else f"{source.name} {source.fingerprint()}"
            for name, source in sets.items()
        }


class ProbeImages(NamedTuple):
    """A set, read.

    Args:
        images: (N, C, H, W).
        labels: Classes, (N,), where all of them have one.
        problems: Files that could not be read, with the reason.
    """

    images: Tensor
    labels: Tensor | None
    problems: list[dict[str, str]]


def find_data(data: str, reference: str | None, ood: dict[str, str], max_pixels: int) -> Found:
    """Find the sets, and in data that are parted into training and held-out images both.

    Args:
        data: As :func:`~jepa_monitor.cli.sources.open_source` takes it; also a folder that holds
            ``train`` and ``val`` (or ``valid``, ``validation``, ``test``), or a ``FILE.npz`` with
            ``train_images`` and ``test_images``.
        reference: Training images, likewise; ``None`` for those that ``data`` holds.
        ood: Other images by name.
        max_pixels: Of an image.

    Returns:
        The sets.

    Raises:
        ValueError: If there are no such data.
    """
    assumed = ""
    if reference is None and (parts := _parted(data)) is not None:
        data, reference = parts
        assumed = f"the probe is {data}, the training images are {reference} (`reference`)"
    elif reference is None:
        assumed = (
            "there are no training images to compare with: no log-density, no calibration and no "
            "share of outliers (`reference`)"
        )
    return Found(
        open_source(data, max_pixels),
        None if reference is None else open_source(reference, max_pixels, argument="reference"),
        {name: open_source(where, max_pixels, argument="ood") for name, where in ood.items()},
        (assumed,) if assumed else (),
    )


def _parted(data: str) -> tuple[str, str] | None:
    """Find held-out and training images in one place."""
    place = Path(data)
    if place.is_dir() and (place / "train").is_dir():
        held_out = next((name for name in _HELD_OUT if (place / name).is_dir()), None)
        return None if held_out is None else (str(place / held_out), str(place / "train"))
    if place.suffix == ".npz" and place.is_file():
        try:
            with np.load(place, allow_pickle=False) as archive:
                held = {"train_images", "test_images"} <= set(archive.files)
        except (OSError, ValueError, EOFError):
            return None  # open_source says why
        return (f"{data}:test", f"{data}:train") if held else None
    return None


def read_images(
    source: Source, loaded: LoadedEncoder, count: int, seed: int | None, argument: str
) -> ProbeImages:
    """Read the images that a monitor would take of a data set, without those that cannot be read.

    Args:
        source: The images.
        loaded: Has the transform.
        count: How many to take at most.
        seed: Draws them at random; ``None`` for the first.
        argument: What to call the data in errors.

    Returns:
        The images, in the order in which the callback's monitor has them.

    Raises:
        ValueError: If they are too few, or of several shapes.
    """
    order = list(range(len(source)))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(source), generator=generator).tolist()
    prepared = Prepared(source, loaded.transform)
    images: list[Tensor] = []
    labels: list[str | None] = []
    problems: list[dict[str, str]] = []
    for index in order:
        item = prepared[index]
        if item.image is None:
            reason = item.problem or "cannot be read"
            problems.append({"path": source.key(index), "reason": reason})
            continue
        images.append(item.image)
        labels.append(source.label(index))
        if len(images) == count:
            break
    least = MIN_SAMPLES if argument == "data" else 3
    if len(images) < least:
        why = " to tell a collapse" if argument == "data" else ""
        raise ValueError(
            f"`{argument}` must hold at least {least} images that can be read{why}, got "
            f"{len(images)} in {source.name}."
        )
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"`{argument}` must yield images of one shape, got {sorted(shapes)}.")
    known = [label for label in labels if label is not None]
    classes = {name: number for number, name in enumerate(sorted(set(known)))}
    numbers = torch.tensor([classes[label] for label in known]) if known else None
    whole = numbers if len(known) == len(images) else None
    return ProbeImages(torch.stack(images), whole, problems)
