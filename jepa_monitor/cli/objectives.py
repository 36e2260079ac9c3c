"""Linear joint embedding and reconstruction of corrupted images: in go images, out comes what each reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from jepa_monitor.cli.corrupted_views import Judge, Moments, draw
from jepa_monitor.cli.tables import with_info
from jepa_monitor.functional.linear_objectives import (
    alignment_thresholds,
    joint_embedding,
    reconstruction,
)
from jepa_monitor.probes.common_corruptions import RANDOM

if TYPE_CHECKING:
    from jepa_monitor.cli.advice import AdviceSettings
    from jepa_monitor.cli.advice_objective import ObjectiveSettings

__all__ = ["objective_table"]

_ALIGNMENTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
_FLOOR = 1e-6  # of the largest variance; smaller ones are rounding, no nuisance
_CHUNK = 512  # images
_BOOTSTRAPS = 400
_RANDOM_CODES = 5
_TIE = 1e-6
_OTHER = {"joint embedding": "reconstruction", "reconstruction": "joint embedding"}


def objective_table(
    images: Tensor,
    settings: AdviceSettings,
    objective: ObjectiveSettings,
    tell: Callable[[str, int, int], None],
) -> tuple[list[tuple[str, str]], pa.Table]:
    """Solve both objectives on one half, and judge them on the other.

    Args:
        images: In [0, 1], (N, C, H, W), float64.
        settings: Of the images.
        objective: What to compare.
        tell: Is told of phases, as progress bars are.

    Returns:
        What to say, and a row for each alignment; what the picture needs is with the table.

    Raises:
        ValueError: If the images do not differ, or in fewer directions than ``codes``.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    half, codes = len(images) // 2, settings.codes
    moments = Moments(settings.numbers)
    for start in range(0, half, _CHUNK):
        moments.add(draw(images[start : min(start + _CHUNK, half)], objective, generator))
        tell("draw", min(start + _CHUNK, half), len(images))
    found, means = moments.centred()
    values, vectors = torch.linalg.eigh(found["clean"])
    differs = int((values > 1e-10 * values[-1]).sum()) if float(values[-1]) > 1e-12 else 0
    if not differs:
        raise ValueError("`data` must hold images that differ; these are all the same.")
    if codes > differs:
        raise ValueError(
            f"`codes` must be at most {differs}, the directions in which these images differ, got {codes}."
        )
    signal = vectors.flip(1)[:, :codes]
    random = objective.parsed_corruption[0] in RANDOM
    whole = _directions(found["nuisance"], random)
    outside = torch.eye(len(signal), dtype=torch.float64) - signal @ signal.T
    apart = _directions(outside @ found["nuisance"] @ outside, random)
    judge = Judge(means, signal, apart, whole)
    for start in range(half, len(images), _CHUNK):
        judge.add(draw(images[start : start + _CHUNK], objective, generator))
        tell("draw", min(start + _CHUNK, len(images)), len(images))
    rows = judge.all()
    weights = _resampled(len(images) - half, settings.seed)
    alignments = _ALIGNMENTS if random else _ALIGNMENTS[:1]
    table = []
    for done, alignment in enumerate(alignments):
        table.append(_solved(found, rows, weights, signal, alignment))
        tell("solve", done + 1, len(alignments))
    facts, kept = _thresholds(rows, weights, objective, settings.numbers, table[0])
    kept |= _ends(found, rows, signal, settings.seed)
    facts += _told(table[0], kept)
    return facts, with_info(pa.Table.from_pylist(table, _SCHEMA), {"objective": kept})


_READ = ("joint_embedding", "reconstruction", "difference")
_NAMES = [f"{name}{end}" for name in _READ for end in ("", "_lower", "_upper")]
_SCHEMA = pa.schema([(name, pa.float64()) for name in ["alignment", *_NAMES]])


def _directions(moment: Tensor, random: bool) -> Tensor:
    """Give the directions of a nuisance, the largest first; none of what is no nuisance."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > max(_FLOOR * float(values[-1]), 1e-12)
    found: Tensor = vectors[:, kept].flip(1) if random else vectors[:, :0]
    return found


def _resampled(count: int, seed: int) -> Tensor:
    """Give weights of images, (B + 1, N): all the same, then bootstraps."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(_BOOTSTRAPS + 1, count, dtype=torch.float64)
    for n in range(1, _BOOTSTRAPS + 1):
        drawn = torch.randint(count, (count,), generator=generator)
        weights[n] = torch.bincount(drawn, minlength=count).double()
    weights /= count
    return weights


def _interval(values: Tensor) -> tuple[float, float, float]:
    """Value of all, and the middle 95 % of the bootstraps."""
    lower, upper = torch.quantile(values[1:], torch.tensor([0.025, 0.975]).to(values)).tolist()
    return float(values[0]), lower, upper


def _thresholds(
    rows: dict[str, Tensor],
    weights: Tensor,
    objective: ObjectiveSettings,
    numbers: int,
    first: dict[str, float | None],
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Say what the formulas say, with the views as the augmentation."""
    kind = objective.corruption
    names = ("signal", "signal_augmentation", "nuisance", "nuisance_augmentation")
    means = {name: weights @ rows[name] for name in names}
    kept: dict[str, Any] = {name: means[name][0].tolist() for name in names}
    kept |= dict.fromkeys(("even", "joint_embedding", "reconstruction", "covered"))
    if not rows["whole"].shape[1]:
        what = f"none: {kind.partition(':')[0]} does the same to every image, so nothing can be redrawn"
        return [("nuisance", what)], kept
    size, inside = (float(rows[name].mean()) for name in ("nuisance_all", "nuisance_inside"))
    total = float(rows["data_all"].mean())
    g, seen = weights @ rows["whole"], weights @ rows["whole_augmentation"]
    covered = _interval(torch.minimum(g, seen).sum(1) / g.sum(1))
    even = weights[:1] @ rows["augmentation_all"] / numbers
    chance = float(torch.minimum(g[:1], even).sum() / g[:1].sum())
    kept["covered"] = [*covered, chance]
    lies = (
        f"{kind}, drawn once an image: {size / total:.0%} of the corrupted images' variance, and "
        f"{inside / size:.0%} of it in the signal's directions, where none can tell them apart"
    )
    covers = (
        f"{_shown(*covered)} of it by {', '.join(objective.steps)}; {chance:.2f} if the same variance lay "
        "evenly in all directions"
    )
    facts = [("nuisance", lies), ("covered by views", covers)]
    if not rows["nuisance"].shape[1]:
        facts.append(
            ("alignment", "cannot be told: all of the nuisance is in the signal's directions")
        )
        return facts, kept
    if not bool((means["signal"] > 0).all()):
        facts.append(
            ("alignment", "cannot be told: the corruption leaves nothing of a signal direction")
        )
        return facts, kept
    if first["joint_embedding"] is None:
        why = f"views by {', '.join(objective.steps)} alone agree in more directions than there are codes"
        facts.append(("alignment", f"cannot be told: {why}, so joint embedding is not determined"))
        return facts, kept
    both = alignment_thresholds(*(means[name] for name in names))
    kept["even"] = float(both.even[0])
    for name, words in (
        ("joint_embedding", "joint embedding"),
        ("reconstruction", "reconstruction"),
    ):
        value = getattr(both, name)
        kept[name] = _interval(value)
        facts.append((f"{words} needs", _alpha(*kept[name])))
    needed = [value.clamp_min(0) for value in both[:2]]
    less = _less(kept, _interval(needed[0] - needed[1]))
    if inside > size / 2 or less == _OTHER.get(_more(first) or ""):
        less += "; but see the table: the rule takes signal, nuisance and nothing else to be apart"
    facts.append(("less alignment", less))
    return facts, kept


def _alpha(squared: float, lower: float, upper: float) -> str:
    if squared <= 0:
        return "no more alignment than these views have" + (
            "" if upper <= 0 else f" (alpha up to {math.sqrt(upper):.2f} is possible)"
        )
    ends = (math.sqrt(max(end, 0.0)) for end in (lower, upper))
    return (
        f"the nuisance redrawn too, at alpha = {_shown(math.sqrt(squared), *ends)} times its size"
    )


def _less(kept: dict[str, Any], difference: tuple[float, float, float]) -> str:
    if kept["joint_embedding"][2] <= 0 and kept["reconstruction"][2] <= 0:
        return "neither needs any: by this rule either will do"
    if difference[2] < 0:
        return "joint embedding"
    return "reconstruction" if difference[1] > 0 else "cannot be told"


def _read_share(errors: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Give R² of each signal direction, averaged, by weights of images."""
    share: Tensor = 1 - (weights @ errors.square()) / (weights @ target.square())
    return share.mean(1)


def _readout(found: dict[str, Tensor], encoder: Tensor, signal: Tensor) -> Tensor:
    """Fit least squares from codes of corrupted images to the clean signal; (D, k), codes and all."""
    inner = encoder.T @ found["data"] @ encoder
    solved: Tensor = (
        torch.linalg.pinv(inner, hermitian=True, rtol=1e-10) @ encoder.T @ found["read"]
    )
    weights: Tensor = encoder @ solved @ signal
    return weights


def _solved(
    found: dict[str, Tensor],
    rows: dict[str, Tensor],
    weights: Tensor,
    signal: Tensor,
    alignment: float,
) -> dict[str, float | None]:
    """Solve both objectives where views redraw the nuisance too, and read the signal from their codes."""
    between = found["between"]
    within = found["within"] + alignment**2 * found["nuisance"]
    codes = signal.shape[1]
    values = torch.linalg.eigvalsh(between + within)
    differs = int((values > 1e-9 * values[-1]).sum())
    joint = joint_embedding(between, within, max(min(codes + 1, differs), codes))
    tied = len(joint.agreement) > codes and float(joint.agreement[codes]) > 1 - _TIE
    encoders = {
        "joint_embedding": None if tied else joint.encoder[:, :codes],
        "reconstruction": reconstruction(found["target"], between, within, codes).encoder,
    }
    shares: dict[str, Tensor] = {}
    for name, encoder in encoders.items():
        if encoder is not None:
            errors = rows["clean"] - rows["data"] @ _readout(found, encoder, signal)
            shares[name] = _read_share(errors, rows["clean"], weights)
    if not tied:
        shares["difference"] = shares["joint_embedding"] - shares["reconstruction"]
    row: dict[str, float | None] = {"alignment": alignment}
    for name in _READ:
        ends = _interval(shares[name]) if name in shares else (None,) * 3
        row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), ends, strict=True))
    return row


def _ends(
    found: dict[str, Tensor], rows: dict[str, Tensor], signal: Tensor, seed: int
) -> dict[str, float]:
    """Say what all numbers of a corrupted image tell of the signal, and what random codes do."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.full((1, len(rows["data"])), 1 / len(rows["data"]), dtype=torch.float64)

    def read(encoder: Tensor) -> float:
        errors = rows["clean"] - rows["data"] @ _readout(found, encoder, signal)
        return float(_read_share(errors, rows["clean"], one))

    shape = signal.shape
    codes = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(_RANDOM_CODES)
    ]
    return {
        "all": read(torch.eye(len(signal), dtype=torch.float64)),
        "chance": sum(map(read, codes)) / _RANDOM_CODES,
    }


def _shown(value: float, lower: float, upper: float) -> str:
    return f"{value:.2f} [{lower:.2f}, {upper:.2f}]"


def _more(first: dict[str, float | None]) -> str | None:
    """Name the objective whose codes read more, where the interval of the difference leaves no doubt."""
    lower, upper = first["difference_lower"], first["difference_upper"]
    if lower is None or upper is None or lower <= 0 <= upper:
        return None
    return "joint embedding" if lower > 0 else "reconstruction"


def _told(first: dict[str, float | None], kept: dict[str, Any]) -> list[tuple[str, str]]:
    shares = [first[name] for name in ("joint_embedding", "reconstruction")]
    more = _more(first)
    if None in shares:
        words = "joint embedding is not determined"
    elif all(share is not None and share <= kept["chance"] for share in shares):
        words = "neither reads more than random codes"
    elif more is None:
        words = "cannot be told"
    else:
        size, *ends = (abs(first[f"difference{end}"] or 0.0) for end in ("", "_lower", "_upper"))
        words = f"{more}, by {_shown(size, *sorted(ends))}"
    read = f"{kept['all']:.2f} by all numbers of a corrupted image, {kept['chance']:.2f} by as many random codes"
    assumed = (
        "linear encoders, the corruption is the only nuisance, and the signal is what the clean images' "
        "first principal directions hold, which reconstruction is made to keep; no accuracy of a deep "
        "network is foretold"
    )
    return [("signal read", read), ("reads more, as is", words), ("assumed", assumed)]
