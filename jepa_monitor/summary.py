"""Numbers under tags: in go scored sets of images, out come the scalars of the dashboard.

Every function leaves out what it cannot compute; none returns NaN or infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jepa_monitor.functional.calibration import (
    calibration_error,
    coverage_gap,
    hdr_pit,
    kolmogorov_smirnov,
    rank_pit,
)
from jepa_monitor.functional.detection import auroc, average_precision, fpr_at_tpr
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.functional.gaussianity import sliced_epps_pulley
from jepa_monitor.functional.jacobian_alignment import rank_one_share
from jepa_monitor.functional.neighbors import knn_distance
from jepa_monitor.functional.outliers import outlier_fraction, robust_fence
from jepa_monitor.functional.polarity import paired_polarity, severity_order
from jepa_monitor.jacobian.spectrum import clipped_count

__all__ = [
    "ScoredSet",
    "density_scalars",
    "detectors",
    "ood_scalars",
    "outlier_scalars",
    "polarity_scalars",
    "score_scalars",
]

_NEIGHBOURS = 10
_SLICES = 256
_GAUSSIAN_EFFECT = 0.005  # a third of that of uniform or Laplace slices of unit variance
_CALIBRATED = 0.1  # mean error of coverage
_ALPHA = 0.05
_LEAST_REFERENCE = 19  # scores, for which the lowest is the 5 % quantile


@dataclass(frozen=True)
class ScoredSet:
    """What one evaluation knows of a set of images, the scored ones first.

    Args:
        images: The scored images, (B, ...).
        embeddings: Of all images, (N, K), N ≥ B.
        scores: JEPA-SCORE, (B,), float64; NaN where not finite.
        log_density: The full log-density, (B,), float64; NaN throughout without a reference.
        singular_values: Of the Jacobian's rows, (B, r), float64, descending.
        noise_floors: Size below which they are rounding error, (B,), float64.
    """

    images: Tensor = field(repr=False)
    embeddings: Tensor = field(repr=False)
    scores: Tensor = field(repr=False)
    log_density: Tensor = field(repr=False)
    singular_values: Tensor = field(repr=False)
    noise_floors: Tensor = field(repr=False)

    @property
    def finite_embeddings(self) -> Tensor:
        """The embeddings that are finite, (n, K)."""
        return self.embeddings[torch.isfinite(self.embeddings).all(1)]


def _finite(values: Tensor) -> Tensor:
    return values[torch.isfinite(values)]


def _quantiles(prefix: str, values: Tensor) -> dict[str, float]:
    finite = _finite(values)
    if not len(finite):
        return {}
    low, median, high = torch.quantile(finite, finite.new_tensor([0.05, 0.5, 0.95])).tolist()
    scalars = {
        f"{prefix}/mean": finite.mean().item(),
        f"{prefix}/p05": low,
        f"{prefix}/p50": median,
        f"{prefix}/p95": high,
    }
    if len(finite) > 1:
        scalars[f"{prefix}/std"] = finite.std().item()
    return scalars


def score_scalars(probe: ScoredSet, eps: float) -> dict[str, float]:
    """Summarise scores and spectra of the probe.

    Args:
        probe: The probe.
        eps: The clipping value.

    Returns:
        ``jepa_score/*``, ``log_density/*`` and ``jacobian/*``.
    """
    scalars = _quantiles("jepa_score", probe.scores) | _quantiles("log_density", probe.log_density)
    finite = torch.isfinite(probe.singular_values).all(1)
    values = probe.singular_values[finite]
    if not len(values):
        return scalars
    below = (values < probe.noise_floors[finite, None]).sum(1)
    scalars["jepa_score/clipped"] = clipped_count(values, eps).double().mean().item()
    scalars["jepa_score/below_noise_floor"] = below.double().mean().item()
    logs = values.clamp_min(eps).log().flatten()
    for name, quantile in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
        # Not torch.quantile, which takes no more than 16 million numbers.
        rank = 1 + round(quantile * (len(logs) - 1))
        scalars[f"jacobian/log_sigma_{name}"] = logs.kthvalue(rank).values.item()
    energy = values.square()
    share = energy / energy.sum(1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum(1)
    scalars["jacobian/effective_rank"] = entropy.exp().mean().item()
    scalars["jacobian/rank_one_share"] = rank_one_share(values).mean().item()
    return scalars


def detectors(data: ScoredSet, base: Tensor | None, law: Gaussian | None) -> dict[str, Tensor]:
    """Score the scored images by everything that tells outliers, higher for more normal.

    Args:
        data: The images.
        base: Embeddings of reference images that are not among them, (M, K).
        law: Fitted to ``base``.

    Returns:
        (B,) by name: ``jepa_score`` and, with a reference, ``log_density``, ``knn`` (minus the
        distance to the 10th neighbour) and ``mahalanobis`` (minus the squared distance).
    """
    found = {"jepa_score": data.scores}
    if base is None or law is None:
        return found
    embeddings = data.embeddings[: len(data.scores)].double()
    finite = torch.isfinite(embeddings).all(1)
    filled = torch.where(finite[:, None], embeddings, 0.0)
    found["log_density"] = data.log_density
    if len(base) >= _NEIGHBOURS:
        distances = knn_distance(filled, base, _NEIGHBOURS)
        found["knn"] = torch.where(finite, -distances, torch.nan)
    found["mahalanobis"] = torch.where(finite, -law.mahalanobis_squared(filled), torch.nan)
    return found


def density_scalars(probe: ScoredSet, reference: ScoredSet, law: Gaussian) -> dict[str, float]:
    """Say whether the density that the encoder claims agrees with the data.

    Args:
        probe: Held-out images.
        reference: Training images, of which the scored ones are not in the law.
        law: Of the reference's embeddings.

    Returns:
        ``density/*``: calibration of the law of the embeddings, Gaussianity, generalisation.
    """
    scalars: dict[str, float] = {}
    embeddings = probe.finite_embeddings
    if len(embeddings) > 1:
        levels = hdr_pit(embeddings, law)
        test = kolmogorov_smirnov(levels)
        scalars["density/calibration_error"] = calibration_error(levels).item()
        scalars["density/ks"] = test.distance.item()
    everything = torch.cat([embeddings, reference.finite_embeddings])
    if len(everything) > everything.shape[1]:
        normality = sliced_epps_pulley(everything, _SLICES, seed=0, standardized="whitened")
        scalars["density/gaussianity_effect"] = normality.effect_size.item()
        scalars["density/gaussianity_z"] = normality.z_score.item()
        # Random slices of wide embeddings look Gaussian whatever the law: the radius must too.
        radius = scalars.get("density/calibration_error", 1.0) < _CALIBRATED
        scalars["density/precondition"] = float(
            bool(normality.effect_size < _GAUSSIAN_EFFECT) and radius
        )
    scores, others = _finite(probe.scores), _finite(reference.scores)
    if len(scores) and len(others):
        ranks = rank_pit(scores, others)
        test = kolmogorov_smirnov(ranks, len(others))
        scalars["density/generalisation_gap"] = coverage_gap(ranks).item()
        scalars["density/generalisation_p"] = test.p_value.item()
    return {tag: value for tag, value in scalars.items() if math.isfinite(value)}


def outlier_scalars(
    probe: dict[str, Tensor], reference: dict[str, Tensor] | None
) -> dict[str, float]:
    """Measure what share of the probe is outlying.

    Args:
        probe: :func:`detectors` of the probe.
        reference: The same of reference images. Without, or with less than 19 of them, a robust
            fence takes the place of their quantile.

    Returns:
        ``outliers/<detector>`` with ``_low`` and ``_high``, the ends of the exact 95 % interval,
        and ``outliers/expected``; or ``outliers/<detector>_fence``.
    """
    scalars: dict[str, float] = {}
    for name, values in probe.items():
        finite = _finite(values)
        if not len(finite):
            continue
        others = finite[:0] if reference is None else _finite(reference[name])
        if len(others) < _LEAST_REFERENCE:
            share = (finite < robust_fence(finite)).double().mean()
            scalars[f"outliers/{name}_fence"] = share.item()
            continue
        found = outlier_fraction(finite, others, _ALPHA)
        scalars[f"outliers/{name}"] = found.fraction.item()
        scalars[f"outliers/{name}_low"] = found.lower.item()
        scalars[f"outliers/{name}_high"] = found.upper.item()
        scalars["outliers/expected"] = found.expected.item()
    return scalars


def ood_scalars(name: str, probe: dict[str, Tensor], ood: dict[str, Tensor]) -> dict[str, float]:
    """Measure how well each detector tells an out-of-distribution set from the probe.

    Args:
        name: What the set is called.
        probe: :func:`detectors` of the probe.
        ood: The same of the set.

    Returns:
        ``ood/<name>/auroc_<detector>``, ``fpr95_<detector>`` and ``ap_<detector>``.
    """
    scalars: dict[str, float] = {}
    for detector, values in probe.items():
        inside, outside = _finite(values), _finite(ood[detector])
        if len(inside) and len(outside):
            scalars[f"ood/{name}/auroc_{detector}"] = auroc(inside, outside).item()
            scalars[f"ood/{name}/fpr95_{detector}"] = fpr_at_tpr(inside, outside).item()
            scalars[f"ood/{name}/ap_{detector}"] = average_precision(inside, outside).item()
    return scalars


def polarity_scalars(scores: Tensor, corrupted: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    """Say whether images that are outliers by construction score lower, as they must.

    Args:
        scores: Scores of some images, (B,).
        corrupted: Scores of the same images by corruption and severity.

    Returns:
        ``density/polarity``, the share of pairs of an image and its worst versions in which the
        image scores higher, with ``_low`` and ``_high``, the ends of its 95 % interval (inverted
        where ``_high`` is below 0.5), each corruption's own share, and ``density/order``, minus the
        rank correlation of severity and score within an image.
    """
    scalars: dict[str, float] = {}
    order: list[Tensor] = []
    worst: list[Tensor] = []
    for name, versions in corrupted.items():
        levels = torch.stack([scores, *(versions[severity] for severity in sorted(versions))])
        pairs = torch.isfinite(levels[[0, -1]]).all(0)
        if pairs.any():
            share = paired_polarity(levels[0, pairs], levels[-1:, pairs]).polarity
            scalars[f"density/polarity_{name}"] = share.item()
        finite = torch.isfinite(levels).all(0)
        if finite.any():
            order.append(severity_order(levels[:, finite]))
        worst.append(levels[-1])
    if worst:
        everything = torch.stack([scores, *worst])
        finite = torch.isfinite(everything).all(0)
        if finite.any():
            found = paired_polarity(everything[0, finite], everything[1:, finite])
            scalars["density/polarity"] = found.polarity.item()
            scalars["density/polarity_low"] = found.lower.item()
            scalars["density/polarity_high"] = found.upper.item()
    if order:
        scalars["density/order"] = torch.stack(order).mean().item()
    return scalars
