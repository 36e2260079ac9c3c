"""How alike patch tokens are to the class token, and to tokens of another image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_same_rows, require_same_width
from jepa_monitor.functional._tokens import as_tokens, unit_tokens


class TokenCosines(NamedTuple):
    """Cosines of patch tokens with one vector an image; 0-dimensional float64 tensors.

    Args:
        mean: Over all tokens.
        std: Standard deviation over the tokens of an image, mean over images.
    """

    mean: Tensor
    std: Tensor


def class_token_cosines(class_tokens: Tensor, tokens: Tensor) -> TokenCosines:
    r"""Cosines of an image's class token with its patch tokens.

    Range −1 to 1. Of independent isotropic directions the mean is 0 and the standard deviation
    :math:`1/\sqrt d`. A mean that rises towards 1 with a standard deviation that falls says that
    patches repeat the class token: dense tasks lose what image tasks gain. Read it beside
    :func:`other_image_cosine`, which rises too where all tokens have a direction in common. Invariant
    to rotations and to the scale of every token. Time O(B·P·d).

    Args:
        class_tokens: One an image, shape (B, d).
        tokens: Patch tokens, shape (B, P, d), P ≥ 2.

    Returns:
        Mean and standard deviation; tokens of zeros have a cosine of 0.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        arXiv 2508.10104 (DINOv3), Sec. 4, where the cosine rises as dense quality falls.

    Example:
        >>> import torch
        >>> tokens = torch.eye(4)[None]
        >>> class_token_cosines(torch.ones(1, 4), tokens)
        TokenCosines(mean=tensor(0.5000, dtype=torch.float64), std=tensor(0., dtype=torch.float64))
    """
    t, c = as_tokens(tokens), as_matrix(class_tokens, "class_tokens")
    require_same_rows(c, t, ("class_tokens", "tokens"))
    require_same_width(c, t, ("class_tokens", "tokens"))
    cosines = (unit_tokens(t) @ unit_tokens(c[:, None]).transpose(1, 2))[..., 0]
    return TokenCosines(cosines.mean(), cosines.std(dim=1).mean())


def other_image_cosine(tokens: Tensor) -> Tensor:
    r"""Mean cosine of patch tokens with the mean token of the next image.

    Range −1 to 1; 0 for isotropic tokens, 1 where all tokens of all images have one direction. What a
    class token has in common with the patches of its image counts only above this. Invariant to
    rotations and to the scale of every token of the first image. Time O(B·P·d).

    Args:
        tokens: Patch tokens of B ≥ 2 images, shape (B, P, d), P ≥ 2.

    Returns:
        0-dimensional float64 tensor.

    Raises:
        ValueError: If there are fewer than two images.

    Source:
        The control of :func:`class_token_cosines`.

    Example:
        >>> import torch
        >>> other_image_cosine(torch.ones(2, 3, 4))
        tensor(1.0000, dtype=torch.float64)
    """
    t = as_tokens(tokens, images=2)
    return class_token_cosines(t.mean(dim=1).roll(-1, dims=0), t).mean
