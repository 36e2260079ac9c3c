"""How well a score tells out-of-distribution (OOD) samples from in-distribution ones.

All scores are *densities*: higher means more usual. In-distribution samples are the positives.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_number
from jepa_monitor.functional._intervals import midranks


class AurocGain(NamedTuple):
    """What one score has over another; every field a 0-dimensional float64 tensor.

    Args:
        gain: AUROC of the one minus that of the other.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
    """

    gain: Tensor
    lower: Tensor
    upper: Tensor


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
        Hanley & McNeil (Radiology 143, 1982): the Mann-Whitney statistic over the pairs.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))
        tensor(0.7500, dtype=torch.float64)
    """
    inside, outside = as_vector(scores, "scores"), as_vector(ood_scores, "ood_scores")
    count = len(inside)
    above = midranks(torch.cat([inside, outside]))[:count].sum() - count * (count + 1) / 2
    return above / (count * len(outside))


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
    # torchmetrics passes scores outside [0, 1] through a sigmoid, which rounds scores of some
    # hundred nats to ties; their ranks carry the same order within [0, 1].
    inside, outside = as_vector(scores, "scores"), as_vector(ood_scores, "ood_scores")
    joined = torch.cat([inside, outside])
    labels = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)]).long()
    # Here, since it takes seconds: a plain loop has no other use for torchmetrics.
    from torchmetrics.functional.classification import binary_average_precision

    return binary_average_precision(midranks(joined) / len(joined), labels).double()


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


def auroc_gain(scores: Tensor, ood_scores: Tensor, other: Tensor, other_ood: Tensor) -> AurocGain:
    r"""AUROC of one score minus that of another on the same samples, with a paired interval.

    The place of a sample is the share of the other set that it is on the right side of. AUROC is the
    mean place of either set, so that the variance of the difference d is :math:`s^2_{in}/N +
    s^2_{out}/M`, with the variances of the differences of places. Where both AUROCs are 1, or all
    places are equal, the interval has no width, and means nothing.

    Args:
        scores: Scores of in-distribution samples, shape (N,), N ≥ 2, higher is denser.
        ood_scores: Scores of OOD samples, shape (M,), M ≥ 2.
        other: The other score of the same in-distribution samples, shape (N,).
        other_ood: The other score of the same OOD samples, shape (M,).

    Returns:
        The difference and the ends of its 95 % interval.

    Raises:
        ValueError: If there are fewer than 2 samples of a set, or another number by the other score.

    Source:
        DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988).

    Example:
        >>> import torch
        >>> x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
        >>> auroc_gain(x, y, -x, -y).gain
        tensor(0.5000, dtype=torch.float64)
    """
    pairs = ((scores, "scores", other, "other"), (ood_scores, "ood_scores", other_ood, "other_ood"))
    for first, name, second, second_name in pairs:
        if len(as_vector(first, name)) < 2 or len(as_vector(second, second_name)) != len(first):
            raise ValueError(
                f"`{name}` and `{second_name}` must be of the same 2 samples or more, got "
                f"{len(first)} and {len(second)}."
            )
    inside, outside = (
        mine - its
        for mine, its in zip(_places(scores, ood_scores), _places(other, other_ood), strict=True)
    )
    gain = inside.mean()
    variance = inside.var() / len(inside) + outside.var() / len(outside)
    half = NormalDist().inv_cdf(0.975) * variance.sqrt()
    return AurocGain(gain, gain - half, gain + half)


def _places(scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the other set that each sample is on the right side of, (N,) and (M,)."""
    inside, outside = as_vector(scores, "scores"), as_vector(ood_scores, "ood_scores")
    ranks = midranks(torch.cat([inside, outside]))
    above = ranks[: len(inside)] - midranks(inside)
    below = len(inside) - (ranks[len(inside) :] - midranks(outside))
    return above / len(outside), below / len(inside)
