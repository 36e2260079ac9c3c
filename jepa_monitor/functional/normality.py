"""Are the embeddings normal? A verdict that may say that it cannot be said.

Every part has a null law that depends on N and K alone, or on neither: nothing is assumed of mean,
covariance or N/K. Statistics assume independent rows: give *one view for each image*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._axes import principal_scores
from jepa_monitor.functional._checks import as_matrix, require_number
from jepa_monitor.functional._null_laws import average_sd, slice_mean, slice_tail, sum_tail
from jepa_monitor.functional.gaussianity import epps_pulley, slice_directions
from jepa_monitor.functional.sequential import NoLawError, normal_scores, sequential_tails

_SLICES = 256
_LEAST_ROWS = 32
_SPARE = 8  # rows beyond the least that determine a covariance
_SEEN = 0.016  # effect of a uniform or Laplace law of unit variance in one direction
_CLIFF = 1e3  # ratio of variances
_FAMILIES = 4
NEAR_ENOUGH = 0.005  # effect below which a departure does not matter


class NormalityPart(NamedTuple):
    """One kind of departure.

    Args:
        p_value: Probability of as much under normality, corrected for all directions and scales
            that this kind looks at.
        effect: Largest effect among its significant findings, or that of the least likely one: the
            squared distance of characteristic functions, which does not grow with N. A uniform
            or Laplace law of unit variance has 0.016.
    """

    p_value: float
    effect: float


@dataclass(frozen=True)
class Normality:
    """Verdict on the law of embeddings.

    Args:
        gaussian: True and False, or None if N embeddings cannot tell.
        p_value: Probability of as much under normality, corrected for everything looked at.
        effect: Largest effect among all significant findings; see :class:`NormalityPart`.
        reason: The kind with the largest effect among the significant ones: ``"axes"``,
            ``"radius"``, ``"coordinates"``, ``"slices"``, ``"spectrum"``; empty if there is none.
        needed: How many embeddings of this width a verdict takes.
        count: N.
        rank: Number of directions with a variance.
        parts: Each kind by its name.
    """

    gaussian: bool | None
    p_value: float
    effect: float
    reason: str
    needed: int
    count: int
    rank: int
    parts: dict[str, NormalityPart] = field(default_factory=dict)


class _Finding(NamedTuple):
    p_value: float
    effect: float


def normality(
    embeddings: Tensor, seed: int = 0, significance: float = 0.01, tolerance: float = NEAR_ENOUGH
) -> Normality:
    r"""Say whether embeddings are normal, are not, or are too few to tell.

    Four kinds of departure, each where structure lives, none with a parameter of the law:

    - *axes*: Epps-Pulley statistic along the embeddings' own principal axes, the worst axis and the
      1, 2, 4 … leading ones together. Finds clusters and whatever has a large variance.
    - *radius*: distances within the 2, 4, 8 … leading axes, by
      :func:`~jepa_monitor.functional.sequential.sequential_tails`. Finds heavy tails and
      coordinates that are not normal, also after a rotation.
    - *coordinates*: each number of the embedding by itself.
    - *slices*: random directions of the whitened embeddings, their mean and the worst.

    A fifth, *spectrum*, is no test: variances that fall by three orders of magnitude within an
    eighth of the directions, with a sixteenth of them or more below, are an embedding of fewer
    dimensions than it has numbers, whose density in all of them means nothing, however normal its
    slices are.

    *No* takes both a p-value below the significance and an effect above the tolerance: in many
    embeddings a departure too small to matter is significant. *Yes* takes N ≥ ``needed``: at least
    three times as many embeddings as numbers, and enough for a direction as far from normal as a
    uniform law to be found. Embeddings that are too few may still be refused.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 32.
        seed: Of the random directions and of the order in which the distances are judged.
        significance: Probability of refusing normal embeddings.
        tolerance: Effect below which a departure does not matter.

    Returns:
        The verdict and its parts.

    Source:
        Epps & Pulley (Biometrika 70, 1983); Rincon-Gallardo et al. (Annals of Statistics 7, 1979);
        for slices of a normal law with a cliff in its spectrum, UR-JEPA (arXiv 2606.01443).

    Example:
        >>> import torch
        >>> z = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
        >>> normality(z).gaussian, normality(z.exp()).gaussian, normality(z[:40]).gaussian
        (True, False, None)
        >>> normality(z[:40]).needed
        247
    """
    z = as_matrix(embeddings, "embeddings", min_rows=_LEAST_ROWS).detach()
    require_number(significance, "significance", 0, 1, closed=False)
    require_number(tolerance, "tolerance", 0)
    count, width = z.shape
    generator = torch.Generator().manual_seed(seed)
    z = z[torch.randperm(count, generator=generator).to(z.device)]
    scores, variances = principal_scores(z, torch.finfo(embeddings.dtype).eps)
    rank = scores.shape[1]
    needed = max(3 * width, math.ceil(1.5 * _quantile(significance / width) / _SEEN))
    if rank == 0:
        return Normality(False, 0.0, math.inf, "spectrum", needed, count, rank)
    found = {
        "axes": _axes(scores),
        "radius": _radius(scores),
        "coordinates": _coordinates(z),
        "slices": _slices(scores, seed),
    }
    parts, effects = {}, {}
    for name, findings in found.items():
        first = min(findings)
        significant = [f.effect for f in findings if _FAMILIES * f.p_value < significance]
        if significant:
            effects[name] = max(significant)
        parts[name] = NormalityPart(min(1.0, first.p_value), effects.get(name, first.effect))
    p_value = min(1.0, _FAMILIES * min(part.p_value for part in parts.values()))
    reason = max(effects, key=lambda name: effects[name], default="")
    effect = effects.get(reason, max(part.effect for part in parts.values()))
    gaussian: bool | None = True if count >= needed else None
    if effects and effect >= tolerance:
        gaussian = False
    if _falls_off(variances, count, width):
        gaussian, reason = False, reason if gaussian is False else "spectrum"
    return Normality(gaussian, p_value, effect, reason, needed, count, rank, parts)


def _axes(scores: Tensor) -> list[_Finding]:
    count, rank = scores.shape
    statistics = epps_pulley(scores)
    totals = statistics.cumsum(dim=0)
    sizes = _doublings(rank)
    looks = len(sizes) + 1
    findings = [_worst(statistics, count, looks)]
    for size in sizes:
        total = float(totals[size - 1])
        p_value = looks * sum_tail(total, size)
        findings.append(_Finding(p_value, (total / size - slice_mean(True)) / count))
    return findings


def _radius(scores: Tensor) -> list[_Finding]:
    count, rank = scores.shape
    sizes = [size for size in _doublings(min(rank, count // 2 - _SPARE)) if size > 1]
    findings = []
    for size in sizes:
        try:
            tails = sequential_tails(scores[:, :size], size + _SPARE)
        except NoLawError:  # the first rows lie in fewer directions; the other parts will tell
            continue
        radii = normal_scores(*tails)
        statistic = float(epps_pulley(radii[:, None]))
        p_value = len(sizes) * slice_tail(statistic, estimated=False)
        findings.append(_Finding(p_value, (statistic - slice_mean(False)) / len(radii)))
    return findings or [_Finding(1.0, 0.0)]


def _coordinates(z: Tensor) -> list[_Finding]:
    centred = z - z.mean(dim=0)
    scale = centred.square().mean(dim=0).sqrt()
    varies = scale > 1e-6 * scale.max()
    return [_worst(epps_pulley(centred[:, varies] / scale[varies]), len(z), 1)]


def _slices(scores: Tensor, seed: int) -> list[_Finding]:
    count, rank = scores.shape
    directions = slice_directions(rank, _SLICES, seed).to(scores.device)
    statistics = epps_pulley(scores @ directions)
    average, mean, sd = float(statistics.mean()), slice_mean(True), average_sd(rank, _SLICES, True)
    # A gamma law of the same mean and variance: of few directions, slices are all nearly the same.
    half = statistics.new_tensor([mean**2, average * mean]) / sd**2
    tail = float(torch.special.gammaincc(half[0], half[1]))
    return [_worst(statistics, count, 2), _Finding(2 * tail, (average - mean) / count)]


def _worst(statistics: Tensor, count: int, looks: int) -> _Finding:
    largest = float(statistics.max())
    p_value = looks * len(statistics) * slice_tail(largest, estimated=True)
    return _Finding(p_value, (largest - slice_mean(True)) / count)


def _doublings(most: int) -> list[int]:
    return [2**power for power in range((most - 1).bit_length())] + [most]


def _falls_off(variances: Tensor, count: int, width: int) -> bool:
    # Beyond N/2 directions the spectrum of the sample falls whatever that of the law does.
    seen = min(width, count // 2)
    step, least = max(1, width // 8), max(2, math.ceil(width / 16))
    values = variances[:seen].clamp_min(float(variances[0]) * torch.finfo(torch.float64).eps)
    first = width // 4
    stop = min(seen - step, width - least - step + 1)
    if stop <= first:
        return False
    return bool((values[first:stop] > _CLIFF * values[first + step : stop + step]).any())


@lru_cache(maxsize=64)
def _quantile(probability: float) -> float:
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slice_tail(middle, True) > probability else (low, middle)
    return high
