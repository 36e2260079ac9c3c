"""Joint embedding and reconstruction in closed form: in go moments of views, out come linear encoders."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int

__all__ = [
    "AlignmentThresholds",
    "LinearJointEmbedding",
    "LinearReconstruction",
    "alignment_thresholds",
    "joint_embedding",
    "reconstruction",
]

_FLOOR = 1e-10  # of the largest eigenvalue; smaller ones are directions in which no view differs


class LinearJointEmbedding(NamedTuple):
    """The best linear encoder of views whose codes are to agree.

    Args:
        encoder: From views to codes, (D, k), float64; up to a rotation of codes.
        agreement: Share ω of a code's second moment that all views of an image have in common, (k,),
            descending; the loss is 2 Σ (1 − ω).
    """

    encoder: Tensor
    agreement: Tensor


class LinearReconstruction(NamedTuple):
    """The best linear autoencoder from views back to their images.

    Args:
        encoder: From views to codes, (D, k), float64; up to an invertible (k, k) matrix.
        decoder: From codes to images, (k, D), float64.
        gains: Singular values Φ, (k,), descending; the loss is the images' mean squared length − Σ Φ².
    """

    encoder: Tensor
    decoder: Tensor
    gains: Tensor


class AlignmentThresholds(NamedTuple):
    """How much of the nuisance an augmentation must redraw; float64, of the shape without directions.

    Args:
        joint_embedding: α² that joint embedding needs; 0 or less: none.
        reconstruction: α² that reconstruction needs; 0 or less: none.
        even: Nuisance variance η²/δ: reconstruction needs less if all are below it, joint embedding if
            all are above.
    """

    joint_embedding: Tensor
    reconstruction: Tensor
    even: Tensor


def _moment(value: Tensor, name: str, like: Tensor | None = None) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point torch.Tensor.")
    if value.ndim != 2 or value.shape[0] != value.shape[1]:
        raise ValueError(f"`{name}` must be (D, D), got {tuple(value.shape)}.")
    if like is not None and value.shape != like.shape:
        raise ValueError(f"`{name}` must be {tuple(like.shape)}, got {tuple(value.shape)}.")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"`{name}` must be finite.")
    return value.double()


def _whitened(between: Tensor, within: Tensor, rank: int) -> Tensor:
    """Give S^(−1/2) of all views on the directions in which they differ, (D, r)."""
    check_positive_int(rank, "rank")
    eigenvalues, vectors = torch.linalg.eigh(between + within)
    if float(eigenvalues[-1]) <= 0:
        raise ValueError("`between` + `within` must not be 0: do the views differ at all?")
    kept = eigenvalues > _FLOOR * eigenvalues[-1]
    if rank > int(kept.sum()):
        raise ValueError(
            f"`rank` must be at most {int(kept.sum())}, the directions in which views differ, got {rank}."
        )
    root: Tensor = vectors[:, kept] / eigenvalues[kept].sqrt()
    return root


def joint_embedding(between: Tensor, within: Tensor, rank: int) -> LinearJointEmbedding:
    r"""Solve linear joint embedding: codes of two views of an image agree, and their moment is the identity.

    :math:`\min_W \tfrac1n \sum_i \mathrm E \|W \tau_1(x_i) - W \tau_2(x_i)\|^2` under :math:`\tfrac1n \sum_i
    \mathrm E\, W \tau(x_i) \tau(x_i)^\top W^\top = I` is least for :math:`W = Q_k^\top S^{-1/2}`, with
    :math:`S^{-1/2} G S^{-1/2} = Q \Omega Q^\top`, :math:`G = \tfrac1n \sum_i \bar x_i \bar x_i^\top` of mean
    views :math:`\bar x_i = \mathrm E \tau(x_i)`, and :math:`S = G + \Sigma`. Nothing is centred: centre
    views first, or their mean is the first code.

    Args:
        between: G, (D, D), symmetric.
        within: Σ, the mean covariance of the views of an image, (D, D), symmetric.
        rank: k, 1 … number of directions in which views differ.

    Returns:
        The encoder.

    Raises:
        TypeError: If a moment is no floating-point tensor.
        ValueError: If a shape or a value is not as described.

    Source:
        arXiv 2505.12477, the counterpart of theorem 3.1 for joint embedding.

    Example:
        >>> import torch
        >>> found = joint_embedding(torch.tensor([4.0, 1.0]).diag(), torch.tensor([4.0, 0.0]).diag(), 1)
        >>> found.encoder.abs().flatten(), found.agreement
        (tensor([0., 1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    between = _moment(between, "between")
    within = _moment(within, "within", between)
    root = _whitened(between, within, rank)
    agreement, vectors = torch.linalg.eigh(root.T @ between @ root)
    return LinearJointEmbedding(root @ vectors.flip(1)[:, :rank], agreement.flip(0)[:rank])


def reconstruction(
    cross: Tensor, between: Tensor, within: Tensor, rank: int
) -> LinearReconstruction:
    r"""Solve linear reconstruction: images are foretold from codes of their views.

    :math:`\min_{E, D} \tfrac1n \sum_i \mathrm E \|D E \tau(x_i) - x_i\|^2` is least for :math:`E = P_k^\top
    S^{-1/2}` and :math:`D = R_k \Phi_k`, with the singular value decomposition :math:`\tfrac1n X^\top \bar X
    S^{-1/2} = R \Phi P^\top`. With additive noise of mean 0, ``cross`` is ``between``. For random masks
    this is :func:`~jepa_monitor.functional.linear_mae.linear_mae`.

    Args:
        cross: :math:`\tfrac1n X^\top \bar X`, of images and their mean views, (D, D).
        between: See :func:`joint_embedding`.
        within: See :func:`joint_embedding`.
        rank: See :func:`joint_embedding`.

    Returns:
        The maps.

    Raises:
        TypeError: As :func:`joint_embedding`.
        ValueError: As :func:`joint_embedding`.

    Source:
        arXiv 2505.12477, theorem 3.1.

    Example:
        >>> import torch
        >>> data, noise = torch.tensor([4.0, 1.0]).diag(), torch.tensor([4.0, 0.0]).diag()
        >>> found = reconstruction(data, data, noise, 1)
        >>> found.gains ** 2  # what a code takes from the loss, 5
        tensor([2.0000], dtype=torch.float64)
    """
    between = _moment(between, "between")
    within = _moment(within, "within", between)
    cross = _moment(cross, "cross", between)
    root = _whitened(between, within, rank)
    left, gains, right = torch.linalg.svd(cross @ root, full_matrices=False)
    decoder = gains[:rank, None] * left[:, :rank].T
    return LinearReconstruction(root @ right[:rank].T, decoder, gains[:rank])


def alignment_thresholds(
    signal: Tensor, signal_augmentation: Tensor, nuisance: Tensor, nuisance_augmentation: Tensor
) -> AlignmentThresholds:
    r"""Say how strongly an augmentation must redraw the nuisance for each objective to find the signal.

    Images are signal and nuisance in directions of their own, with variances s and g. The augmentation
    adds noise of variance θ in each, and α times another draw of the nuisance. As images become many, the
    first k codes are the signal if and only if α² exceeds

    .. math::
        \alpha_{JE}^2 = \max_i \tfrac{1 - \delta}{\delta} - \tfrac{\theta_i}{g_i}, \qquad
        \alpha_{RC}^2 = \max_i \tfrac{g_i}{\eta^2} - \tfrac{\theta_i}{g_i} - 1,

    where i runs over the nuisance, and :math:`\delta = \min s/(s + \theta)`, :math:`\eta = \min s/\sqrt{s +
    \theta}` over the signal. In words: joint embedding needs less as soon as the nuisance is larger than
    the weakest signal. Supervised learning has no such threshold.

    Args:
        signal: s, (..., k), > 0, in the squared unit of the data.
        signal_augmentation: θ in those directions, (..., k), ≥ 0.
        nuisance: g, (..., m), > 0.
        nuisance_augmentation: θ in those directions, (..., m), ≥ 0.

    Returns:
        Both α², and the variance at which they change places.

    Raises:
        TypeError: If an argument is no floating-point tensor.
        ValueError: If shapes do not agree, or a value is out of range.

    Source:
        arXiv 2505.12477, the alignment that each objective needs and their comparison.

    Example:
        >>> import torch
        >>> s, g = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.full((8,), 5.0)
        >>> found = alignment_thresholds(s, 0.5 + 0 * s, g, 0.1 + 0 * g)
        >>> [round(float(x), 3) for x in found]
        [0.23, 2.105, 2.0]
    """
    given = {
        "signal": signal,
        "signal_augmentation": signal_augmentation,
        "nuisance": nuisance,
        "nuisance_augmentation": nuisance_augmentation,
    }
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"`{name}` must be a floating-point torch.Tensor.")
        if value.ndim < 1 or value.shape[-1] < 1:
            raise ValueError(f"`{name}` must hold a number at least, got {tuple(value.shape)}.")
        low = bool((value < 0).any()) if "_" in name else bool((value <= 0).any())
        if low or not bool(torch.isfinite(value).all()):
            least = "at least 0" if "_" in name else "above 0"
            raise ValueError(f"`{name}` must be finite and {least}.")
    for first, second in (("signal", "signal_augmentation"), ("nuisance", "nuisance_augmentation")):
        if given[first].shape != given[second].shape:
            raise ValueError(
                f"`{second}` must be {tuple(given[first].shape)}, as `{first}` is, got "
                f"{tuple(given[second].shape)}."
            )
    s, s_noise, g, g_noise = (value.double() for value in given.values())
    delta = (s / (s + s_noise)).amin(-1)
    eta_squared = (s.square() / (s + s_noise)).amin(-1)
    ratio = g_noise / g
    joint = ((1 - delta) / delta) - ratio.amin(-1)
    rebuilt = (g / eta_squared[..., None] - ratio).amax(-1) - 1
    return AlignmentThresholds(joint, rebuilt, eta_squared / delta)
