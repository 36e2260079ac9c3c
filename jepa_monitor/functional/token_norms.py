"""Patch tokens far longer than the others, in which large ViTs keep what is not of their patch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import require_number
from jepa_monitor.functional._tokens import TokenShare, as_tokens, share_of_tokens


class TokenNorms(NamedTuple):
    """Lengths of tokens; every field a 0-dimensional float64 tensor, but for the first.

    Args:
        outliers: Share of tokens longer than some times the median, with its 95 % interval.
        longest: Longest token over the median.
        variation: Standard deviation of lengths over their mean.
        channels: Channels that carry the longest token.
        top_channel: Share of its energy in its strongest channel.
    """

    outliers: TokenShare
    longest: Tensor
    variation: Tensor
    channels: Tensor
    top_channel: Tensor


def token_norms(tokens: Tensor, factor: float = 3.0) -> TokenNorms:
    r"""Outliers among the lengths of patch tokens, and whether single channels make them.

    - ``outliers``: share of tokens with :math:`\lVert t \rVert > 3\,\mathrm{median}`, 0 … 1. Of normal
      tokens none are, for d ≥ 8. About 2 % in the middle layers of large models without registers
      (the absolute cut of that paper, 150, is of one model).
    - ``longest``: max over median, from 1.
    - ``variation``: :math:`1/\sqrt{2d}` for isotropic normal tokens, 0 for equal lengths.
    - ``channels``: participation ratio :math:`(\sum e)^2/\sum e^2` of the longest token's squared
      entries e: 1 for one channel, about d/3 for a normal token.
    - ``top_channel``: the largest e over their sum, 1/d … 1.

    **Take tokens before the last LayerNorm**: after it all lengths are about :math:`\sqrt d`, and
    nothing can be seen. The lengths do not depend on rotations nor on one scale for all tokens;
    ``channels`` and ``top_channel`` are about the channels as they are. Time O(B·P·d).

    Args:
        tokens: Patch tokens before the last norm, shape (B, P, d), P ≥ 2.
        factor: How many medians long an outlier is, above 1.

    Returns:
        The measures; tokens of zeros have no outliers and no channels: zeros throughout.

    Raises:
        TypeError: If the factor is no number.
        ValueError: If it is not above 1.

    Source:
        arXiv 2309.16588 (Vision transformers need registers), Sec. 2, with a cut relative to the median.

    Example:
        >>> import torch
        >>> tokens = torch.ones(1, 16, 4)
        >>> tokens[0, 5, 2] = 40.0
        >>> found = token_norms(tokens)
        >>> found.outliers.share, found.longest.round(decimals=2)
        (tensor(0.0625, dtype=torch.float64), tensor(20.0200, dtype=torch.float64))
    """
    t = as_tokens(tokens)
    require_number(factor, "factor", 1.0, closed=False)
    # Their own scale first: squares under- and overflow long before the numbers do.
    t = t / t.abs().amax().clamp(min=torch.finfo(t.dtype).tiny)
    lengths = torch.linalg.vector_norm(t, dim=2)
    median, longest = lengths.quantile(0.5), lengths.amax()
    outliers = share_of_tokens((lengths > factor * median).double().mean(dim=1), t.shape[1])
    if not float(longest):
        return TokenNorms(outliers, longest, longest, longest, longest)
    energies = t.flatten(0, 1)[lengths.argmax()].square()
    return TokenNorms(
        outliers,
        longest / median,
        lengths.std() / lengths.mean(),
        energies.sum().square() / energies.square().sum(),
        energies.amax() / energies.sum(),
    )
