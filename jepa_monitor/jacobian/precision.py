"""Is float32, or TF32, enough: in go an encoder and a few images, out comes a verdict in one sentence."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.functional.calibration import density_agreement
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.prepared import check_inputs
from jepa_monitor.jacobian.spectrum import log_volume

__all__ = ["PrecisionAudit", "audit_precision"]

# Of TF32 more is allowed: who takes it wants the order of scores, which lie nats apart.
_GOOD_NATS = {"float32": 0.02, "tf32": 0.2}
_BETTER = {"float32": "float64", "tf32": "float32"}


class PrecisionAudit(NamedTuple):
    """How scores of float32, or TF32, compare with those of float64.

    Args:
        difference: Score minus float64 score of each image, in nats, (B,), float64.
        spearman: Rank correlation of the two.
        under_floor: Singular values below the noise floor that were not refined, (B,).
        verdict: The finding in one sentence.
        random: How far another seed moves the scores, in nats, (B,), float64; 0 for an encoder that
            repeats itself.
    """

    difference: Tensor
    spearman: float
    under_floor: Tensor
    verdict: str
    random: Tensor


def audit_precision(
    encoder: Any,
    images: Tensor,
    *,
    eps: float = 1e-6,
    pool: Pool = "auto",
    precision: str = "float32",
) -> PrecisionAudit:
    """Compare the scores of a few images in float32, or with TF32, with those in float64.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), at least 3; float64 costs several times float32.
        eps: Singular values below it count as it.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        precision: ``"float32"`` or ``"tf32"``, as in :class:`~jepa_monitor.ScoreOptions`.

    Returns:
        The audit.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there are fewer than 3 images, or for what :func:`jepa_score` raises.
    """
    check_choice(precision, "precision", ("float32", "tf32"))
    images = check_inputs(encoder, images)
    if len(images) < 3:
        raise ValueError(f"`images` must hold at least 3 images, got {len(images)}.")
    embedder = Embedder(encoder, pool)
    how = ScoreOptions(eps=eps, precision=precision)
    low = spectra(embedder, images, how)
    high = spectra(embedder.to(torch.float64), images, ScoreOptions(eps=eps, precision="float64"))
    scores = log_volume(low.singular_values, eps), log_volume(high.singular_values, eps)
    difference = scores[0] - scores[1]
    spearman = float(density_agreement(*scores).spearman)
    worst, under = float(difference.abs().max()), int(low.under_floor.max())
    good = worst <= _GOOD_NATS[precision]
    verdict = (
        f"{precision} is {'good' if good else 'not good'} enough for this encoder: it is off by at most "
        f"{worst:.2g} nats on {len(images)} images, with Spearman {spearman:.3f} and up to {under} "
        f"singular values below its noise floor"
        + ("." if good else f'; use precision="{_BETTER[precision]}".')
    )
    random = torch.zeros_like(difference)
    if embedder.randomness:
        other = spectra(embedder.reseeded(1), images, how)
        random = log_volume(other.singular_values, eps) - scores[0]
        verdict = (
            "no precision is good enough for this encoder, which is random in eval mode, or counts its "
            f"passes: another seed moves its scores by up to {float(random.abs().max()):.2g} nats on "
            f"{len(images)} images. With the same seed, {precision} is off by at most {worst:.2g} nats."
        )
    return PrecisionAudit(difference, spearman, low.under_floor, verdict, random)
