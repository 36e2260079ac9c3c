"""Up to which maps do two embeddings agree: in go both, of the same samples, out comes what each map explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_choice
from jepa_monitor.functional._assignment import best_matching
from jepa_monitor.functional._checks import as_matrix, require_same_rows
from jepa_monitor.functional._directions import unit_rows

MAPS = ("permutation", "rotation", "linear", "smooth")

_Z = 1.96
_FEWEST = 32  # samples, half of them to fit
_STRENGTHS = torch.logspace(-6, 3, 19, dtype=torch.float64)  # of the penalty, in mean eigenvalues
_GROUPS = 20  # that are left out by turns


class HeldOut(NamedTuple):
    """A number of held-out samples.

    Args:
        value: 0-dimensional, float64.
        error: Half the width of its 95 % interval, likewise.
    """

    value: Tensor
    error: Tensor


def map_agreement(source: Tensor, target: Tensor, kind: str = "linear", seed: int = 0) -> HeldOut:
    r"""How much of one embedding a map from another explains, on samples that the map has not seen.

    .. math:: R^2 = 1 - \sum_i \lVert y_i - g(z_i) \rVert^2 \big/ \sum_i \lVert y_i - \bar y \rVert^2

    The map g is fitted on one half of the samples and tried on the other, and the other way round. Kinds,
    each of which contains the one before:

    - ``"permutation"``: coordinates one to one, with signs, and one scale for all of them;
    - ``"rotation"``: any rotation with reflections, and one scale (Procrustes; the narrower embedding is
      filled up with zeros);
    - ``"linear"``: any matrix, by ridge regression;
    - ``"smooth"``: a linear map and a Gaussian kernel as wide as the median distance, by kernel ridge
      regression, in the place of a small network: it has one solution and draws no random numbers.

    The strength of a penalty is that of the least leave-one-out error in the half that is fitted.
    1: the target is known; 0 or less: no more than its mean is, which is what unrelated embeddings read.
    Time O(N³ + N²K), and O(K³) for a permutation.

    Args:
        source: z, shape (N, K), N ≥ 32.
        target: y, shape (N, L), row by row the same samples; known factors are a target, too.
        kind: Which map.
        seed: Of the halves.

    Returns:
        R² and its error, of the ratio of two means over samples (the map is taken as given).

    Raises:
        ValueError: If the samples are not as many, or fewer than 32, not finite, the target is constant, or
            there is no such kind.

    Source:
        Classes of identifiability as in Reizinger et al., arXiv 2504.13101; Schönemann (1966) for the
        rotation.

    Example:
        >>> import torch
        >>> z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> map_agreement(z, z.flip(1), "permutation").value
        tensor(1.0000, dtype=torch.float64)
    """
    check_choice(kind, "kind", MAPS)
    z, y = as_matrix(source, "source", _FEWEST), as_matrix(target, "target", _FEWEST)
    require_same_rows(z, y, ("source", "target"))
    errors, spreads = [], []
    for fit, held in _halves(len(z), seed):
        centre, middle = z[fit].mean(0), y[fit].mean(0)
        known, wanted = z[fit] - centre, y[fit] - middle
        shown, truth = z[held] - centre, y[held] - middle
        errors.append(_FITS[kind](known, wanted, shown, truth))
        spreads.append(truth.square().sum(1))
    missed, whole = torch.cat(errors), torch.cat(spreads)
    if not bool(whole.sum() > 0):
        raise ValueError("`target` must not be constant: there is nothing to explain.")
    share = missed.sum() / whole.sum()
    error = (missed - share * whole).square().sum().sqrt() / whole.sum()
    return HeldOut(1 - share, _Z * error)


def mean_correlation(first: Tensor, second: Tensor, seed: int = 0) -> HeldOut:
    r"""Mean correlation of coordinates that are matched one to one (MCC).

    Which coordinate belongs to which, and its sign, is chosen on one half of the samples (the matching of the
    largest sum of |correlations|), correlations are those of the other half, and the other way round: so
    unrelated embeddings read 0, while correlations of the samples that were matched would not.

    Args:
        first: Shape (N, K), N ≥ 32.
        second: Shape (N, L), row by row the same samples; or known factors.
        seed: Of the halves.

    Returns:
        The mean over min(K, L) pairs, −1 to 1, and its error, by leaving out twentieths of the samples by turns.
        Coordinates that do not vary have a correlation of 0.

    Raises:
        ValueError: If the samples are not as many, fewer than 32, or not finite.

    Source:
        Hyvärinen & Morioka (NeurIPS 2016), with held-out correlations.
    """
    a, b = as_matrix(first, "first", _FEWEST), as_matrix(second, "second", _FEWEST)
    require_same_rows(a, b, ("first", "second"))
    values, squares = [], []
    for fit, held in _halves(len(a), seed):
        signed = _unit(a[fit]).T @ _unit(b[fit])
        rows, columns = _matched(signed.abs())
        signs = signed[rows, columns].sign()

        def found(
            samples: Tensor, rows: Tensor = rows, columns: Tensor = columns, signs: Tensor = signs
        ) -> Tensor:
            pairs = _unit(a[samples][:, rows]) * _unit(b[samples][:, columns])
            return (signs * pairs.sum(0)).mean()

        values.append(found(held))
        groups = torch.arange(len(held)) % _GROUPS
        without = torch.stack([found(held[groups != group]) for group in range(_GROUPS)])
        squares.append((_GROUPS - 1) / _GROUPS * (without - without.mean()).square().sum())
    return HeldOut(torch.stack(values).mean(), _Z * torch.stack(squares).sum().sqrt() / 2)


def unbiased_cka(first: Tensor, second: Tensor) -> Tensor:
    r"""Linear centred kernel alignment, with estimates of HSIC that have no bias.

    .. math::
        \mathrm{HSIC}_1(K, L) = \frac{1}{N(N-3)} \Big[ \operatorname{tr}(\tilde K \tilde L)
        + \frac{\mathbf 1^\top \tilde K \mathbf 1 \, \mathbf 1^\top \tilde L \mathbf 1}{(N-1)(N-2)}
        - \frac{2}{N-2} \mathbf 1^\top \tilde K \tilde L \mathbf 1 \Big]

    with Gram matrices whose diagonal is set to 0. 1 for embeddings that are rotations of one another; unrelated
    ones read 0 on average, where the usual estimate reads the more the wider they are.

    Args:
        first: Shape (N, K), N ≥ 4.
        second: Shape (N, L), row by row the same samples.

    Returns:
        0-dimensional float64; NaN where an embedding does not vary.

    Raises:
        ValueError: If the samples are not as many, fewer than 4, or not finite.

    Source:
        Song et al., Feature selection via dependence maximization (JMLR 2012), eq. 5; Nguyen, Raghu &
        Kornblith (ICLR 2021).
    """
    a, b = as_matrix(first, "first", 4), as_matrix(second, "second", 4)
    require_same_rows(a, b, ("first", "second"))
    grams = [(z - z.mean(0)) @ (z - z.mean(0)).T for z in (a, b)]
    for gram in grams:
        gram.fill_diagonal_(0.0)
    both = _hsic(grams[0], grams[1])
    return both / (_hsic(grams[0], grams[0]) * _hsic(grams[1], grams[1])).sqrt()


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    count = len(k)
    rows, columns = k.sum(1), m.sum(1)
    cross = rows.sum() * columns.sum() / ((count - 1) * (count - 2))
    return ((k * m).sum() + cross - 2 / (count - 2) * (rows @ columns)) / (count * (count - 3))


def _halves(count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first, second = order[: count // 2], order[count // 2 :]
    yield first, second
    yield second, first


def _unit(z: Tensor) -> Tensor:
    """Centre columns and scale them to unit length, so that products are correlations."""
    return unit_rows((z - z.mean(0)).T).T


def _matched(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the matching with the largest sum, min(K, L) each."""
    tall = gains.shape[0] > gains.shape[1]
    chosen = best_matching((gains.T if tall else gains).cpu()).to(gains.device)
    own = torch.arange(len(chosen), device=gains.device)
    return (chosen, own) if tall else (own, chosen)


def _isometric(known: Tensor, wanted: Tensor, shown: Tensor, truth: Tensor, turn: Tensor) -> Tensor:
    """Errors of the best multiple of a map (K, L) that is orthogonal once the narrower side is filled up."""
    scale = ((known @ turn) * wanted).sum() / known.square().sum().clamp_min(1e-300)
    moved = shown @ turn
    # What of the source has no place among the target's coordinates lies in those that were filled up.
    beyond = (shown.square().sum(1) - moved.square().sum(1)).clamp_min(0.0)
    return (truth - scale * moved).square().sum(1) + scale.square() * beyond


def _permutation(known: Tensor, wanted: Tensor, shown: Tensor, truth: Tensor) -> Tensor:
    products = known.T @ wanted
    rows, columns = _matched(products.abs())
    turn = torch.zeros_like(products)
    turn[rows, columns] = products[rows, columns].sign()
    return _isometric(known, wanted, shown, truth, turn)


def _rotation(known: Tensor, wanted: Tensor, shown: Tensor, truth: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(known.T @ wanted, full_matrices=False)
    return _isometric(known, wanted, shown, truth, left @ right)


def _ridge(gram: Tensor, wanted: Tensor, asked: Tensor, truth: Tensor) -> Tensor:
    """Errors of kernel ridge regression, with the penalty of the least leave-one-out error."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ wanted
    least, best = math.inf, torch.zeros_like(wanted)
    for strength in _STRENGTHS.to(gram.device) * eigenvalues.mean().clamp_min(1e-300):
        weights = 1 / (eigenvalues.clamp_min(0.0) + strength)
        dual = vectors @ (weights[:, None] * turned)
        own = (vectors.square() * weights).sum(1)
        missed = float((dual / own[:, None]).square().sum())
        if missed < least:
            least, best = missed, dual
    return (truth - asked @ best).square().sum(1)


def _linear(known: Tensor, wanted: Tensor, shown: Tensor, truth: Tensor) -> Tensor:
    return _ridge(known @ known.T, wanted, shown @ known.T, truth)


def _smooth(known: Tensor, wanted: Tensor, shown: Tensor, truth: Tensor) -> Tensor:
    apart = torch.cdist(known, known)
    width = apart[~torch.eye(len(known), dtype=torch.bool, device=known.device)].median()
    width = width.clamp_min(1e-300)
    power = known.square().sum(1).mean().clamp_min(1e-300)

    def kernel(z: Tensor, distances: Tensor) -> Tensor:
        return z @ known.T / power + (-0.5 * (distances / width).square()).exp()

    return _ridge(kernel(known, apart), wanted, kernel(shown, torch.cdist(shown, known)), truth)


_FITS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "permutation": _permutation,
    "rotation": _rotation,
    "linear": _linear,
    "smooth": _smooth,
}
