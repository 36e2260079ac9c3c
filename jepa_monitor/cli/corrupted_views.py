"""Corrupted images and their views: in go images, out come moments, and what lies in given directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa_monitor.probes.augmentations import PARTS, augment, draw_distortions, only
from jepa_monitor.probes.common_corruptions import corrupt

if TYPE_CHECKING:
    from jepa_monitor.cli.advice_objective import ObjectiveSettings

__all__ = ["Drawn", "Judge", "Moments", "draw"]


class Drawn(NamedTuple):
    """Images and what befell them, centred by nothing; float64.

    Args:
        clean: (N, D).
        corrupted: Draws of the corruption, (N, V, D); the first is what the data set holds.
        views: Of that, (N, V, D).
    """

    clean: Tensor
    corrupted: Tensor
    views: Tensor


def draw(images: Tensor, settings: ObjectiveSettings, generator: torch.Generator) -> Drawn:
    """Corrupt images, and make views of the corrupted ones.

    Args:
        images: In [0, 1], (N, C, H, W).
        settings: Corruption and augmentations.
        generator: Source of all randomness.

    Returns:
        What became of them.
    """
    count, times = len(images), settings.views
    kind, severity = settings.parsed_corruption
    repeated = images.repeat_interleave(times, 0)
    corrupted = corrupt(repeated, kind, severity, generator).reshape(
        count, times, *images.shape[1:]
    )
    views = corrupted[:, 0].repeat_interleave(times, 0)
    steps = settings.steps
    parts = tuple(name for name in PARTS if name in steps)
    if parts:
        seed = int(torch.randint(2**31, (), generator=generator))
        views = augment(views, only(draw_distortions(len(views), seed), parts))
    if "inject" in steps:
        views = corrupt(views.clamp(0, 1), kind, int(steps["inject"]), generator)
    if "noise" in steps:
        noise = torch.randn(views.shape, generator=generator, dtype=torch.float64)
        views = views + steps["noise"] * noise
    return Drawn(
        images.flatten(1),
        corrupted.flatten(2),
        views.reshape(count, times, *images.shape[1:]).flatten(2),
    )


class Moments:
    """Sums over the half that fits."""

    def __init__(self, numbers: int) -> None:
        self.count, self.times = 0, 1
        self.sums = torch.zeros(3, numbers, dtype=torch.float64)  # clean, corrupted, views
        names = ("clean", "data", "seen", "read", "target", "nuisance", "within")
        self.products = {n: torch.zeros(numbers, numbers, dtype=torch.float64) for n in names}

    def add(self, drawn: Drawn) -> None:
        """Take a chunk."""
        x, data, mean = drawn.clean, drawn.corrupted[:, 0], drawn.views.mean(1)
        self.count += len(x)
        self.times = drawn.views.shape[1]
        self.sums += torch.stack([x.sum(0), data.sum(0), mean.sum(0)])
        pairs = {"clean": (x, x), "data": (data, data), "seen": (mean, mean)}
        pairs |= {"read": (data, x), "target": (data, mean)}
        for name, (first, second) in pairs.items():
            self.products[name] += first.T @ second
        for name, group in (("nuisance", drawn.corrupted), ("within", drawn.views)):
            apart = (group - group.mean(1, keepdim=True)).flatten(0, 1)
            self.products[name] += apart.T @ apart / (group.shape[1] - 1)

    def centred(self) -> tuple[dict[str, Tensor], Tensor]:
        """Give moments about the means, and the means."""
        clean, data, seen = means = self.sums / self.count
        about = {"clean": (clean, clean), "data": (data, data), "seen": (seen, seen)}
        about |= {"read": (data, clean), "target": (data, seen)}
        found = {name: total / self.count for name, total in self.products.items()}
        for name, (first, second) in about.items():
            found[name] = found[name] - torch.outer(first, second)
        # Views are few, so their mean holds a part of their spread still.
        found["between"] = found["seen"] - found["within"] / self.times
        return found, means


def _spread(values: Tensor) -> Tensor:
    """Give the variance of what was drawn of each image, (N, …)."""
    apart = values - values.mean(1, keepdim=True)
    return apart.square().sum(1) / (values.shape[1] - 1)


class Judge:
    """What the other half has in given directions, an image a row."""

    def __init__(self, means: Tensor, signal: Tensor, apart: Tensor, whole: Tensor) -> None:
        self.means, self.signal, self.apart, self.whole = means, signal, apart, whole
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, drawn: Drawn) -> None:
        """Take a chunk."""
        times = drawn.views.shape[1]
        about = drawn.corrupted - self.means[1]
        on_signal = about @ self.signal
        spread = _spread(on_signal)
        row = {
            "clean": (drawn.clean - self.means[0]) @ self.signal,
            "data": about[:, 0],
            "signal": on_signal.mean(1).square() - spread / times,
            "signal_augmentation": _spread(drawn.views @ self.signal),
            "nuisance": _spread(drawn.corrupted @ self.apart),
            "nuisance_augmentation": _spread(drawn.views @ self.apart),
            "whole": _spread(drawn.corrupted @ self.whole),
            "whole_augmentation": _spread(drawn.views @ self.whole),
            "nuisance_inside": spread.sum(1, keepdim=True),
            "nuisance_all": _spread(drawn.corrupted).sum(1, keepdim=True),
            "data_all": about[:, 0].square().sum(1, keepdim=True),
            "augmentation_all": _spread(drawn.views).sum(1, keepdim=True),
        }
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def all(self) -> dict[str, Tensor]:
        """Give all rows."""
        return {name: torch.cat(parts) for name, parts in self.rows.items()}
