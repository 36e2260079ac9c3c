"""Geometry of a dictionary: atoms in, numbers beside those of random directions out.

Atoms are the rows of a dictionary (c, d).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._assignment import best_matching
from jepa_monitor.functional._checks import as_matrix, require_same_width
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._spectrum import stable_share

__all__ = [
    "Coherence",
    "Stability",
    "dictionary_coherence",
    "dictionary_stability",
    "gaussian_hoyer",
    "hoyer_sparsity",
    "welch_bound",
]

ANTIPODAL = -0.9  # cosine of a pair of atoms that point in opposite directions
_BLOCK = 1024  # rows of the matrix of cosines held at a time


class Coherence(NamedTuple):
    """How atoms lie to each other, beside unit vectors at random; 0-dimensional float64 tensors.

    Args:
        coherence: Largest |cosine| of two atoms.
        random: The same of as many random directions, mean of the draws.
        welch: Least that any atoms could have.
        mean: Mean |cosine| of two atoms.
        random_mean: The same of random directions.
        frame: Sum of all squared cosines over c²/d: 1 for a tight frame, the least where c ≥ d.
        random_frame: The same of random directions.
        stable_rank: Σσ²/σ₁² of the unit atoms, uncentred.
        random_stable_rank: The same of random directions.
        antipodal: Share of the atoms that have one in the opposite direction, of cosine −0.9 or less.
        random_antipodal: The same of random directions.
        hoyer: Mean Hoyer sparsity of an atom's coordinates.
        gaussian_hoyer: What it is on average for a random direction.
        zero: Share of atoms that are 0; they are left out of all else.
    """

    coherence: Tensor
    random: Tensor
    welch: Tensor
    mean: Tensor
    random_mean: Tensor
    frame: Tensor
    random_frame: Tensor
    stable_rank: Tensor
    random_stable_rank: Tensor
    antipodal: Tensor
    random_antipodal: Tensor
    hoyer: Tensor
    gaussian_hoyer: Tensor
    zero: Tensor


class Stability(NamedTuple):
    """How far two dictionaries agree.

    Args:
        cosine: Mean cosine of the matched atoms, 0-dimensional, float64.
        random: The same of random directions of the same numbers.
        matches: The atom of the second dictionary for each of the first, (c,), int64.
        cosines: Of the matched atoms, (c,), float64.
    """

    cosine: Tensor
    random: Tensor
    matches: Tensor
    cosines: Tensor


def welch_bound(atoms: int, width: int) -> float:
    """Least coherence that c directions in d dimensions can have.

    Args:
        atoms: c, at least 2.
        width: d.

    Returns:
        √((c − d)/(d(c − 1))); 0 for c ≤ d.

    Raises:
        ValueError: If there are fewer than 2 atoms.

    Source:
        Welch, Lower bounds on the maximum cross correlation of signals (1974).

    Example:
        >>> round(welch_bound(32_000, 768), 4)
        0.0356
    """
    check_positive_int(width, "width")
    if check_positive_int(atoms, "atoms") < 2:
        raise ValueError(f"`atoms` must be at least 2 to have a coherence, got {atoms}.")
    return math.sqrt(max(atoms - width, 0) / (width * (atoms - 1)))


def hoyer_sparsity(vectors: Tensor) -> Tensor:
    r"""Hoyer's sparsity of each row, :math:`(\sqrt d - \lVert x \rVert_1 / \lVert x \rVert_2)/(\sqrt d - 1)`.

    Args:
        vectors: (N, d), d ≥ 2.

    Returns:
        (N,), float64, from 0 (all entries of one size) to 1 (one entry alone); NaN for rows of zeros.

    Raises:
        ValueError: If d is 1.

    Source:
        Hoyer, Non-negative matrix factorization with sparseness constraints (JMLR 2004).

    Example:
        >>> import torch
        >>> hoyer_sparsity(torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    x = as_matrix(vectors, "vectors")
    if x.shape[1] < 2:
        raise ValueError("`vectors` must have shape (N, d) with d ≥ 2, got d = 1.")
    root = math.sqrt(x.shape[1])
    unit = unit_rows(x)
    sparsity = (root - unit.abs().sum(1)) / (root - 1)
    return torch.where((unit != 0).any(1), sparsity, torch.nan)


def gaussian_hoyer(width: int) -> float:
    """Mean Hoyer sparsity of a random direction.

    Args:
        width: d, at least 2.

    Returns:
        Exactly its mean; about 0.20 for large d.

    Raises:
        ValueError: If d is 1.

    Example:
        >>> round(gaussian_hoyer(768), 4)
        0.2094
    """
    if check_positive_int(width, "width") < 2:
        raise ValueError(f"`width` must be at least 2, got {width}.")
    # The direction is independent of the length: E[‖x‖₁/‖x‖₂] = E‖x‖₁ / E‖x‖₂.
    log_length = math.lgamma((width + 1) / 2) - math.lgamma(width / 2)
    ratio = width / math.sqrt(math.pi) * math.exp(-log_length)
    return (math.sqrt(width) - ratio) / (math.sqrt(width) - 1)


def dictionary_coherence(dictionary: Tensor, *, draws: int = 3, seed: int = 0) -> Coherence:
    r"""Say how atoms lie to each other, each number beside that of random directions.

    All is read off unit atoms, so that no scale matters. Uncentred data put a common direction into every
    atom and raise all of it: learn the dictionary of centred points. Memory O(c·1024), time O(c²d).

    Args:
        dictionary: Atoms, (c, d), c ≥ 2, d ≥ 2; at least two of them not 0.
        draws: Of random dictionaries of the same size.
        seed: Of the draws.

    Returns:
        The numbers.

    Raises:
        ValueError: If fewer than two atoms are not 0, or d is 1.

    Source:
        arXiv 2510.08638, with Welch's bound (1974).

    Example:
        >>> import torch
        >>> found = dictionary_coherence(torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]))
        >>> round(float(found.coherence), 6), round(float(found.welch), 6)
        (0.5, 0.5)
    """
    given = as_matrix(dictionary, "dictionary", min_rows=2)
    check_positive_int(draws, "draws")
    unit = unit_rows(given)
    unit = unit[(unit != 0).any(1)]
    if len(unit) < 2:
        raise ValueError(
            f"`dictionary` must have at least 2 atoms that are not 0, got {len(unit)}."
        )
    sparsity = hoyer_sparsity(unit).mean()
    own = _pairs(unit)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.stack([_pairs(_directions(unit, generator)) for _ in range(draws)]).mean(0)
    largest, mean, frame, rank, antipodal = own
    bound = own.new_tensor(welch_bound(*unit.shape))
    return Coherence(
        largest,
        chance[0],
        bound,
        mean,
        chance[1],
        frame,
        chance[2],
        rank,
        chance[3],
        antipodal,
        chance[4],
        sparsity,
        own.new_tensor(gaussian_hoyer(unit.shape[1])),
        own.new_tensor(1 - len(unit) / len(given)),
    )


def _directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw directions of no preference."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return unit_rows(drawn).to(like.device)


def _pairs(unit: Tensor) -> Tensor:
    """Largest and mean |cosine|, frame potential, stable rank and share with an antipode, (5,)."""
    count, width = unit.shape
    largest, total = unit.new_zeros(()), unit.new_zeros(())
    opposite = 0
    for start in range(0, count, _BLOCK):
        cosines = unit[start : start + _BLOCK] @ unit.T
        cosines.diagonal(offset=start).zero_()
        opposite += int((cosines.amin(1) <= ANTIPODAL).sum())
        cosines = cosines.abs_()
        largest, total = torch.maximum(largest, cosines.amax()), total + cosines.sum()
    second = torch.linalg.eigvalsh(unit.T @ unit).flip(0)
    return torch.stack(
        [
            largest.clamp(max=1),
            total / (count * (count - 1)),
            second.square().sum() * width / count**2,
            stable_share(second),
            unit.new_tensor(opposite / count),
        ]
    )


def dictionary_stability(
    first: Tensor, second: Tensor, *, draws: int = 3, seed: int = 0
) -> Stability:
    """Match the atoms of two dictionaries one to one, and say how far they agree.

    Dictionaries that start from the same points agree at the start already: compare runs of *different* seeds
    of whatever they start from, k-means included. Uncentred data put a common direction into every atom and raise it
    too. Time O(c³).

    Args:
        first: Atoms, (c, d).
        second: Atoms, (c', d), c' ≥ c.
        draws: Of pairs of random dictionaries.
        seed: Of the draws.

    Returns:
        The mean cosine of matched atoms (one that is 0 has cosine 0 with all), what random directions have, and
        the matches.

    Raises:
        ValueError: If widths differ, or the second has fewer atoms.

    Source:
        Fel et al., Archetypal SAE (arXiv 2502.12892), as a mean and not a sum.

    Example:
        >>> import torch
        >>> found = dictionary_stability(torch.eye(3), 2 * torch.eye(3).flip(0))
        >>> float(found.cosine), found.matches.tolist()
        (1.0, [2, 1, 0])
    """
    a, b = as_matrix(first, "first"), as_matrix(second, "second")
    require_same_width(a, b, ("first", "second"))
    if len(b) < len(a):
        raise ValueError(
            f"`second` must have at least as many atoms as `first`, {len(a)}, got {len(b)}."
        )
    check_positive_int(draws, "draws")
    a, b = unit_rows(a), unit_rows(b)
    cosines, matches = _matched(a, b)
    generator = torch.Generator().manual_seed(seed)
    chance = [
        _matched(_directions(a, generator), _directions(b, generator))[0].mean()
        for _ in range(draws)
    ]
    return Stability(cosines.mean(), torch.stack(chance).mean(), matches, cosines)


def _matched(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    cosines = a @ b.T
    matches = best_matching(cosines.cpu()).to(a.device)
    return cosines.gather(1, matches[:, None])[:, 0], matches
