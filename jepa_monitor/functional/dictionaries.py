"""Geometry of a dictionary and use of its codes: atoms and codes in, numbers beside their chance levels out.

Atoms are the rows of a dictionary (c, d); codes are (N, c), or (B, P, c) where P tokens of an image have places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._assignment import best_matching
from jepa_monitor.functional._checks import as_matrix, as_views, require_same_width
from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional._spectrum import stable_share

__all__ = [
    "AtomUse",
    "Coherence",
    "Footprint",
    "Stability",
    "atom_use",
    "dictionary_coherence",
    "dictionary_stability",
    "footprint_entropy",
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


class AtomUse(NamedTuple):
    """How often each atom fires, and how much of reconstructions it makes; float64.

    Args:
        firing: Share of points for which the atom fires, (c,).
        energy: Mean squared length of what it adds to a point, E[z²]·‖D‖², (c,).
        mean_energy: Length of its mean contribution, |E[z]|·‖D‖, (c,), as published.
        active: Atoms that fire for a point on average (L0), 0-dimensional.
        dead: Share of atoms that never fire, 0-dimensional.
    """

    firing: Tensor
    energy: Tensor
    mean_energy: Tensor
    active: Tensor
    dead: Tensor


class Footprint(NamedTuple):
    """Where in images atoms fire; 0-dimensional float64 tensors, means over atoms that fire often enough.

    Args:
        entropy: Of an atom's mean |code| over the P places, over log P: 1 if it fires everywhere alike.
        null: What it is for codes that do not know their place.
        atoms: How many atoms fire often enough.
    """

    entropy: Tensor
    null: Tensor
    atoms: Tensor


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


def atom_use(codes: Tensor, dictionary: Tensor) -> AtomUse:
    """Say how often atoms fire, and how much of reconstructions each makes.

    Args:
        codes: (N, c).
        dictionary: Atoms, (c, d).

    Returns:
        Shares and energies.

    Raises:
        ValueError: If there is not one code for each atom.

    Source:
        arXiv 2510.08638. Its library gives ``mean_energy``, which small codes that fire always dominate and in
        which signs cancel; ``energy`` is what an atom adds in the mean square.

    Example:
        >>> import torch
        >>> found = atom_use(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.eye(2))
        >>> found.firing.tolist(), found.energy.tolist(), found.mean_energy.tolist(), float(found.dead)
        ([0.5, 0.0], [2.0, 0.0], [1.0, 0.0], 0.5)
    """
    z, atoms = as_matrix(codes, "codes"), as_matrix(dictionary, "dictionary")
    if z.shape[1] != len(atoms):
        raise ValueError(
            f"`codes` must have shape (N, {len(atoms)}), one for each atom, got {tuple(z.shape)}."
        )
    return use_of_sums(len(z), (z != 0).double().sum(0), z.sum(0), z.square().sum(0), atoms)


def use_of_sums(
    count: int, fired: Tensor, total: Tensor, squares: Tensor, atoms: Tensor
) -> AtomUse:
    """Compute :func:`atom_use` from sums over N points.

    Args:
        count: N.
        fired: For how many the atom fires, (c,).
        total: Sums of its codes, (c,).
        squares: Sums of their squares, (c,).
        atoms: (c, d), float64.

    Returns:
        As :func:`atom_use`.
    """
    sizes = torch.linalg.vector_norm(atoms, dim=1)
    firing = fired / count
    return AtomUse(
        firing,
        squares / count * sizes.square(),
        (total / count).abs() * sizes,
        firing.sum(),
        (fired == 0).double().mean(),
    )


def footprint_entropy(codes: Tensor) -> Footprint:
    r"""Say whether atoms fire in the same places of all images: entropy of their footprints.

    A footprint is :math:`\omega_i(t) = \mathrm{mean}_b |z_{bti}|`. Few firings alone leave gaps in it, so the null is the
    entropy for codes that do not know their place: footprints whose places were shuffled in each image vary by
    :math:`v = B^{-2} \sum_b \mathrm{var}_t |z_{bt}|`, exactly, and a Dirichlet law of P equal parts of that variance
    has a known mean entropy. That holds for atoms which fire P times at least, counted as firings of equal size; others
    are left out.

    Args:
        codes: (B, P, c), P ≥ 2.

    Returns:
        Means over the atoms that fire often enough; NaN if none does.

    Source:
        Footprints of arXiv 2510.08638; the null is ours.

    Example:
        >>> import torch
        >>> codes = torch.zeros(50, 4, 1)
        >>> codes[:, 2] = 1  # always in the same place
        >>> found = footprint_entropy(codes)
        >>> round(float(found.entropy), 3), round(float(found.null), 3)
        (0.0, 0.978)
    """
    z = as_views(codes, "codes", min_samples=1, min_views=2).abs()
    return footprint_of_sums(z.sum(0), z.square().sum((0, 1)), z.sum(1).square().sum(0))


def footprint_of_sums(total: Tensor, squares: Tensor, image_squares: Tensor) -> Footprint:
    """Compute :func:`footprint_entropy` from sums over images.

    Args:
        total: Sums of |codes| at each place, (P, c), float64.
        squares: Sums of their squares, (c,).
        image_squares: Sums over images of the square of an image's sum, (c,).

    Returns:
        As :func:`footprint_entropy`.
    """
    places = len(total)
    alive = squares > 0
    mass, spread = total.sum(0)[alive], squares[alive] - image_squares[alive] / places
    entropy = torch.special.entr(total[:, alive] / mass).sum(0)
    # Variance of a place's share of the mass, were places shuffled in each image.
    variance = spread.clamp(min=0) / places / mass.square()
    # A Dirichlet law with P parts of concentration a has it for Pa + 1 = (P − 1)/(P²·variance) firings.
    firings = (places - 1) / (places**2 * variance)
    concentration = (firings - 1) / places
    null = torch.digamma(firings) - torch.digamma(concentration + 1)
    null = torch.where(firings.isfinite(), null, math.log(places))
    often = firings >= places
    entropy, null = entropy[often].mean(), null[often].mean()
    return Footprint(entropy / math.log(places), null / math.log(places), often.sum().double())
