"""Use of a dictionary by its codes: codes in, how often, how much and where atoms fire out.

Codes are (N, c), or (B, P, c) where the P tokens of an image have places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._checks import as_matrix, as_views

__all__ = ["AtomUse", "Footprint", "atom_use", "footprint_entropy"]


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
