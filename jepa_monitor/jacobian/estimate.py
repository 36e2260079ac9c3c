"""Scores and how far to trust them: in go an encoder and images, out come estimates with their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._settings import takes
from jepa_monitor.encoders import Embedder, Pool
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.engine import spectra
from jepa_monitor.jacobian.options import ScoreArguments, ScoreOptions
from jepa_monitor.jacobian.prepared import prepared
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.trust import SketchAgreement, method_words, settle

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ScoreEstimate", "estimate_errors", "estimate_scores", "spectra_within"]

_SHARED = 4  # so many starts' worth of weight has the mean variance of all images in that of one


class ScoreEstimate(NamedTuple):
    """Scores, and what is known of their errors.

    Args:
        scores: (B,), float64, nats; NaN where the Jacobian is not finite.
        errors: Half the width of about a 95 % interval about each estimate by ``"lanczos"``, for
            differences from the other images' scores, (B,), float64, nats
            (:func:`estimate_errors`); 0 of exact scores, NaN where nothing can be said, as of a sketch.
        options: The settings that were used; with a ``tolerance``, those that it led to.
        method: What was done, in words.
        agreement: How far estimates follow exact scores of the first images, where that was measured:
            with a ``tolerance`` or a ``correlation``.
    """

    scores: Tensor
    errors: Tensor
    options: ScoreOptions
    method: str
    agreement: SketchAgreement | None


def estimate_errors(samples: Tensor) -> Tensor:
    r"""Say how far estimates of ``"lanczos"`` may be from the exact scores, up to what all images share.

    With :math:`q_i` what start i says of an image, less the mean of that over the images, the variance of
    the mean of n starts is :math:`\operatorname{var}_i q_i / n`; of few starts it is known badly and is
    drawn to the mean over the images. To it the square of what the last step has changed is added. Twice the
    root of the sum held the error of 91 to 100 % of images under ViTs, whose spectrum is flat in the coordinates
    that are used, and **of 12 to 70 % under encoders where it is not** (docs/sketching.md).

    Args:
        samples: (B, n, 2), nats: what each start says, and by how much its last step has changed that.

    Returns:
        (B,), float64; NaN for one start, one step, fewer than two images, and where a sample is not finite.
    """
    count, starts = samples.shape[:2]
    found = samples.new_full((count,), torch.nan)
    finite = torch.isfinite(samples).flatten(1).all(1)
    if starts < 2 or int(finite.sum()) < 2:
        return found
    now, change = samples[finite].unbind(2)
    own = (now - now.mean(0)).var(1) / starts
    variance = ((starts - 1) * own + _SHARED * own.mean()) / (starts - 1 + _SHARED)
    changed = change.mean(1)
    found[finite] = 2 * (variance + (changed - changed.mean()).square()).sqrt()
    return found


def spectra_within(
    embedder: Embedder, images: Tensor, options: ScoreOptions, law: Gaussian | None
) -> tuple[Spectra, ScoreOptions, SketchAgreement | None]:
    """Take the Jacobians of images, as dearly as what is good enough asks for.

    Args:
        embedder: The encoder.
        images: (B, ...), checked, on the encoder's device.
        options: How to score.
        law: Of the embeddings of a reference set.

    Returns:
        What was found, the settings that were used, and how far they agree with exact scores, where that
        was measured.
    """
    agreement = None
    if options.demanding:
        options, agreement = settle(
            options,
            images,
            lambda some, how: spectra(embedder, some, how, law),
            embedder.input_count(images),
        )
    return spectra(embedder, images, options, law), options, agreement


@takes(ScoreOptions, method="lanczos")
def estimate_scores(
    encoder: Any,
    images: Tensor,
    *,
    reference: Any = None,
    pool: Pool = "auto",
    **options: Unpack[ScoreArguments],
) -> ScoreEstimate:
    """Score images, and say how far the scores may be off and what they took.

    Args:
        encoder: A module or callable that maps (B, ...) to (B, K), tokens, maps or structures.
        images: (B, ...), floating point, as the encoder takes them.
        reference: Images of the training distribution (a tensor, Dataset or DataLoader): the response
            of their embeddings to noise makes estimates better by far. Or a fitted
            :class:`~jepa_monitor.functional.gaussian.Gaussian`.
        pool: How outputs become (B, K); see :func:`~jepa_monitor.encoders.pooling.pool_output`.
        **options: See :class:`~jepa_monitor.ScoreOptions`; the method is ``"lanczos"`` by default.

    Returns:
        Scores, errors and the method in words.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, as for :func:`~jepa_monitor.jepa_score`.
        MemoryError: If a single image does not fit into memory.

    Example:
        >>> import torch
        >>> from jepa_monitor.jacobian import estimate_scores
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Tanh())
        >>> found = estimate_scores(encoder, torch.randn(32, 96))
        >>> found.scores.shape, found.method
        (torch.Size([32]), 'lanczos, 6 starts, 2 steps, 12 of 64 rows, plain, differences')
    """
    how = ScoreOptions(**{"method": "lanczos", **options})  # type: ignore[arg-type]
    embedder, images, law = prepared(encoder, images, how, reference, pool)
    found, how, agreement = spectra_within(embedder, images, how, law)
    scores = found.scores(how.eps)
    if found.samples is not None:
        errors = estimate_errors(found.samples)
    else:
        errors = torch.full_like(scores, 0.0 if found.basis is None else torch.nan)
    errors = torch.where(torch.isfinite(scores), errors, torch.nan)
    method = method_words(found, law, how)
    if agreement is not None:
        method += f"; {agreement}"
    return ScoreEstimate(scores, errors, how, method, agreement)
