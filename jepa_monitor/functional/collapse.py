"""How many directions the embeddings use, and how much of them: the collapse metrics."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_monitor.functional._checks import as_matrix, require_number


def rankme(embeddings: Tensor, eps: float = 1e-7) -> Tensor:
    r"""RankMe, the exponential of the entropy of the singular values.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \frac{s_k}{\sum_j s_j} + \varepsilon

    with the singular values :math:`s_k` of the *uncentred* matrix. The p_k are not normalised
    again, as in the paper, so the value can exceed min(N, K) by a trifle.

    Range 1 to min(N, K); higher is healthier, but it is necessary only: a high rank does not make
    good features, and runs of different methods do not compare. A large mean embedding lowers it
    although the spread is intact; :func:`effective_rank` beside it tells the two apart. The value
    depends on N: compare with :func:`isotropic_baseline`. It is blind to scale: embeddings that
    shrink to rounding noise around zero keep their rank.

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
    return _entropy_rank(singular_values, require_number(eps, "eps", 0, 1))


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
    return F.normalize(z, dim=1).std(dim=0).mean() * math.sqrt(z.shape[1])


def _entropy_rank(spectrum: Tensor, eps: float = 0.0) -> Tensor:
    total = spectrum.sum()
    if total == 0:
        return torch.zeros_like(total)
    shares = spectrum / total + eps
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()
