"""How many directions the embeddings use, and whether they differ at all.

Two states are told apart. In a *complete* collapse all embeddings are one point: see
:func:`normalized_std`. In a *dimensional* collapse they differ, but in few directions: see
:func:`rankme`, :func:`effective_rank`, :func:`participation_ratio`. Each is blind to the other's
state, so read one of each. The ranks depend on N; :func:`~jepa_monitor.functional.isotropic.
isotropic_baseline` gives their values for isotropic embeddings.

Embeddings whose spread is no more than four roundings of their own dtype count as constant, and
all ranks of the covariance are then 0: below every healthy value, never among them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, require_number
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._spectrum import (
    PowerLawFit,
    covariance_eigenvalues,
    entropy_rank,
    fit_power_law,
    participation,
    stable_share,
)

_TINY = torch.finfo(torch.float64).tiny


def rankme(embeddings: Tensor, eps: float = 1e-7) -> Tensor:
    r"""RankMe, the exponential of the entropy of the singular values.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \frac{s_k}{\sum_j s_j} + \varepsilon

    with the singular values :math:`s_k` of the *uncentred* matrix. The p_k are not normalised
    again, as in the paper, so the value can exceed min(N, K) by a trifle.

    Range 1 to min(N, K); higher is healthier, but it is necessary only: a high rank does not make
    good features, and runs of different methods do not compare. A large mean embedding lowers it
    although the spread is intact; :func:`effective_rank` beside it tells the two apart. It is
    blind to scale: embeddings that shrink to rounding noise around zero keep their rank.

    Args:
        embeddings: Embeddings, shape (N, K).
        eps: Added to every share p_k after the division.

    Returns:
        0-dimensional float64 tensor; 1 for constant embeddings, 0 for a matrix of zeros.

    Source:
        Garrido et al., RankMe (ICML 2023, arXiv 2210.02885), Eq. 1.

    Example:
        >>> import torch
        >>> rankme(torch.eye(4))
        tensor(4.0000, dtype=torch.float64)
        >>> rankme(torch.ones(8, 4))
        tensor(1.0000, dtype=torch.float64)
    """
    singular_values = torch.linalg.svdvals(as_matrix(embeddings, "embeddings"))
    return entropy_rank(singular_values, require_number(eps, "eps", 0, 1))


def effective_rank(embeddings: Tensor) -> Tensor:
    r"""Effective rank, the exponential of the entropy of the covariance's eigenvalues.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \lambda_k \Big/ \sum_j \lambda_j

    Range 1 to min(N − 1, K); higher is healthier. Eigenvalues are squares of singular values, so
    it is smaller than RankMe of the same embeddings; and it is centred, so a large mean does not
    lower it. Isotropic embeddings read K·exp(−K/2N), not K.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings.

    Source:
        Roy & Vetterli, The effective rank (EUSIPCO 2007), applied to the covariance.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(4), -torch.eye(4)])
        >>> effective_rank(z), effective_rank(z + 100)
        (tensor(4.0000, dtype=torch.float64), tensor(4.0000, dtype=torch.float64))
        >>> effective_rank(torch.ones(8, 4))
        tensor(0., dtype=torch.float64)
    """
    return entropy_rank(_eigenvalues(embeddings))


def participation_ratio(embeddings: Tensor, bias_corrected: bool = False) -> Tensor:
    r"""Participation ratio of the covariance's eigenvalues.

    .. math::
        \frac{(\sum_k \lambda_k)^2}{\sum_k \lambda_k^2}
        = \frac{(\operatorname{tr} C)^2}{\lVert C \rVert_F^2}

    Range 1 to min(N − 1, K); higher is healthier. A few large eigenvalues lower it more than they
    lower the entropies. Isotropic embeddings read K/(1 + K/N); the bias-corrected value
    1/(1/PR − 1/(N − 1)), cut at K, reads about K there and suits a comparison across N. With few
    samples it is noisy, and of two it says nothing: they differ in one direction, whatever the law.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2; N ≥ 3 for the bias-corrected value.
        bias_corrected: Whether to correct for the number of samples.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings.

    Source:
        Gao et al., A theory of multineuronal dimensionality (bioRxiv 214262, 2017), Eq. 4.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(4), -torch.eye(4)])
        >>> participation_ratio(z)
        tensor(4.0000, dtype=torch.float64)
        >>> participation_ratio(z * torch.tensor([1.0, 0, 0, 0]))
        tensor(1., dtype=torch.float64)
    """
    z = as_matrix(embeddings, "embeddings", min_rows=3 if bias_corrected else 2)
    return participation(_eigenvalues(embeddings), bias_corrected, *z.shape)


def stable_rank(embeddings: Tensor, centred: bool = True) -> Tensor:
    r"""Stable rank; of the covariance it is also called NESum.

    .. math::
        \sum_k \lambda_k \Big/ \lambda_1 = \lVert Z \rVert_F^2 \big/ \lVert Z \rVert_2^2

    Range 1 to min(N − 1, K); higher is healthier. It looks at the largest direction only. Without
    centring that direction is nearly always the mean embedding, and the value near 1 or 2.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.
        centred: Whether to subtract the mean embedding first.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings (centred) or zeros (uncentred).

    Source:
        He & Ozay, Exploring the gap between collapsed & whitened features (ICML 2022), Def. 4.1.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(4), -torch.eye(4)])
        >>> stable_rank(z), stable_rank(z + 10, centred=False)
        (tensor(4., dtype=torch.float64), tensor(1.0019, dtype=torch.float64))
    """
    if centred:
        values = _eigenvalues(embeddings)
    else:
        singular_values = torch.linalg.svdvals(as_matrix(embeddings, "embeddings"))
        values = (singular_values / singular_values[0].clamp(min=_TINY)).square()
    return stable_share(values)


def alpha_req(embeddings: Tensor, fit_ranks: tuple[int, int] = (11, 100)) -> PowerLawFit:
    r"""α-ReQ: exponent of the power law λ_i ∝ i^(−α) of the covariance's eigenvalues.

    Weighted least squares of log λ_i on log i with weights 1/i, over the ranks of the reference
    implementation. R² is unweighted, over the same ranks.

    α ≥ 0 and near 1 is the healthy zone of the paper; neither direction is better. Well above 1
    the spectrum decays too fast (collapse), near 0 the embeddings are white, which is what
    LeJEPA-like objectives aim at. Without a high R² the exponent means nothing. Too few samples
    steepen the tail: isotropic embeddings with K = 128 read 1.1 at N = K and 0.24 at N = 16·K.

    Args:
        embeddings: Embeddings, shape (N, K), with min(N − 1, K) at least 4 above the first rank.
        fit_ranks: First and last rank of the fit, counted from 1; the last is cut to
            min(N − 1, K).

    Returns:
        ``alpha`` and ``r2``, 0-dimensional float64 tensors. (inf, 0) if fewer than half of the
        eigenvalues in the window are positive: a dimensional collapse, not a flat spectrum.

    Source:
        Agrawal et al., α-ReQ (NeurIPS 2022), Sec. 3; ranks and weights as in their code (reptrix).

    Example:
        >>> import torch
        >>> scale = torch.arange(1, 121).double().pow(-0.5)
        >>> z = torch.cat([torch.eye(120), -torch.eye(120)]) * scale
        >>> alpha_req(z)
        PowerLawFit(alpha=tensor(1.0000, dtype=torch.float64), r2=tensor(1., dtype=torch.float64))
    """
    return fit_power_law(_eigenvalues(embeddings), fit_ranks)


def normalized_std(embeddings: Tensor) -> Tensor:
    r"""Standard deviation of the l2-normalised embeddings, times √K.

    .. math::
        \sqrt K \cdot \frac1K \sum_k \operatorname{std}_n \hat z_{nk},
        \qquad \hat z_n = z_n / \lVert z_n \rVert

    Range 0 to 1 (a little more for few rows); 1 is healthy, 0 is collapse to one point. It
    measures *complete* collapse and is blind to the dimensional kind: a rotated cloud on one
    line still reads about 0.8. Read it beside :func:`participation_ratio`. Rows of zeros stay
    zero.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        0-dimensional float64 tensor; 0 for constant embeddings.

    Source:
        Chen & He, SimSiam (CVPR 2021, arXiv 2011.10566), Sec. 4.1 and Fig. 2.

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(64), -torch.eye(64)])
        >>> normalized_std(z)
        tensor(1.0039, dtype=torch.float64)
        >>> normalized_std(torch.ones(8, 4))
        tensor(0., dtype=torch.float64)
    """
    z = as_matrix(embeddings, "embeddings", min_rows=2)
    return unit_rows(z).std(dim=0).mean() * math.sqrt(z.shape[1])


def collapse_level(embeddings: Tensor) -> Tensor:
    """Collapse level max(0, 1 − normalised std).

    Range 0 to 1; 0 is healthy, 1 is collapse to one point. Like :func:`normalized_std` it is blind
    to dimensional collapse. No moving average is taken.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 2.

    Returns:
        0-dimensional float64 tensor; 1 for constant embeddings.

    Source:
        The SimSiam tutorial of Lightly, without its moving average.

    Example:
        >>> import torch
        >>> collapse_level(torch.ones(8, 4))
        tensor(1., dtype=torch.float64)
    """
    return (1 - normalized_std(embeddings)).clamp(min=0)


def _eigenvalues(embeddings: Tensor) -> Tensor:
    z = as_matrix(embeddings, "embeddings", min_rows=2)
    return covariance_eigenvalues(z, torch.finfo(embeddings.dtype).eps)
