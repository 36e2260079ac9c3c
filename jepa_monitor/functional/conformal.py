"""How unusual is each single image, and how many of a list of outliers are false?

All scores are *densities*: higher means more usual. The calibration scores must come from images
that served neither to train what scores nor to fit it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_unit_interval, as_vector


def conformal_p_values(
    scores: Tensor, calibration_scores: Tensor, *, two_sided: bool = False
) -> Tensor:
    r"""Probability that an image of the calibration's law scores as low.

    .. math:: p = \frac{1 + \#\{m : c_m \le s\}}{M + 1}

    Range 1/(M + 1) to 1. For an image of the same law P(p ≤ t) ≤ t holds exactly, with equality on
    the grid if scores have no ties. Two-sided, twice the smaller of this and its mirror image: too
    likely is an outlier as well.

    Args:
        scores: Scores, shape (N,), higher is denser.
        calibration_scores: Scores of M held-out images of the law, shape (M,).
        two_sided: Whether high scores are unusual too.

    Returns:
        Float64 tensor, shape (N,).

    Source:
        Vovk, Gammerman & Shafer (2005); Bates et al., Testing for outliers with conformal p-values
        (Annals of Statistics 51, 2023, arXiv 2104.08279), Eq. 3.

    Example:
        >>> import torch
        >>> conformal_p_values(torch.tensor([-1.0, 2.0, 9.0]), torch.arange(4.0))
        tensor([0.2000, 0.8000, 1.0000], dtype=torch.float64)
    """
    values = as_vector(scores, "scores", min_size=0)
    known = as_vector(calibration_scores, "calibration_scores").sort().values
    size = len(known)
    lower = (1 + torch.searchsorted(known, values, right=True)).double() / (size + 1)
    if not two_sided:
        return lower
    upper = (1 + size - torch.searchsorted(known, values, right=False)).double() / (size + 1)
    return (2 * torch.minimum(lower, upper)).clamp(max=1.0)


def benjamini_hochberg(p_values: Tensor) -> Tensor:
    r"""Adjusted p-values: the false-discovery rate at which each image enters the list of outliers.

    .. math:: q_{(i)} = \min_{j \ge i} \frac{N p_{(j)}}{j}

    Of the list of all images with q at most 0.1, on average no more than a tenth are of the
    calibration's law. Range 0 to 1. With M calibration images no q is under N/(j(M + 1)), j the number
    of images that share the smallest p-value: a single outlier among N takes M of about 10·N.

    Args:
        p_values: p-values, shape (N,), such as :func:`conformal_p_values`, whose dependence on one
            calibration set does no harm here.

    Returns:
        Float64 tensor, shape (N,), at least as large as the p-values and in the same order.

    Source:
        Benjamini & Hochberg (J. Royal Statistical Society B 57, 1995); Bates et al. (arXiv
        2104.08279), Thm. 2, for conformal p-values.

    Example:
        >>> import torch
        >>> benjamini_hochberg(torch.tensor([0.01, 0.5, 0.02, 0.9]))
        tensor([0.0400, 0.6667, 0.0400, 0.9000], dtype=torch.float64)
    """
    values = as_unit_interval(p_values, "p_values")
    order = values.argsort(descending=True)
    ranks = torch.arange(len(values), 0, -1, device=values.device)
    adjusted = (values[order] * len(values) / ranks).cummin(dim=0).values
    return torch.empty_like(values).scatter_(0, order, adjusted)
