"""What is told of a run beside its curves: in go looks and a monitor, out come words and what pictures need."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jepa_monitor.encoders.texts import is_texts
from jepa_monitor.monitor.origin import find_origin
from jepa_monitor.monitor.verdict import Verdict

if TYPE_CHECKING:
    from jepa_monitor.monitor.monitor import DensityMonitor

__all__ = ["is_news", "read_settings", "remember_spectrum", "settings_of", "settings_table"]

_FAN = 12  # spectra in one picture


def is_news(memory: MutableMapping[str, Any], verdict: Verdict) -> bool:
    """Say whether a verdict is in other words, not in other numbers, than the last: those are curves.

    Args:
        memory: Of the run; takes the words.
        verdict: Of the look at hand.

    Returns:
        Whether it is.
    """
    words = re.sub(r"[0-9.]+", "#", str(verdict))
    before, memory["words"] = memory.get("words"), words
    return bool(before != words)


def remember_spectrum(
    memory: MutableMapping[str, Any], step: int, singular_values: Tensor, eps: float
) -> dict[int, Tensor]:
    """Keep the mean spectra of up to a dozen looks, well apart and this one among them.

    Args:
        memory: Of the run; takes the spectra.
        step: Training steps done.
        singular_values: Of the probe, (B, r).
        eps: Singular values below it count as it.

    Returns:
        Means of their logarithms, (r,), by step; empty if none of them is finite, or of estimates.
    """
    values = singular_values[torch.isfinite(singular_values).all(1)]
    if not values.numel():
        return {}
    drawn: dict[int, Tensor] = memory.setdefault("spectra", {})
    drawn[step] = values.clamp_min(eps).log().mean(0).float()
    if len(drawn) > _FAN:
        steps = sorted(drawn)
        gaps = [after - before for before, after in zip(steps[:-2], steps[2:], strict=True)]
        del drawn[steps[1 + gaps.index(min(gaps))]]
    return drawn


def settings_of(monitor: DensityMonitor) -> dict[str, str]:
    """Say what the numbers of a monitor depend on, and what it takes to have them again.

    Args:
        monitor: It.

    Returns:
        Words by name.
    """
    reference, ood = monitor.reference, monitor.ood
    return {
        "probe": _counted(monitor.images),
        "images": _digest(monitor.images),
        "reference": "none" if reference is None else _counted(reference),
        "out of distribution": ", ".join(ood) or "none",
        "groups": ", ".join(monitor.groups) or "none",
        "compared with": _named(monitor.compare_with),
        "text pairs": str(0 if monitor.text_pairs is None else len(monitor.text_pairs[0])),
        "scored of each": str(monitor.max_probe_samples),
        "options": str(monitor.options),
        **find_origin(),
    }


def _named(other: Any) -> str:
    name = getattr(other, "name", None)
    return "none" if other is None else name if isinstance(name, str) else type(other).__name__


def _counted(images: Tensor) -> str:
    return f"{len(images)} {'texts' if is_texts(images) else 'images'}"


def _digest(images: Tensor) -> str:
    """Tell sets of images apart: numbers of two runs are comparable only on the same."""
    found = hashlib.blake2b(digest_size=8)
    for image in images:
        found.update(image.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def settings_table(settings: Mapping[str, str]) -> str:
    """Write settings as TensorBoard shows them.

    Args:
        settings: Words by name.

    Returns:
        A table in Markdown.
    """
    cells = ({k: " ".join(str(v).split()).replace("|", "\\|") for k, v in settings.items()}).items()
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in cells)])


def read_settings(table: str) -> dict[str, str]:
    """Read what :func:`settings_table` has written.

    Args:
        table: In Markdown.

    Returns:
        Words by name.
    """
    found = {}
    for line in table.splitlines()[2:]:
        name, _, value = line.removeprefix("| ").removesuffix(" |").partition(" | ")
        found[name] = value.replace("\\|", "|")
    return found
