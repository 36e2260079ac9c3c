"""How far cheap scores can be trusted: in go these and exact scores of a few images, out come words.

Splitting a sketch's rows into halves does not tell: both halves are blind to the same small singular
values, agree with each other at 0.99 and may still order images at random (docs/sketching.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_same_shape
from jepa_monitor.functional._intervals import correlation_interval
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.options import ScoreOptions
from jepa_monitor.jacobian.response import RespondingLaw
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.spectra import Spectra

__all__ = [
    "LEAST",
    "TRIED",
    "TRUSTED",
    "SketchAgreement",
    "method_words",
    "settle",
    "sketch_agreement",
]

TRUSTED = 0.9  # correlation with exact scores
TRIED = 8  # images that are scored exactly as well
LEAST = 4  # fewer say nothing
_MORE = 16
_DEEPER = (1, 2, 4)  # times the steps
_WIDER = (1, 2, 4, 8)  # times the starts
_BROAD = 16  # starts of estimates of a single step, and a start for so many of K


class SketchAgreement(NamedTuple):
    """Sketched or estimated scores against exact ones of the same images.

    Args:
        correlation: Pearson's; NaN if either does not vary.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
        error: Standard deviation of the exact scores minus K/R times the sketched ones, or minus the
            estimates, in nats.
        spread: Standard deviation of the exact scores, in nats.
        images: How many.
        rows: R.
        steps: Blocks of rows of an estimate by ``"lanczos"``; 0 of a sketch.
    """

    correlation: float
    lower: float
    upper: float
    error: float
    spread: float
    images: int
    rows: int
    steps: int = 0

    def __str__(self) -> str:
        """Say it in words."""
        kind = f"estimates of {self.steps} steps and" if self.steps else "sketches of"
        return (
            f"{kind} {self.rows} rows correlate {self.correlation:.2f} ({self.lower:.2f} to "
            f"{self.upper:.2f}) with exact scores of {self.images} images, which spread by "
            f"{self.spread:.1f} nats, and miss them by {self.error:.1f}"
        )


def sketch_agreement(
    sketched: Tensor, exact: Tensor, rows: int, width: int, steps: int = 0
) -> SketchAgreement:
    """Compare sketched or estimated scores with exact ones.

    Args:
        sketched: Scores of some images, (n,), n ≥ 4, finite.
        exact: Exact scores of the same images, (n,), finite.
        rows: R.
        width: K.
        steps: Of an estimate by ``"lanczos"``, which has the scale of exact scores; 0 of a sketch.

    Returns:
        Correlation, error and spread.

    Source:
        Fisher (Metron 1, 1921) for the interval.

    Example:
        >>> import torch
        >>> exact = torch.tensor([-5.0, -3.0, -1.0, 2.0, 4.0])
        >>> found = sketch_agreement(exact / 4 + 7, exact, 16, 64)
        >>> round(found.correlation, 6), round(found.error, 6)
        (1.0, 0.0)
    """
    ours = as_vector(sketched, "sketched", min_size=LEAST)
    truth = as_vector(exact, "exact", min_size=LEAST)
    require_same_shape(ours, truth, ("sketched", "exact"))
    scale = 1.0 if steps else width / rows
    error, spread = float((truth - scale * ours).std()), float(truth.std())
    numbers = (error, spread, len(ours), rows, steps)
    # Scores that differ by rounding have no order that a sketch could keep.
    resolution = 1e-6 * float(torch.cat([ours, truth]).abs().max())
    if spread <= resolution or float(ours.std()) <= resolution:
        return SketchAgreement(math.nan, math.nan, math.nan, *numbers)
    correlation = float(torch.corrcoef(torch.stack([ours, truth]))[0, 1].clamp(-1, 1))
    lower, upper = correlation_interval(correlation, len(ours))
    return SketchAgreement(correlation, lower, upper, *numbers)


def method_words(found: Spectra, law: Gaussian | None, options: ScoreOptions) -> str:
    """Say how scores were made.

    Args:
        found: What was found.
        law: Of the embeddings of a reference set.
        options: How it was asked for.

    Returns:
        Such as ``"sketch, 12 of 192 rows, whitened"``.
    """
    width = found.embeddings.shape[1]
    kind = "plain" if law is None else "whitened"
    if found.samples is not None:
        starts, steps = found.samples.shape[1], options.depth
        if isinstance(law, RespondingLaw):
            kind = "whitened by the response to noise"
        step = "1 step" if steps == 1 else f"{steps} steps"
        words = f"lanczos, {starts} starts, {step}, {starts * steps} of {width} rows, {kind}"
        return f"{words}, {found.products}" if found.products else words
    if found.basis is not None:
        return f"sketch, {len(found.basis)} of {width} rows, {kind}"
    return f"exact, {width} rows"


class _Trial:
    """Exact scores of a few images, and how others agree with them."""

    def __init__(
        self, options: ScoreOptions, spectra_of: Callable[[Tensor, ScoreOptions], Spectra]
    ) -> None:
        self._exactly = options.turned("exact")
        self._spectra_of = spectra_of
        self._exact = torch.zeros(0, dtype=torch.float64)

    def exact(self, few: Tensor) -> Tensor:
        """Score them exactly, those that are not yet."""
        rest = few[len(self._exact) :]
        if len(rest):
            found = self._spectra_of(rest, self._exactly)
            self._exact = torch.cat([self._exact, found.scores(self._exactly.eps).cpu()])
        return self._exact[: len(few)]

    def agreement(
        self, few: Tensor, options: ScoreOptions, found: Spectra
    ) -> SketchAgreement | None:
        """Compare; ``None`` if too few scores are finite."""
        exact, ours = self.exact(few), found.scores(options.eps).cpu()
        finite = torch.isfinite(ours) & torch.isfinite(exact)
        if int(finite.sum()) < LEAST:
            return None
        if found.samples is not None:
            steps, width = options.depth, found.embeddings.shape[1]
            rows = found.samples.shape[1] * steps
        else:
            assert found.basis is not None
            (rows, width), steps = found.basis.shape, 0
        return sketch_agreement(ours[finite], exact[finite], rows, width, steps)


def _ladder(options: ScoreOptions, width: int, inputs: int, whitened: bool) -> list[ScoreOptions]:
    """Give the sketches and estimates that are cheaper than all rows, the cheapest first."""
    whole, found = min(width, inputs), []
    if options.method == "auto" and (rows := row_count(options, width, inputs, whitened)):
        while 2 * rows <= width:
            found.append((rows, dataclasses.replace(options, rows=rows)))
            rows *= 2
    deep = options.turned("lanczos", options.rows if options.method == "lanczos" else None)
    deep = dataclasses.replace(
        deep, steps=options.steps, tolerance=options.tolerance, correlation=options.correlation
    )
    rows = row_count(deep, width, inputs, whitened)
    if rows and options.rows is None and options.steps is None:
        # On narrow embeddings what is missing is rows, not depth.
        broad = max(_BROAD, -(-width // _BROAD))
        while 2 * broad <= whole:
            found.append((broad, dataclasses.replace(deep, rows=broad, steps=1)))
            broad *= 2
    for wider in _WIDER if rows else ():
        for deeper in _DEEPER:
            assert rows is not None
            more, steps = wider * deeper * rows, deeper * deep.depth
            # A product J v is taken to cost what a backward pass does.
            cost = 2 * more - more // steps
            if cost < whole:
                found.append((cost, dataclasses.replace(deep, rows=more, steps=steps)))
    begun = (options.rows or 0) if options.method == "auto" else 0  # it never becomes fewer
    found = [(cost, how) for cost, how in found if cost >= begun]
    return [how for _, how in sorted(found, key=lambda pair: pair[0])]


def _good(found: SketchAgreement, options: ScoreOptions) -> bool:
    """Say whether it is good enough: for scores that do not vary, only an error can be."""
    if options.tolerance is not None and not found.error <= options.tolerance:
        return False
    return options.correlation is None or found.correlation >= options.correlation


def _settle_on(
    options: ScoreOptions,
    images: Tensor,
    spectra_of: Callable[[Tensor, ScoreOptions], Spectra],
    inputs: int,
) -> tuple[ScoreOptions, SketchAgreement | None]:
    """Take the cheapest that is good enough; all rows where nothing is."""
    few = images[:_MORE]
    exactly = options.turned("exact")
    if len(few) < LEAST:
        return exactly, None
    trial, agreement = _Trial(options, spectra_of), None
    one = spectra_of(few[:1], exactly)
    width = one.embeddings.shape[1]
    # Where there is no reference a sketch would be plain: `auto` does not.
    plain = dataclasses.replace(options, rows=None) if options.method == "auto" else options
    whitened = plain.method == "auto" and row_count(plain, width, inputs, True) is not None
    for how in _ladder(options, width, inputs, whitened):
        try:
            found = spectra_of(few, how)
        except ValueError:  # no products J v can be had, where all rows can
            if options.method == "auto" and how.method == "lanczos":
                continue
            raise
        if found.basis is None and found.samples is None:
            continue
        agreement = trial.agreement(few, how, found)
        if agreement is not None and _good(agreement, options):
            return how, agreement
    return exactly, agreement


def settle(
    options: ScoreOptions,
    images: Tensor,
    spectra_of: Callable[[Tensor, ScoreOptions], Spectra],
    inputs: int | None = None,
) -> tuple[ScoreOptions, SketchAgreement | None]:
    """Measure how far a sketch or an estimate can be trusted, and take more where it cannot.

    The first 8 images are scored exactly as well. Where the two correlate below 0.9, ``auto`` looks
    at 16, and if it stays so doubles the rows, up to half of all; then it takes all. With a ``tolerance``
    or a ``correlation`` the cheapest way that meets them on 16 images is taken, all rows where none does,
    or where there are fewer than 4 images to tell by.

    Args:
        options: How to score.
        images: Some images, (B, ...); of fewer than 4 nothing is measured.
        spectra_of: Takes their Jacobians with given options.
        inputs: D; default: the numbers of an image.

    Returns:
        How to score then, and how far sketches or estimates, the last ones tried, agree with exact
        scores; ``None`` where all rows are taken anyway or too few scores are finite.
    """
    if options.demanding:
        return _settle_on(options, images, spectra_of, inputs or images[0].numel())
    few = images[:TRIED]
    if len(few) < LEAST:
        return options, None
    trial, found = _Trial(options, spectra_of), spectra_of(few, options)
    while found.basis is not None or found.samples is not None:
        agreement = trial.agreement(few, options, found)
        if agreement is None:
            return options, None
        if options.method != "auto" or not agreement.correlation < TRUSTED:
            return options, agreement
        assert found.basis is not None  # `auto` by itself does not go deeper
        rows, width = found.basis.shape
        if len(few) < min(_MORE, len(images)):
            few = images[:_MORE]
        elif 4 * rows <= width:
            options = dataclasses.replace(options, rows=2 * rows)
        else:
            return options.turned("exact"), agreement
        found = spectra_of(few, options)
    return options, None
