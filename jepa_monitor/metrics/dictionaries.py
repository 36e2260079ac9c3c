"""Geometry of a dictionary and use of its codes, and the shape of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_matrix, as_views
from jepa_monitor.functional.atom_use import footprint_of_sums, use_of_sums
from jepa_monitor.functional.dictionaries import dictionary_coherence, dictionary_stability
from jepa_monitor.functional.token_geometry import TokenGeometry as Geometry
from jepa_monitor.functional.token_geometry import shape_of_tokens
from jepa_monitor.metrics._base import MonitorMetric, joined

_USE = ("active", "dead", "energy_top_share", "frequency_max")


class DictionaryGeometry(MonitorMetric):
    r"""How the atoms of a dictionary lie to each other, and how its codes use them.

    See :func:`jepa_monitor.functional.dictionary_coherence`, ``atom_use``, ``footprint_entropy`` and
    ``dictionary_stability``. The state has (P + 3)·c numbers, whatever the number of codes.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``codes`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, c)`` or ``(B, P, c)``; with
      ``places`` the latter

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors: the fields of ``Coherence``; ``active`` (L0), ``dead`` (share of
      atoms), ``energy_top_share`` (of the energy in the strongest tenth of the atoms) and ``frequency_max`` (of the atom that
      fires most); with ``places`` also ``footprint_entropy``, ``_null`` and ``_atoms``; with ``other`` also ``stability``
      and ``stability_random``

    Args:
        dictionary: Atoms, (c, d).
        places: P, tokens of an image; ``None`` for codes without a place.
        other: Atoms that another seed found, (c', d) with c' ≥ c; ``None`` for none.
        seed: Of the random directions.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = DictionaryGeometry(torch.eye(4))
        >>> metric.update(torch.eye(4)[:3])
        >>> found = metric.compute()
        >>> float(found["coherence"]), float(found["active"]), float(found["dead"])
        (0.0, 1.0, 0.25)
    """

    fired: Tensor
    total: Tensor
    squares: Tensor
    image_squares: Tensor
    placed: Tensor

    def __init__(
        self,
        dictionary: Tensor,
        places: int | None = None,
        other: Tensor | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(own_update=True, **kwargs)
        atoms = as_matrix(dictionary, "dictionary", min_rows=2).detach()
        if places is not None and check_positive_int(places, "places") < 2:
            raise ValueError(f"`places` must be at least 2 or None, got {places}.")
        self.places = places
        self.atoms = atoms
        # Nothing of it depends on codes.
        self._fixed = dictionary_coherence(atoms, seed=seed)._asdict()
        if other is not None:
            found = dictionary_stability(atoms, other.detach(), seed=seed)
            self._fixed |= {"stability": found.cosine, "stability_random": found.random}
        footprint = ("footprint_entropy", "footprint_null", "footprint_atoms") if places else ()
        self.value_names = (*self._fixed, *_USE, *footprint)
        for name in ("fired", "total", "squares", "image_squares"):
            self._add_sum(name, len(atoms))
        self._add_sum("placed", places or 0, len(atoms))

    def update(self, codes: Tensor) -> None:
        """Add a batch.

        Args:
            codes: Shape (B, c) or (B, P, c); with ``places`` the latter.

        Raises:
            ValueError: If the shape is another.
        """
        count, places = len(self.atoms), self.places
        if codes.ndim == 3:
            z = as_views(codes, "codes", min_samples=0, min_views=1).detach()
        else:
            z = as_matrix(codes, "codes", min_rows=0).detach()
        if z.shape[-1] != count or (places is not None and z.shape[1:] != (places, count)):
            wanted = f"(B, {places}, {count})" if places else f"(B, {count}) or (B, P, {count})"
            raise ValueError(f"`codes` must have shape {wanted}, got {tuple(codes.shape)}.")
        if places is None:
            z = z.reshape(-1, 1, count)
        self.count = self.count + len(z)
        self.fired = self.fired + (z != 0).double().sum((0, 1))
        self.total = self.total + z.sum((0, 1))
        self.squares = self.squares + z.square().sum((0, 1))
        if self.places is not None:
            self.placed = self.placed + z.abs().sum(0)
            self.image_squares = self.image_squares + z.abs().sum(1).square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Geometry of the dictionary, and use of its atoms by all codes so far.

        Returns:
            Numbers by name.
        """
        points = self._samples() * (self.places or 1)
        device = self.total.device
        atoms = self.atoms.to(device)
        use = use_of_sums(points, self.fired, self.total, self.squares, atoms)
        strongest = use.energy.sort(descending=True).values
        top = strongest[: max(len(strongest) // 10, 1)].sum() / strongest.sum()
        found = {name: value.to(device) for name, value in self._fixed.items()}
        found |= dict(zip(_USE, (use.active, use.dead, top, use.firing.amax()), strict=True))
        if self.places is not None:
            places = footprint_of_sums(self.placed, self.squares, self.image_squares)
            found |= {f"footprint_{name}": value for name, value in places._asdict().items()}
        return found


class TokenGeometry(MonitorMetric):
    r"""Shape of the tokens of images, each number beside that of Gaussian tokens.

    See :func:`jepa_monitor.functional.token_geometry`. The metric keeps all tokens, 8·P·d bytes an image, and takes
    O(P³) time for each: feed it some hundred images.

    As input to ``forward`` and ``update`` the metric accepts the following input

    - ``tokens`` (:class:`~torch.Tensor`): finite floating-point tensor of shape ``(B, P, d)``, patch tokens without class
      and register tokens

    As output of ``forward`` and ``compute`` the metric returns the following output

    - a dictionary of 0-dimensional float64 tensors, the fields of
      :class:`jepa_monitor.functional.token_geometry.TokenGeometry`

    Args:
        tokens: P, tokens of an image.
        num_features: d.
        archetypes: Of an image.
        neighbors: Of a token in the graph of its image.
        place_axes: Directions of place to take off.
        share: Of the variance that dimensions are to make up.
        seed: Of the Gaussian tokens and of the pairs of tokens.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TokenGeometry(tokens=16, num_features=8, archetypes=4)
        >>> metric.update(torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0)))
        >>> found = metric.compute()
        >>> bool(found["archetype_error"] > found["pca_error"])
        True
    """

    value_names = Geometry._fields

    kept: list[Tensor]
    resolution: Tensor

    def __init__(
        self,
        tokens: int,
        num_features: int,
        archetypes: int = 10,
        neighbors: int = 6,
        place_axes: int = 2,
        share: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shape = (
            check_positive_int(tokens, "tokens"),
            check_positive_int(num_features, "num_features"),
        )
        self.options: dict[str, Any] = {
            "archetypes": archetypes,
            "neighbors": neighbors,
            "place_axes": place_axes,
            "share": share,
            "seed": seed,
        }
        # What does not fit the tokens is said now and not after an epoch of them.
        shape_of_tokens(torch.zeros(1, *self.shape, dtype=torch.float64), 0.0, **self.options)
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.add_state("resolution", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, tokens: Tensor) -> None:
        """Add a batch.

        Args:
            tokens: Shape (B, P, d).

        Raises:
            ValueError: If the shape is another.
        """
        t = as_views(tokens, "tokens", min_samples=0, min_views=1).detach()
        if t.shape[1:] != self.shape:
            raise ValueError(
                f"`tokens` must have shape (B, {self.shape[0]}, {self.shape[1]}), got "
                f"{tuple(tokens.shape)}."
            )
        self.count = self.count + len(t)
        self.kept.append(t.flatten())
        self.resolution = self.resolution.clamp(min=torch.finfo(tokens.dtype).eps)

    def compute(self) -> dict[str, Tensor]:
        """Shape of all tokens so far.

        Returns:
            The fields of :class:`jepa_monitor.functional.token_geometry.TokenGeometry`.
        """
        tokens = joined(self.kept).view(self._samples(), *self.shape)
        return shape_of_tokens(tokens, float(self.resolution), **self.options)._asdict()
