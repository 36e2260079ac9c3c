"""How the states of a text's tokens follow one another: straight on, at random, or back and forth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 3  # states of a text between which there are two steps


def draw_spans(lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw three places s < r < t of each text, any three as likely as any others.

    Args:
        lengths: Numbers of tokens, (B,), whole numbers of at least 3.
        generator: On the device of ``lengths``; default: the global one.

    Returns:
        (B, 3), int64, from 0.

    Raises:
        TypeError: If lengths are no whole numbers.
        ValueError: If they are no (B,), or a text is shorter than 3 tokens.

    Example:
        >>> import torch
        >>> draw_spans(torch.tensor([3, 3]))
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    if lengths.is_floating_point() or lengths.is_complex():
        raise TypeError(f"`lengths` must hold whole numbers, got {lengths.dtype}.")
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError(f"`lengths` must have shape (B,), B ≥ 1, got {tuple(lengths.shape)}.")
    least = int(lengths.min())
    if least < _LEAST:
        row = int((lengths < _LEAST).nonzero()[0])
        raise ValueError(
            f"`lengths` must be at least {_LEAST}, text {row} has {int(lengths[row])} tokens."
        )
    places = torch.arange(int(lengths.max()), device=lengths.device)
    keys = torch.rand(
        len(lengths), len(places), generator=generator, device=lengths.device
    ).masked_fill(places >= lengths[:, None], 2.0)
    return keys.topk(_LEAST, 1, largest=False).indices.sort(1).values


def tube_loss(states: Tensor, spans: Tensor) -> Tensor:
    r"""How far the way from s to r to t is from straight: the loss of Semantic Tube Prediction.

    .. math:: 1 - \cos(h_t - h_r, \; h_r - h_s), \qquad s < r < t

    0 for states on a straight line, 1 on average for a random walk, 2 where the way leads back. In the dtype of the
    states, and differentiable: it is a loss. A step of no length has a cosine of 0.

    Args:
        states: Of the tokens of texts, (B, T, K), floating point.
        spans: Places s < r < t of each text, (B, 3), int64.

    Returns:
        (B,), 0 to 2.

    Raises:
        TypeError: If states are no floating-point numbers.
        ValueError: If the shapes do not fit, or places are beyond the text or not in order.

    Source:
        Semantic Tube Prediction, arXiv 2602.22617.

    Example:
        >>> import torch
        >>> line = torch.arange(5.0)[None, :, None] * torch.ones(3)
        >>> tube_loss(line, torch.tensor([[0, 1, 4]])).abs() < 1e-6
        tensor([True])
    """
    _check_states(states)
    if spans.shape != (len(states), _LEAST):
        raise ValueError(
            f"`spans` must have shape (B, 3) for {len(states)} texts, got {tuple(spans.shape)}."
        )
    inside = (spans >= 0).all() and (spans < states.shape[1]).all()
    if not (inside and (spans.diff(dim=1) > 0).all()):
        raise ValueError(
            f"`spans` must hold places s < r < t below {states.shape[1]}, the number of states."
        )
    chosen = states.gather(1, spans[..., None].expand(-1, -1, states.shape[2]))
    s, r, t = chosen.unbind(1)
    return 1 - F.cosine_similarity(t - r, r - s, dim=1)


def path_curvature(states: Tensor, real: Tensor) -> Tensor:
    r"""How much the states of each text turn from one step to the next.

    .. math:: \frac1{T-2} \sum_{t=2}^{T-1} 1 - \cos(h_{t+1} - h_t, \; h_t - h_{t-1})

    0 on a straight line, 1 on average for a random walk, 1.5 for states that are independent of one another, and
    2 for a zigzag.

    Args:
        states: Of the tokens of texts, (B, T, K), finite.
        real: Which tokens are no padding, (B, T), bool; padding is behind the text.

    Returns:
        (B,), float64; NaN for a text of fewer than 3 tokens or with no two steps in a row that have a length.

    Raises:
        TypeError: If states are no floating-point numbers.
        ValueError: If the shapes do not fit, or a state of a real token is not finite.

    Example:
        >>> import torch
        >>> zigzag = torch.tensor([0.0, 1.0, 0.0, 1.0])[None, :, None]
        >>> path_curvature(zigzag, torch.ones(1, 4, dtype=torch.bool))
        tensor([2.], dtype=torch.float64)
    """
    _check_states(states)
    if real.shape != states.shape[:2] or real.dtype != torch.bool:
        raise ValueError(
            f"`real` must be bool of shape {tuple(states.shape[:2])}, got {real.dtype} of "
            f"{tuple(real.shape)}."
        )
    if not bool(torch.isfinite(states[real]).all()):
        raise ValueError("`states` must be finite where `real`: filter the texts first.")
    steps = states.double().masked_fill(~real[..., None], 0.0).diff(dim=1)
    sizes = steps.norm(dim=2)
    there = real[:, 2:] & (sizes[:, :-1] > 0) & (sizes[:, 1:] > 0)
    turns = 1 - F.cosine_similarity(steps[:, 1:], steps[:, :-1], dim=2, eps=1e-300)
    mean: Tensor = turns.masked_fill(~there, 0.0).sum(1) / there.sum(1)
    return mean


def _check_states(states: Tensor) -> None:
    if not states.is_floating_point():
        raise TypeError(f"`states` must be a floating-point tensor, got {states.dtype}.")
    if states.ndim != 3:
        raise ValueError(f"`states` must have shape (B, T, K), got {tuple(states.shape)}.")
