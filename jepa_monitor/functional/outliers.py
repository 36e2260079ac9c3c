"""How many probe samples are outliers, and how well a score tells OOD samples apart.

All scores are *densities*: higher means more usual. In-distribution samples are the positives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import (
    as_matrix,
    as_vector,
    require_number,
    require_same_width,
)
from jepa_monitor.functional._intervals import clopper_pearson_interval, midranks

_BLOCK = 1024  # rows of the distance matrix held at a time


class OutlierFraction(NamedTuple):
    """Share of outliers; every field a 0-dimensional float64 tensor.

    Args:
        fraction: Share of the probe under the threshold.
        lower: Lower end of its exact binomial interval.
        upper: Upper end.
        expected: What the share is on average if probe and reference have one law, at most α.
        threshold: The score that separates.
    """

    fraction: Tensor
    lower: Tensor
    upper: Tensor
    expected: Tensor
    threshold: Tensor


def outlier_fraction(
    scores: Tensor, reference_scores: Tensor, alpha: float = 0.05, confidence: float = 0.95
) -> OutlierFraction:
    r"""Share of probe scores under the α-quantile of the reference scores.

    The threshold is the ⌊α(M + 1)⌋-th smallest reference score: a new score of the same law lies
    under it with probability ⌊α(M + 1)⌋/(M + 1) exactly, if scores have no ties.

    Range 0 to 1; healthy is the expected share inside the interval. More is a shift or
    memorisation; scores that are all equal read 0, with an upper end that rules the expected share
    out. The interval is exact for a *given* threshold; the threshold itself varies with the
    reference, which the variance α(1 − α)/M measures.

    Args:
        scores: Probe scores, shape (N,), higher is denser.
        reference_scores: Reference scores, shape (M,), M ≥ 1/α − 1.
        alpha: Share to expect.
        confidence: Level of the interval.

    Returns:
        The share, its interval, the expected share and the threshold.

    Source:
        Clopper & Pearson (Biometrika 26, 1934) for the interval; the order statistic is that of
        split conformal prediction (Vovk et al., 2005).

    Example:
        >>> import torch
        >>> result = outlier_fraction(torch.arange(100.0) - 5, torch.arange(99.0), alpha=0.05)
        >>> result.fraction, result.expected, result.threshold
        (tensor(0.0900, dtype=torch.float64), tensor(0.0500, dtype=torch.float64), tensor(4., dtype=torch.float64))
    """
    values = as_vector(scores, "scores")
    threshold, expected = reference_threshold(reference_scores, alpha)
    below = int((values < threshold.to(values.device)).sum())
    return summarize_outliers(below, len(values), threshold, expected, confidence)


def reference_threshold(reference_scores: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Threshold of :func:`outlier_fraction`.

    Args:
        reference_scores: Reference scores, shape (M,).
        alpha: Share to expect.

    Returns:
        The threshold, 0-dimensional, and the share that it makes expected.

    Raises:
        ValueError: If the reference is too small for α.
    """
    reference = as_vector(reference_scores, "reference_scores")
    require_number(alpha, "alpha", 0, 1, closed=False)
    count = len(reference)
    order = math.floor(alpha * (count + 1) + 1e-9)
    if order < 1:
        raise ValueError(
            f"`reference_scores` must have at least {math.ceil(1 / alpha) - 1} values for "
            f"alpha={alpha:g}, got {count}."
        )
    return reference.sort().values[order - 1], order / (count + 1)


def summarize_outliers(
    below: int, total: int, threshold: Tensor, expected: float, confidence: float
) -> OutlierFraction:
    """Share and interval from a count.

    Args:
        below: Number of scores under the threshold.
        total: Number of scores.
        threshold: The threshold.
        expected: The share that it makes expected.
        confidence: Level of the interval.

    Returns:
        The filled tuple.
    """
    lower, upper = clopper_pearson_interval(below, total, confidence)
    numbers = (below / total, lower, upper, expected)
    fraction = [threshold.new_tensor(number) for number in numbers]
    return OutlierFraction(fraction[0], fraction[1], fraction[2], fraction[3], threshold)


def robust_fence(scores: Tensor, k: float = 3.0) -> Tensor:
    r"""Lower fence median − k·1.4826·MAD: scores under it are outliers without any reference.

    The median absolute deviation times 1.4826 estimates a normal law's standard deviation and
    bears up to half of the scores being outliers. Under a normal law 0.13 % lie under the fence
    for k = 3. Where more than half of the scores are equal the MAD is 0 and the fence is the
    median, so that every lower score counts.

    Args:
        scores: Scores, shape (N,), higher is denser.
        k: Width of the fence in standard deviations.

    Returns:
        0-dimensional float64 tensor.

    Source:
        Leys et al. (J. Experimental Social Psychology 49, 2013).

    Example:
        >>> import torch
        >>> robust_fence(torch.tensor([1.0, 2.0, 3.0, 4.0, -500.0]))
        tensor(-2.4478, dtype=torch.float64)
    """
    values = as_vector(scores, "scores")
    require_number(k, "k", 0, closed=False)
    centre = _median(values)
    return centre - k * 1.4826 * _median((values - centre).abs())


def auroc(scores: Tensor, ood_scores: Tensor) -> Tensor:
    """Probability that an in-distribution sample scores above an OOD sample; ties count half.

    Range 0 to 1; 1 is perfect, ½ chance, and below ½ the score is inverted. Scores that are all
    equal read ½.

    Args:
        scores: Scores of in-distribution samples, shape (N,), higher is denser.
        ood_scores: Scores of OOD samples, shape (M,).

    Returns:
        0-dimensional float64 tensor.

    Source:
        Hanley & McNeil (Radiology 143, 1982); computed by torchmetrics on ranks.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))
        tensor(0.7500, dtype=torch.float64)
    """
    return binary_auroc(*_ranks_and_labels(scores, ood_scores)).double()


def average_precision(scores: Tensor, ood_scores: Tensor) -> Tensor:
    """Average precision of finding the in-distribution samples at the top.

    Range 0 to 1; 1 is perfect, N/(N + M) chance: it depends on the share of OOD samples, so do
    not compare it across sets. Swap and negate both arguments for OOD as the positives.

    Args:
        scores: Scores of in-distribution samples, shape (N,), higher is denser.
        ood_scores: Scores of OOD samples, shape (M,).

    Returns:
        0-dimensional float64 tensor.

    Source:
        Σ (R_n − R_{n−1})·P_n over thresholds, as in scikit-learn; computed by torchmetrics.

    Example:
        >>> import torch
        >>> average_precision(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))
        tensor(0.8056, dtype=torch.float64)
    """
    return binary_average_precision(*_ranks_and_labels(scores, ood_scores)).double()


def fpr_at_tpr(scores: Tensor, ood_scores: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of OOD samples that pass where a share ``tpr`` of in-distribution samples passes.

    Range 0 to 1; lower is better, ``tpr`` is chance. The threshold is the highest score that at
    least the share ``tpr`` reaches; OOD samples equal to it pass, so that scores which are all
    equal read 1.

    Args:
        scores: Scores of in-distribution samples, shape (N,), higher is denser.
        ood_scores: Scores of OOD samples, shape (M,).
        tpr: Share of in-distribution samples that must pass.

    Returns:
        0-dimensional float64 tensor.

    Source:
        Liang et al., ODIN (ICLR 2018, arXiv 1706.02690), Sec. 4.1.

    Example:
        >>> import torch
        >>> fpr_at_tpr(torch.arange(20.0), torch.tensor([-5.0, 0.5, 1.0, 3.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    inside, outside = as_vector(scores, "scores"), as_vector(ood_scores, "ood_scores")
    require_number(tpr, "tpr", 0, 1)
    passing = max(1, math.ceil(tpr * len(inside) - 1e-9))
    threshold = inside.sort(descending=True).values[passing - 1]
    return (outside >= threshold).double().mean()


def knn_distance(
    embeddings: Tensor, reference: Tensor, k: int = 10, exclude_self: bool = False
) -> Tensor:
    """Euclidean distance to the k-th nearest reference embedding.

    Range from 0; lower is denser. It scales with the embeddings. Time O(N·M·K), in blocks.

    Args:
        embeddings: Embeddings, shape (N, K).
        reference: Reference embeddings, shape (M, K).
        k: Which neighbour.
        exclude_self: Whether row n of ``embeddings`` is row n of ``reference`` and must not be
            its own neighbour, as when the reference is scored against itself.

    Returns:
        Float64 tensor, shape (N,); accurate to about 1e-8 of the embeddings' length.

    Raises:
        ValueError: If there are fewer than k neighbours, or the rows cannot be the same.

    Source:
        Loftsgaarden & Quesenberry (Annals of Mathematical Statistics 36, 1965).

    Example:
        >>> import torch
        >>> grid = torch.arange(5.0)[:, None]
        >>> knn_distance(torch.tensor([[0.0], [9.0]]), grid, k=2)
        tensor([1., 6.], dtype=torch.float64)
    """
    z, base = as_matrix(embeddings, "embeddings"), as_matrix(reference, "reference")
    require_same_width(z, base, ("embeddings", "reference"))
    check_positive_int(k, "k")
    neighbours = len(base) - int(exclude_self)
    if k > neighbours:
        raise ValueError(f"`k` must be at most the {neighbours} possible neighbours, got {k}.")
    if exclude_self and z.shape != base.shape:
        raise ValueError(
            "`exclude_self` needs `embeddings` and `reference` of the same shape, "
            f"got {tuple(z.shape)} and {tuple(base.shape)}."
        )
    distances = []
    for start in range(0, len(z), _BLOCK):
        block = torch.cdist(z[start : start + _BLOCK], base)
        if exclude_self:
            block.diagonal(offset=start).fill_(math.inf)
        distances.append(block.kthvalue(k, dim=1).values)
    return torch.cat(distances)


def knn_score(
    embeddings: Tensor, reference: Tensor, k: int = 10, exclude_self: bool = False
) -> Tensor:
    """Negative distance to the k-th neighbour between l2-normalised embeddings.

    Range −2 to 0; higher is denser, like all scores here. Normalising drops the embeddings' scale,
    and with it what their length says. Constant embeddings read 0 throughout: no order at all.

    Args:
        embeddings: Embeddings, shape (N, K).
        reference: Reference embeddings, shape (M, K).
        k: Which neighbour.
        exclude_self: As in :func:`knn_distance`.

    Returns:
        Float64 tensor, shape (N,).

    Source:
        Sun et al., Out-of-distribution detection with deep nearest neighbors (ICML 2022,
        arXiv 2204.06507), Algorithm 1.

    Example:
        >>> import torch
        >>> knn_score(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]), k=2)
        tensor([-1.4142], dtype=torch.float64)
    """
    z, base = as_matrix(embeddings, "embeddings"), as_matrix(reference, "reference")
    return -knn_distance(F.normalize(z, dim=1), F.normalize(base, dim=1), k, exclude_self)


def _ranks_and_labels(scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    # torchmetrics passes scores outside [0, 1] through a sigmoid, which rounds scores of some
    # hundred nats to ties; their ranks carry the same order within [0, 1].
    inside, outside = as_vector(scores, "scores"), as_vector(ood_scores, "ood_scores")
    joined = torch.cat([inside, outside])
    labels = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)]).long()
    return midranks(joined) / len(joined), labels


def _median(values: Tensor) -> Tensor:
    ordered = values.sort().values
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
