"""How good a latent world model is: in go embeddings of clips and what was predicted, out come shares of variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._intervals import ratio_interval
from jepa_monitor.functional.detection import auroc, auroc_gain


class PredictionError(NamedTuple):
    """Squared errors as shares of a variance; 0-dimensional float64 tensors.

    Args:
        value: Of the predictions: 0 is perfect, 1 as bad as the mean of all clips.
        lower: Lower end of its 95 % interval over clips.
        upper: Upper end.
        still: Of predicting that nothing changes.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor
    still: Tensor


class ActionShare(NamedTuple):
    """What a prediction owes to the actions; 0-dimensional float64 tensors.

    Args:
        value: Share of the error with other clips' actions that the own actions save.
        lower: Lower end of its 95 % interval over clips.
        upper: Upper end.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor


class Surprise(NamedTuple):
    """Whether errors tell impossible futures from real ones; 0-dimensional float64 tensors.

    Args:
        auroc: Share of pairs in which the impossible future has the larger error.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
    """

    auroc: Tensor
    lower: Tensor
    upper: Tensor


def prediction_error(predicted: Tensor, following: Tensor, before: Tensor) -> PredictionError:
    r"""How much of what differs between clips a prediction of the next embedding misses.

    .. math::
        \frac{\sum_{i,t} \lVert \hat z_{it} - z_{it} \rVert^2}
             {\frac{N}{N-1} \sum_{i,t} \lVert z_{it} - \bar z_t \rVert^2}

    with the mean of step t over clips. A loss alone falls as embeddings shrink; this does not. Clips are
    independent, their steps are not: the interval is that of a ratio of sums over clips.

    Args:
        predicted: Of N clips at T steps, (N, T, K), N ≥ 2.
        following: What came, (N, T, K).
        before: Embeddings one step earlier (or whatever "nothing changes" means), (N, T, K).

    Returns:
        The shares; NaN where the embeddings of the clips do not differ.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If shapes differ, there are fewer than 2 clips, or a number is not finite.

    Source:
        The loss of LeWorldModel (arXiv 2603.19312), divided by a variance; Cochran (1977), §2.11.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])[..., None]
        >>> float(prediction_error(z[:, 1:], z[:, 1:], z[:, :-1]).value)
        0.0
    """
    made, came, stays = (
        _clips(z, name)
        for z, name in ((predicted, "predicted"), (following, "following"), (before, "before"))
    )
    if not made.shape == came.shape == stays.shape:
        raise ValueError(
            "`predicted`, `following` and `before` must have one shape, got "
            f"{tuple(made.shape)}, {tuple(came.shape)} and {tuple(stays.shape)}."
        )
    spread = _squares(came - came.mean(0)) * len(came) / (len(came) - 1)
    if not bool(spread.sum() > 0):
        nothing = came.new_tensor(torch.nan)
        return PredictionError(nothing, nothing, nothing, nothing)
    value, ends = ratio_interval(_squares(made - came), spread)
    return PredictionError(
        value, ends.lower.clamp(min=0), ends.upper, _squares(stays - came).sum() / spread.sum()
    )


def action_share(predicted: Tensor, with_others: Tensor, following: Tensor) -> ActionShare:
    """Share of the error that comes of other clips' actions: does the model listen to them?

    Args:
        predicted: By the own actions, (N, T, K), N ≥ 2.
        with_others: By the actions of other clips, (N, T, K).
        following: What came, (N, T, K).

    Returns:
        1 minus the ratio of both errors: 0 if actions make no difference, 1 if they determine all that can
        be predicted; NaN where the predictions by others' actions are perfect.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If shapes differ, there are fewer than 2 clips, or a number is not finite.

    Example:
        >>> import torch
        >>> z = torch.randn(8, 3, 2)
        >>> float(action_share(z, z.roll(1, 0), z).value)
        1.0
    """
    own, others, came = (
        _clips(z, name)
        for z, name in (
            (predicted, "predicted"),
            (with_others, "with_others"),
            (following, "following"),
        )
    )
    if not own.shape == others.shape == came.shape:
        raise ValueError(
            "`predicted`, `with_others` and `following` must have one shape, got "
            f"{tuple(own.shape)}, {tuple(others.shape)} and {tuple(came.shape)}."
        )
    errors = _squares(others - came)
    if not bool(errors.sum() > 0):
        nothing = came.new_tensor(torch.nan)
        return ActionShare(nothing, nothing, nothing)
    ratio, ends = ratio_interval(_squares(own - came), errors)
    return ActionShare(1 - ratio, 1 - ends.upper, 1 - ends.lower)


def surprise(predicted: Tensor, following: Tensor) -> Surprise:
    r"""Whether the error of a prediction tells what follows from what cannot follow.

    What cannot follow is what follows in another clip, the next one in order: a cut. No further clips are
    needed for it. It is told apart by the squared error at one step.

    Args:
        predicted: Of one step of N clips, (N, K), N ≥ 2.
        following: What came, (N, K).

    Returns:
        AUROC with its 95 % interval; ½ is chance.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If shapes differ, there are fewer than 2 clips, or a number is not finite.

    Source:
        Violation of expectation, as in LeWorldModel (arXiv 2603.19312); DeLong et al. (1988) for the interval.

    Example:
        >>> import torch
        >>> z = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        >>> float(surprise(z, z).auroc)
        1.0
    """
    made, came = _clips(predicted[:, None], "predicted"), _clips(following[:, None], "following")
    if made.shape != came.shape:
        raise ValueError(
            "`predicted` and `following` must have one shape, got "
            f"{tuple(predicted.shape)} and {tuple(following.shape)}."
        )
    real, cut = -_squares(made - came), -_squares(made - came.roll(1, 0))
    found = auroc_gain(real, cut, torch.zeros_like(real), torch.zeros_like(cut))
    ends = ((0.5 + end).clamp(0, 1) for end in (found.lower, found.upper))
    return Surprise(auroc(real, cut), *ends)


def _squares(difference: Tensor) -> Tensor:
    """Sum squares over steps and dimensions, (N,)."""
    return difference.square().flatten(1).sum(1)


def _clips(z: Tensor, name: str) -> Tensor:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor, got {kind}.")
    if z.ndim != 3 or len(z) < 2 or not z.numel():
        raise ValueError(
            f"`{name}` must hold embeddings of 2 clips or more, (N, T, K), got shape {tuple(z.shape)}."
        )
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"`{name}` must be finite.")
    return z.double()
