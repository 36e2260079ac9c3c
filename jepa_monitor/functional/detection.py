"""How well a score tells out-of-distribution (OOD) samples from in-distribution ones.

All scores are *densities*: higher means more usual. In-distribution samples are the positives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_vector, require_number
from jepa_monitor.functional._intervals import midranks


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
