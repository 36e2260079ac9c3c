"""Checkpoints of a run: in go patterns and folders, out come files with their steps, in order.

What tells the step must be the same for all files: steps and epochs do not mix.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor.cli.weights import tensors_of

__all__ = ["Course", "Saved", "find_checkpoints", "in_order"]

_SUFFIXES = (".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors", ".bin")
_STEPS = ("global_step", "iteration", "step")
_NAMED = (  # numbers in names, the first kind that all names have
    ("step", re.compile(r"(?:step|checkpoint|iter(?:ation)?|training)[=_-]?(\d+)", re.IGNORECASE)),
    ("epoch", re.compile(r"ep(?:och)?[=_-]?(\d+)", re.IGNORECASE)),
    ("step", re.compile(r"(\d+)(?!.*\d)")),
)
_ALONE = "there is but one"
_EXTRA = 4  # files that are named in an error


class Saved(NamedTuple):
    """A checkpoint whose step is known.

    Args:
        path: Of the file, or of a folder of Hugging Face.
        step: Of the run.
        time: When it was saved, in seconds since 1970.
    """

    path: Path
    step: int
    time: float

    @property
    def name(self) -> str:
        """The file's name, with its folder's where many files have the same."""
        plain = re.search(r"\d", self.path.stem) is None and not self.path.is_dir()
        return str(Path(*self.path.parts[-2:])) if plain else self.path.name


class Course(NamedTuple):
    """The checkpoints of a run.

    Args:
        saved: In order of step.
        unit: What is counted: ``step`` or ``epoch``.
        source: What told, in words.
        problems: Files that are left out, with the reason.
        doubles: Files that are left out since another holds the same.
    """

    saved: tuple[Saved, ...]
    unit: str
    source: str
    problems: tuple[dict[str, str], ...]
    doubles: tuple[str, ...]


def find_checkpoints(patterns: Iterable[str]) -> list[Path]:
    """Expand patterns and folders.

    Args:
        patterns: Files, patterns with ``*``, ``?`` and ``**``, folders of files, folders of
            Hugging Face (with ``config.json``), or folders of those.

    Returns:
        The files, and the folders of Hugging Face, each once, by name.

    Raises:
        ValueError: If there are none.
    """
    patterns = list(patterns)
    found: dict[Path, Path] = {}
    for pattern in patterns:
        # Not Path.glob, which refuses a pattern that begins at the root.
        matching = glob.glob(pattern, recursive=True)  # noqa: PTH207
        names = [pattern] if Path(pattern).exists() else sorted(matching)
        for name in names:
            for path in _inside(Path(name)):
                # A link to another checkpoint, as Lightning's last.ckpt may be, is no second one.
                found.setdefault(path.resolve(), path)
    if not found:
        said = " ".join(patterns) or "nothing"
        raise ValueError(
            f"`checkpoints` must name files ({', '.join(_SUFFIXES)}) or folders of Hugging Face; "
            f"there are none under {said!r}."
        )
    return sorted(found.values(), key=lambda path: (path.name.startswith("last"), str(path)))


def _inside(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    folders = sorted({config.parent for config in place.glob("*/config.json")})
    if folders:  # of the Trainer of Hugging Face, whose own folder holds a copy of the last one
        return folders
    if (place / "config.json").is_file() or (place / ".metadata").is_file():
        return [place]
    return sorted(p for p in place.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())


def in_order(
    paths: Iterable[Path], read: Callable[[Path], Mapping[str, Any]], steps_per_epoch: int | None
) -> Course:
    """Find the step of each checkpoint, and put them in order.

    Args:
        paths: Of the checkpoints.
        read: Reads a file, without its tensors if it can, or raises a ``ValueError``.
        steps_per_epoch: Makes steps of epochs.

    Returns:
        The checkpoints that can be read, in order.

    Raises:
        ValueError: If nothing tells the step of all of them, or two of the same step differ.
    """
    clues: dict[Path, dict[str, int]] = {}
    problems: list[dict[str, str]] = []
    for path in paths:
        try:
            clues[path] = _clues(path, read)
        except ValueError as error:  # noqa: PERF203
            problems.append({"path": str(path), "reason": str(error)})
    if not clues:
        first = problems[0]
        raise ValueError(
            f"`checkpoints`: none of {len(problems)} can be read; {first['path']!r} {first['reason']}"
        )
    source = _source(clues)
    if source is None:
        names = ", ".join(repr(str(path)) for path in list(clues)[:_EXTRA])
        raise ValueError(
            f"`checkpoints`: nothing tells the order of all of {names}{' …' * (len(clues) > _EXTRA)}: "
            f"neither {', '.join((*_STEPS, 'epoch'))} in each file nor a number in each name."
        )
    unit = "epoch" if source.startswith("epoch") else "step"
    factor = 1
    if unit == "epoch" and steps_per_epoch is not None:
        factor, unit = steps_per_epoch, "step"
    saved = [
        Saved(p, factor * known.get(source, 0), p.stat().st_mtime) for p, known in clues.items()
    ]
    saved.sort(key=lambda one: one.step)  # stable: the same step in the order of the names
    kept, doubles = _without_doubles(saved, read)
    told_by = source if factor == 1 else f"{source}, {factor} steps each"
    return Course(tuple(kept), unit, told_by, tuple(problems), tuple(doubles))


def _source(clues: Mapping[Path, Mapping[str, int]]) -> str | None:
    """Choose what tells the step of all files: the surest that they have in common."""
    first, *others = clues.values()
    common = [name for name in first if all(name in known for known in others)]
    if not others:
        return common[0] if common else _ALONE
    written = [name for name in common if name in (*_STEPS, "epoch")]
    # A number that is the same in all names, such as a version, tells no order.
    varied = [name for name in common if len({known[name] for known in clues.values()}) > 1]
    return next(iter((*written, *varied)), None)


def _clues(path: Path, read: Callable[[Path], Mapping[str, Any]]) -> dict[str, int]:
    """Find all that may tell the step, the surest first."""
    found: dict[str, int] = {}
    if path.is_dir():
        state = path / "trainer_state.json"
        content: Mapping[str, Any] = {}
        if state.is_file():
            try:
                content = json.loads(state.read_text())
            except ValueError as error:
                raise ValueError(
                    f"has a trainer_state.json that cannot be read: {error}"
                ) from error
    else:
        content = read(path)
    for name in (*_STEPS, "epoch"):
        value = content.get(name)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, int | float) and value == int(value) >= 0:
            found[name] = int(value)
    # The folder of many files of one name, such as DINOv2's eval/training_12499/teacher_checkpoint.pth.
    for what, text in (("file", path.name.split(".")[0] if path.is_dir() else _stem(path)),
                       ("folder", path.parent.name)):  # fmt: skip
        for kind, pattern in _NAMED:
            if number := pattern.search(text):
                found.setdefault(f"{kind} in the {what}'s name", int(number[1]))
    return found


def _stem(path: Path) -> str:
    suffix = next((s for s in sorted(_SUFFIXES, key=len)[::-1] if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)


def _without_doubles(
    saved: list[Saved], read: Callable[[Path], Mapping[str, Any]]
) -> tuple[list[Saved], list[str]]:
    kept: list[Saved] = []
    doubles: list[str] = []
    for one in saved:
        if not kept or kept[-1].step != one.step:
            kept.append(one)
        elif _same(kept[-1].path, one.path, read):
            doubles.append(f"{one.path} holds the weights of {kept[-1].path}")
        else:
            raise ValueError(
                f"`checkpoints`: {str(kept[-1].path)!r} and {str(one.path)!r} are both of step "
                f"{one.step} and differ: of two runs, perhaps. Name those of one run."
            )
    return kept, doubles


def _same(first: Path, second: Path, read: Callable[[Path], Mapping[str, Any]]) -> bool:
    if first.is_dir() or second.is_dir():
        return False
    one, other = tensors_of(read(first)), tensors_of(read(second))
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # Bytes: NaN equals itself there.
    first, second = (t.contiguous().flatten().view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)
