"""How far an EMA target trails its encoder, and whether the encoder moves straight on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_number, require_same_shape


def ema_lag(online: Iterable[Tensor], target: Iterable[Tensor]) -> Tensor:
    r"""Distance of an encoder's weights from its EMA target's, relative to the target's length.

    .. math::
        \lVert \theta - \bar\theta \rVert \big/ \lVert \bar\theta \rVert

    Range from 0. With momentum m, a step u in one direction each time ends at a lag of
    :math:`\lVert u \rVert\, m/(1-m)`, steps in random directions at
    :math:`\lVert u \rVert\, m/\sqrt{1-m^2}`. While the target trails very closely, an EMA-based JEPA
    can lower its loss without learning anything.

    Args:
        online: Parameters of the encoder.
        target: Those of its target, in the same order.

    Returns:
        0-dimensional float64 tensor; infinite if the target's weights are all zero and the encoder's
        are not.

    Raises:
        ValueError: If there are no parameters, or their shapes differ.

    Source:
        The encoder–target discrepancy of https://openreview.net/forum?id=SdOYmP67a2, relative.

    Example:
        >>> import torch
        >>> ema_lag([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 0.0])])
        tensor(1.3333, dtype=torch.float64)
    """
    pairs = _paired(online, target, ("online", "target"))
    lag = _length(a.double() - b.double() for a, b in pairs)
    size = _length(b.double() for _, b in pairs)
    return lag / size if lag > 0 else lag


def ema_straightness(
    online: Iterable[Tensor], before: Iterable[Tensor], target: Iterable[Tensor], momentum: float
) -> Tensor:
    r"""How straight the encoder has moved while its target trailed it.

    .. math::
        \frac{\lVert \theta_t - \bar\theta_t \rVert}{\lVert u \rVert} \cdot \frac{1 - m}{m},
        \qquad u = \theta_t - \theta_{t-1}

    for a target :math:`\bar\theta_t = m\,\bar\theta_{t-1} + (1 - m)\,\theta_t` and steps of one size.
    1 is straight on (the highest, in the limit), :math:`\sqrt{(1-m)/(1+m)}` a random walk, and less
    is back and forth. It is noisy where the step size varies from step to step: average it.

    Args:
        online: Parameters of the encoder now.
        before: The same before its last step.
        target: Those of the target, after the update that followed the step.
        momentum: m, above 0 and below 1.

    Returns:
        0-dimensional float64 tensor; infinite if the encoder has not moved but is away from its
        target, 0 if it is not.

    Raises:
        ValueError: If there are no parameters, their shapes differ or the momentum is out of range.

    Source:
        The recursion L_t = m (L_{t−1} + u_t) of the lag L, solved for equal and for random steps.

    Example:
        >>> import torch
        >>> target = 0.0
        >>> for step in range(1, 200):  # straight on
        ...     target = 0.9 * target + 0.1 * step
        >>> a, b, c = (torch.tensor([x]) for x in (199.0, 198.0, target))
        >>> ema_straightness([a], [b], [c], momentum=0.9)
        tensor(1.0000, dtype=torch.float64)
    """
    require_number(momentum, "momentum", 0, 1, closed=False)
    now, target = list(online), list(target)
    lag, step = (
        _length(a.double() - b.double() for a, b in _paired(now, other, ("online", name)))
        for other, name in ((target, "target"), (before, "before"))
    )
    return lag / step * ((1 - momentum) / momentum) if lag > 0 else lag


def functional_lag(online: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared distance between an encoder's and its target's embeddings of the same images.

    .. math::
        \frac1N \sum_n \lVert z_n - \bar z_n \rVert^2 \Big/ \operatorname{tr} \operatorname{Cov}\,\bar z

    Range from 0; unlike :func:`ema_lag` it is free of what weights do not matter for. 2 is reached by
    unrelated embeddings of one law.

    Args:
        online: Embeddings by the encoder, shape (N, K), N ≥ 2.
        target: Embeddings by its target, same shape, row by row the same images.

    Returns:
        0-dimensional float64 tensor; infinite if the target's embeddings are constant and the
        encoder's are others, 0 if they are the same.

    Source:
        The discrepancy of https://openreview.net/forum?id=SdOYmP67a2 in function space.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> functional_lag(1.1 * z, z)  # 0.01 of a mean square of 1, over a variance of 6/5
        tensor(0.0083, dtype=torch.float64)
    """
    z, other = as_matrix(online, "online", min_rows=2), as_matrix(target, "target", min_rows=2)
    require_same_shape(z, other, ("online", "target"))
    distance = (z - other).square().sum(dim=1).mean()
    variance = other.var(dim=0).sum()
    return distance / variance if distance > 0 else distance


def _paired(
    first: Iterable[Tensor], second: Iterable[Tensor], names: tuple[str, str]
) -> list[tuple[Tensor, Tensor]]:
    mine, others = ([x.detach() for x in parameters] for parameters in (first, second))
    if not mine or len(mine) != len(others):
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must hold the same parameters, at least one, got "
            f"{len(mine)} and {len(others)}."
        )
    for a, b in zip(mine, others, strict=True):
        require_same_shape(a, b, names)
    return list(zip(mine, others, strict=True))


def _length(parts: Iterable[Tensor]) -> Tensor:
    # One parameter at a time in float64: all of them at once would double a model's memory.
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()
