"""How far the similarities of an image's patch tokens have moved from those of another encoder."""

from __future__ import annotations

from torch import Tensor

from jepa_monitor.functional._checks import as_views, require_same_shape
from jepa_monitor.functional._tokens import as_tokens, unit_tokens


def token_gram(tokens: Tensor) -> Tensor:
    """Cosines of all pairs of patch tokens of an image: what :func:`gram_drift` compares.

    Args:
        tokens: Patch tokens, shape (B, P, d), P ≥ 2.

    Returns:
        Shape (B, P, P), float64, −1 to 1.

    Example:
        >>> import torch
        >>> token_gram(torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]))
        tensor([[[1., 0.],
                 [0., 1.]]], dtype=torch.float64)
    """
    unit = unit_tokens(as_tokens(tokens))
    return unit @ unit.transpose(1, 2)


def gram_drift(gram: Tensor, reference: Tensor, clip_negative: bool = False) -> Tensor:
    r"""Mean squared difference of two encoders' token similarities on the same pixels.

    .. math:: \frac{1}{B P^2} \sum_{b,i,j} (G_{bij} - G^{\mathrm{ref}}_{bij})^2

    From 0, the same structure; :math:`\frac{2}{d}(1 - \frac1P)` between unrelated isotropic tokens of
    width d. A rotation of all tokens, and so a slow drift of the basis, does not count, nor does the
    length of tokens. With ``clip_negative`` negative similarities of both are 0 first, as DINOv3's
    loss has it by default; the two are different quantities. Compare the same crops at the same size.
    Time O(B·P²).

    Args:
        gram: From :func:`token_gram`, shape (B, P, P).
        reference: The same of the other encoder.
        clip_negative: Whether to set negative similarities to 0 in both.

    Returns:
        0-dimensional float64 tensor.

    Raises:
        ValueError: If the shapes differ or the matrices are not square.

    Source:
        arXiv 2508.10104 (DINOv3), Sec. 4, Gram anchoring.

    Example:
        >>> import torch
        >>> first, second = torch.eye(2)[None], torch.ones(1, 2, 2)
        >>> gram_drift(first, second)
        tensor(0.5000, dtype=torch.float64)
    """
    g = as_views(gram, "gram", min_samples=1, min_views=2)
    other = as_views(reference, "reference", min_samples=1, min_views=2)
    require_same_shape(g, other, ("gram", "reference"))
    if g.shape[1] != g.shape[2]:
        raise ValueError(f"`gram` must have shape (B, P, P), got {tuple(g.shape)}.")
    if clip_negative:
        g, other = g.clamp(min=0), other.clamp(min=0)
    drift: Tensor = (g - other).square().mean()
    return drift
