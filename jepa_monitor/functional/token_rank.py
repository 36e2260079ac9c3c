"""How many directions patch tokens span, across images and within one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._spectrum import covariance_eigenvalues, entropy_rank
from jepa_monitor.functional._tokens import as_tokens
from jepa_monitor.functional.isotropic import isotropic_baseline


class TokenRank(NamedTuple):
    """Ranks of tokens; every field a 0-dimensional float64 tensor.

    Args:
        across: Of one token an image.
        across_relative: The same over what isotropic tokens have.
        within: Of the tokens of one image.
        within_relative: The same over what isotropic tokens have.
    """

    across: Tensor
    across_relative: Tensor
    within: Tensor
    within_relative: Tensor


def token_rank(tokens: Tensor, positions: int = 16, seed: int = 0) -> TokenRank:
    r"""Effective ranks of patch tokens: exp of the entropy of their centred singular values' shares.

    ``across`` takes one token of each image, from a random place of each, and averages over
    ``positions`` such draws, without replacement; ``within`` takes all tokens of an image, and averages
    over images. Both from 0, for equal tokens, to min(n − 1, d), n being B or P. The relative values
    divide by what isotropic normal tokens of the same size have: 1 for those, about r/min(n − 1, d)
    for tokens in r directions. Places differ between images, so that tokens which code nothing but
    their place, as of a broken position code, have only the few directions of that code in both.
    Pooled embeddings can keep their rank while both fall; never pool the B·P tokens into one spectrum,
    which confounds the two. Invariant to rotations and to one scale for all tokens. Time
    O((positions + P)·B·d·min(B, d)).

    Args:
        tokens: Patch tokens of B ≥ 2 images, shape (B, P, d), P ≥ 2; without class and register tokens.
        positions: Draws of one token an image, cut to P.
        seed: Of the draws.

    Returns:
        The ranks.

    Raises:
        ValueError: If there are fewer than two images or patches.

    Source:
        arXiv 2210.02885 (RankMe; here centred), on tokens as the dimension of arXiv 2510.17299 (DSE).

    Example:
        >>> import torch
        >>> tokens = torch.randn(64, 36, 24, generator=torch.Generator().manual_seed(0))
        >>> few = tokens[..., :3] @ tokens[0, :3]
        >>> [round(float(x), 1) for x in (token_rank(tokens).across, token_rank(few).across)]
        [22.6, 2.9]
        >>> round(float(token_rank(tokens).within_relative), 2)
        1.0
    """
    t = as_tokens(tokens, images=2)
    images, patches, width = t.shape
    check_positive_int(positions, "positions")
    resolution = torch.finfo(tokens.dtype).eps

    def rank(points: Tensor) -> Tensor:
        return entropy_rank(covariance_eigenvalues(points, resolution).sqrt())

    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, patches, generator=generator).argsort(dim=1).to(t.device)
    rows = torch.arange(images, device=t.device)
    draws = [rank(t[rows, order[:, place]]) for place in range(min(positions, patches))]
    across = torch.stack(draws).mean()
    within = torch.stack([rank(image) for image in t]).mean()
    return TokenRank(
        across,
        across / isotropic_baseline(images - 1, width).rankme,
        within,
        within / isotropic_baseline(patches - 1, width).rankme,
    )
