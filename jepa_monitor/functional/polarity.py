"""Is a score the right way up? Each image against worse versions of itself, a paired comparison."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, as_vector
from jepa_monitor.functional._intervals import wilson_interval


class Polarity(NamedTuple):
    """Share of pairs in the right order; every field a 0-dimensional float64 tensor.

    Args:
        polarity: Share of pairs in which the image scores above its worse version.
        lower: Lower end of its interval; above ½ the score is the right way up.
        upper: Upper end; below ½ the score is inverted.
    """

    polarity: Tensor
    lower: Tensor
    upper: Tensor


def paired_polarity(scores: Tensor, worse: Tensor, confidence: float = 0.95) -> Polarity:
    """Share of pairs in which an image scores above a worse version of itself; ties count half.

    Range 0 to 1; 1 is healthy, ½ chance, under ½ the score is inverted. Pairs take out what
    differs from image to image, so that far fewer images are needed than for an AUROC of one set
    against the other. The versions of one image are not independent: the interval is Wilson's for
    N trials, one an image, whose variance is at most p(1 − p) however alike the versions are.

    Args:
        scores: Scores of the images, shape (N,), higher is denser.
        worse: Scores of C worse versions of each, shape (C, N).
        confidence: Level of the interval.

    Returns:
        The share and both ends of its interval.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        The share of concordant pairs of the sign test (Dixon & Mood, J. American Statistical
        Association 41, 1946); Wilson (J. American Statistical Association 22, 1927).

    Example:
        >>> import torch
        >>> scores = torch.tensor([3.0, 2.0, 1.0, 0.0])
        >>> paired_polarity(scores, torch.stack([scores - 1, scores]))
        Polarity(polarity=tensor(0.7500, dtype=torch.float64), lower=tensor(0.3006, dtype=torch.float64), upper=tensor(0.9544, dtype=torch.float64))
    """
    better, versions = as_vector(scores, "scores"), as_matrix(worse, "worse")
    if versions.shape[1] != len(better):
        raise ValueError(
            f"`worse` must have shape (C, {len(better)}), one score for each image, "
            f"got {tuple(versions.shape)}."
        )
    wins = (versions < better).double() + 0.5 * (versions == better)
    share = wins.mean()
    return Polarity(share, *wilson_interval(share * len(better), len(better), confidence))


def severity_order(scores: Tensor) -> Tensor:
    """Rank correlation of severity and score within each image, averaged, with the sign turned.

    Range −1 to 1; 1 is healthy: every image scores lower at each step. Equal scores count as no
    order.

    Args:
        scores: Scores of N images at S severities in rising order, the image itself first,
            shape (S, N), S ≥ 2.

    Returns:
        0-dimensional float64 tensor.

    Source:
        Kendall's τ (Biometrika 30, 1938), of each image.

    Example:
        >>> import torch
        >>> severity_order(torch.tensor([[3.0, 9.0], [2.0, 8.0], [1.0, 8.5]]))
        tensor(0.6667, dtype=torch.float64)
    """
    values = as_matrix(scores, "scores", min_rows=2)
    milder, worse = torch.triu_indices(len(values), len(values), offset=1, device=values.device)
    return (values[milder] - values[worse]).sign().mean()
