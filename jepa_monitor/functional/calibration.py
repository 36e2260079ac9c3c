"""Does the density that the encoder claims agree with the data?

Three questions, three kinds of number from 0 to 1, uniform if all is well:

- *Law*: :func:`hdr_pit` of probe embeddings under the normal law of the reference.
- *Generalisation*: :func:`rank_pit` of probe scores among reference scores. It shows memorisation,
  not whether the density is right.
- *Known density*: :func:`density_agreement`, where the truth is known by construction.

The curve, the error and the gap take either kind of number; the Kolmogorov-Smirnov test is that of
one sample for levels of a law, of two for scores (:func:`two_sample_kolmogorov_smirnov`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_unit_interval, as_vector, require_same_shape
from jepa_monitor.functional._intervals import kolmogorov_tail, midranks, wilson_interval

if TYPE_CHECKING:
    from jepa_monitor.functional.gaussian import Gaussian


class CoverageCurve(NamedTuple):
    """Reliability diagram: four float64 tensors of shape (num_levels,)."""

    level: Tensor
    coverage: Tensor
    lower: Tensor
    upper: Tensor


class KolmogorovSmirnov(NamedTuple):
    """Kolmogorov-Smirnov test; both fields 0-dimensional float64 tensors."""

    distance: Tensor
    p_value: Tensor


class DensityAgreement(NamedTuple):
    """Agreement of a score with the true log-density; 0-dimensional float64 tensors."""

    spearman: Tensor
    pearson: Tensor
    slope: Tensor


def hdr_pit(embeddings: Tensor, gaussian: Gaussian) -> Tensor:
    r"""Level of the smallest highest-density region of a normal law that holds each embedding.

    .. math::
        u = F_{\chi^2_K}\bigl((z-\mu)^\top \Sigma^{-1} (z-\mu)\bigr)

    Range 0 (at the mode) to 1 (far out); uniform if the embeddings follow the law and were not
    used to fit it. Values near 1 mean that the law is too narrow, near 0 too wide. It tests radii
    only: a law of the right radii in wrong directions passes.

    Args:
        embeddings: Probe embeddings, shape (N, K).
        gaussian: Law of the reference embeddings. With N ≫ K of them its own error is negligible.

    Returns:
        Float64 tensor, shape (N,).

    Source:
        Hyndman (American Statistician 50, 1996) for the regions; the levels are the HPD values of
        Deistler et al. (arXiv 2210.04815) in closed form.

    Example:
        >>> import torch
        >>> from jepa_monitor.functional.gaussian import Gaussian
        >>> law = Gaussian(torch.zeros(2).double(), torch.eye(2).double(), 100, 0.0)
        >>> hdr_pit(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), law)
        tensor([0.0000, 0.6321], dtype=torch.float64)
    """
    squared = gaussian.mahalanobis_squared(embeddings)
    levels: Tensor = torch.special.gammainc(squared.new_tensor(gaussian.width / 2), squared / 2)
    return levels


def rank_pit(scores: Tensor, reference_scores: Tensor) -> Tensor:
    r"""Rank of each probe score among the reference scores, as a number from 0 to 1.

    .. math::
        u = \frac{\#\{m : s_m < s\} + \tfrac12 \#\{m : s_m = s\} + \tfrac12}{M + 1}

    Range ½/(M + 1) to 1 − ½/(M + 1); uniform on that grid if probe and reference scores have one
    law. Low values mean that held-out data are less likely to the density than the training data:
    memorisation or a shift. Ties get the middle of their interval, so that scores which are all
    equal give ½ throughout, which is not uniform. All u share one reference and are not independent:
    whether both laws are one, :func:`two_sample_kolmogorov_smirnov` asks.

    Args:
        scores: Probe scores, shape (N,), higher is denser.
        reference_scores: Reference scores, shape (M,).

    Returns:
        Float64 tensor, shape (N,).

    Source:
        Talts et al., Simulation-based calibration (arXiv 1804.06788), Sec. 4, with mid-ranks.

    Example:
        >>> import torch
        >>> rank_pit(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.1250, 0.5000, 0.8750], dtype=torch.float64)
    """
    values = as_vector(scores, "scores")
    reference = as_vector(reference_scores, "reference_scores").sort().values
    below = torch.searchsorted(reference, values, right=False)
    up_to = torch.searchsorted(reference, values, right=True)
    return (below + up_to + 1).double() / (2 * (len(reference) + 1))


def coverage_curve(u: Tensor, num_levels: int = 19, confidence: float = 0.95) -> CoverageCurve:
    """Share of u up to each level, with Wilson intervals.

    Healthy is coverage = level. For :func:`hdr_pit`, above the diagonal the law is too wide
    (conservative), below it too narrow (overconfident).

    Args:
        u: Numbers from 0 to 1, shape (N,).
        num_levels: Number L of levels i/(L + 1), i = 1 … L; 19 gives 0.05 … 0.95.
        confidence: Level of the intervals, each on its own.

    Returns:
        Levels, coverage in [0, 1], and both ends of its interval.

    Source:
        Deistler et al. (arXiv 2210.04815), expected coverage.

    Example:
        >>> import torch
        >>> coverage_curve(torch.tensor([0.1, 0.2, 0.6, 0.9]), num_levels=3).coverage
        tensor([0.5000, 0.5000, 0.7500], dtype=torch.float64)
    """
    values = as_unit_interval(u, "u").sort().values
    check_positive_int(num_levels, "num_levels")
    steps = torch.arange(1, num_levels + 1, dtype=torch.float64, device=values.device)
    level = steps / (num_levels + 1)
    successes = torch.searchsorted(values, level, right=True)
    lower, upper = wilson_interval(successes, len(values), confidence)
    return CoverageCurve(level, successes.double() / len(values), lower, upper)


def calibration_error(u: Tensor, num_levels: int = 19) -> Tensor:
    """Mean absolute difference of coverage and level.

    Range 0 to about ½; lower is healthier. Perfect calibration does not read 0 but about
    0.31/√N, for N independent values.

    Args:
        u: Numbers from 0 to 1, shape (N,).
        num_levels: Number of levels, as in :func:`coverage_curve`.

    Returns:
        0-dimensional float64 tensor.

    Source:
        Kuleshov et al. (ICML 2018, arXiv 1807.00263), Sec. 3.5, with absolute differences.

    Example:
        >>> import torch
        >>> calibration_error(torch.tensor([0.1, 0.2, 0.6, 0.9]), num_levels=3)
        tensor(0.0833, dtype=torch.float64)
    """
    curve = coverage_curve(u, num_levels)
    return (curve.coverage - curve.level).abs().mean()


def coverage_gap(u: Tensor) -> Tensor:
    r"""Signed area between the coverage curve and the diagonal, ½ − mean(u).

    Range −½ to ½; 0 is healthy. For :func:`hdr_pit` a positive gap is a law too wide, a negative
    one too narrow; for :func:`rank_pit` a positive gap is held-out data less likely than training
    data. Opposite errors cancel: read it beside :func:`calibration_error`. Its standard deviation
    under calibration is 0.289/√N.

    Args:
        u: Numbers from 0 to 1, shape (N,).

    Returns:
        0-dimensional float64 tensor.

    Source:
        The identity ∫(F(a) − a) da = ½ − E[u] for numbers from 0 to 1.

    Example:
        >>> import torch
        >>> coverage_gap(torch.tensor([0.1, 0.2, 0.6, 0.9]))
        tensor(0.0500, dtype=torch.float64)
    """
    return 0.5 - as_unit_interval(u, "u").mean()


def kolmogorov_smirnov(u: Tensor) -> KolmogorovSmirnov:
    r"""Kolmogorov-Smirnov test of uniformity.

    .. math:: D = \sup_a \lvert F_N(a) - a \rvert

    Range 1/(2N) to 1; lower is healthier. The p-value is uniform if the u are independent and
    uniform, as levels of a known law are. It is invalid where the law was fitted to the same data,
    and it says little about the tails.

    Args:
        u: Numbers from 0 to 1, shape (N,).

    Returns:
        Distance D and p-value, the latter within 3e-3 of the exact law for N ≥ 10.

    Source:
        Kolmogorov (1933); Vrbik (2018) for the p-value.

    Example:
        >>> import torch
        >>> test = kolmogorov_smirnov((torch.arange(100) + 0.5) / 100)
        >>> test.distance, test.p_value
        (tensor(0.0050, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    values = as_unit_interval(u, "u").sort().values
    count = len(values)
    steps = torch.arange(count, device=values.device, dtype=values.dtype)
    above = ((steps + 1) / count - values).max()
    below = (values - steps / count).max()
    distance = torch.maximum(above, below)
    p_value = kolmogorov_tail(float(distance), float(count))
    return KolmogorovSmirnov(distance, distance.new_tensor(p_value))


def two_sample_kolmogorov_smirnov(scores: Tensor, reference_scores: Tensor) -> KolmogorovSmirnov:
    r"""Kolmogorov-Smirnov test that two samples are of one law.

    .. math:: D = \sup_s \lvert F_N(s) - G_M(s) \rvert

    Range 0 to 1; lower is healthier. The p-value is the share of all orders of the N + M scores
    that lie at least as far apart: exact for any N and M. Ties make it conservative, so that equal
    scores of one law read 1. It says little about the tails. Time O((N + M)·N).

    Args:
        scores: Probe scores, shape (N,).
        reference_scores: Reference scores, shape (M,).

    Returns:
        Distance D and p-value.

    Source:
        Hodges (Arkiv för Matematik 3, 1958): lattice paths that stay inside a band.

    Example:
        >>> import torch
        >>> two_sample_kolmogorov_smirnov(torch.arange(4.0), torch.arange(4.0) + 2)
        KolmogorovSmirnov(distance=tensor(0.5000, dtype=torch.float64), p_value=tensor(0.7714, dtype=torch.float64))
    """
    values = as_vector(scores, "scores").sort().values
    others = as_vector(reference_scores, "reference_scores").sort().values.to(values.device)
    n, m = len(values), len(others)
    points = torch.cat([values, others])
    below = torch.searchsorted(values, points, right=True)
    reference_below = torch.searchsorted(others, points, right=True)
    # In whole numbers, N·M times the distance: nothing is lost where two are equal.
    apart = int((below * m - reference_below * n).abs().max())
    return KolmogorovSmirnov(
        values.new_tensor(apart / (n * m)), values.new_tensor(_lattice_tail(apart, n, m))
    )


def _lattice_tail(apart: int, n: int, m: int) -> float:
    """Probability that a random order of n and m scores comes as far apart as ``apart`` / (n·m)."""
    if apart == 0:
        return 1.0
    drawn = torch.arange(n + 1, dtype=torch.float64)  # how many of the first sample came so far
    inside = (drawn == 0).double()
    lost = 0.0
    for step in range(n + m):
        first = inside * (n - drawn) / (n + m - step)
        inside = inside * (m - step + drawn).clamp_min(0) / (n + m - step)
        inside[1:] += first[:-1]
        far = (drawn * m - (step + 1 - drawn) * n).abs() >= apart
        lost += float(inside[far].sum())
        inside[far] = 0
    return min(lost, 1.0)


def density_agreement(scores: Tensor, true_log_density: Tensor) -> DensityAgreement:
    """Agreement of a score with a known log-density.

    Correlations range from −1 to 1; higher is healthier, and a negative one is an inverted score.
    The slope is that of the score regressed on the truth: 1 is calibrated up to a constant, less
    is a density too flat, more too steep. A score that does not vary reads 0 in all three.

    Args:
        scores: Scores in nats, shape (N,), N ≥ 2.
        true_log_density: The truth in nats, shape (N,).

    Returns:
        Spearman's and Pearson's correlation and the slope.

    Source:
        Spearman (1904) with mid-ranks for ties; Pearson (1895); least squares.

    Example:
        >>> import torch
        >>> truth = torch.tensor([-3.0, -2.0, -1.0, 0.0])
        >>> density_agreement(0.5 * truth + 7, truth).slope
        tensor(0.5000, dtype=torch.float64)
    """
    score = as_vector(scores, "scores", min_size=2)
    truth = as_vector(true_log_density, "true_log_density", min_size=2)
    require_same_shape(score, truth, ("scores", "true_log_density"))
    pearson, slope = _correlate(score, truth)
    spearman, _ = _correlate(midranks(score), midranks(truth))
    return DensityAgreement(spearman, pearson, slope)


def _correlate(score: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if (score == score[0]).all() or (truth == truth[0]).all():
        return score.new_zeros(()), score.new_zeros(())
    x, y = truth - truth.mean(), score - score.mean()
    covariance, variance = (x * y).sum(), x.square().sum()
    correlation = covariance / (variance * y.square().sum()).sqrt()
    return correlation.clamp(-1, 1), covariance / variance
