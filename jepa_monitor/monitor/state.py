"""What embeddings are like: in go embeddings, out come two measures and one of three states.

The embeddings differ in many directions (*healthy*), they differ in few (*dimensional* collapse), they
hardly differ (*complete* collapse). Both measures behind the states are relative, so no threshold depends
on the method, the width or the scale of the embeddings:

- the *spread*, :func:`~jepa_monitor.functional.collapse.normalized_std`: 1 for directions that
  cancel, 0 for one direction;
- the *share of directions*: log of the effective rank of the embeddings scaled to unit length,
  over the same of isotropic embeddings of equal N and K. A cloud in r of K directions has about
  log r / log K.

How much a healthy encoder has of either depends on the architecture and the data (few classes
leave few directions), so both also count against the highest that the run itself has had. Half of
the share is the square root of what the directions once were.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor.functional._directions import unit_rows
from jepa_monitor.functional.collapse import effective_rank, normalized_std
from jepa_monitor.functional.isotropic import isotropic_baseline

__all__ = [
    "MIN_SAMPLES",
    "CollapseMeasures",
    "CollapseState",
    "collapse_measures",
    "collapse_state",
]

# Each state is entered below the first value and left above the second. `benchmarks/collapse_zoo.py`
# chose them on seeds of its own; `docs/collapse.md` shows how far healthy runs stay away.
COMPLETE_SPREAD = (0.07, 0.10)
DIMENSIONAL_SHARE = (0.20, 0.25)
LOST_SPREAD = (0.20, 0.30)  # of the highest spread of the run
LOST_SHARE = (0.50, 0.55)  # of the highest share of the run
MIN_SAMPLES = 16  # under so few embeddings a handful of directions looks like all there could be


class CollapseState(IntEnum):
    """What the embeddings are like; ordered by how much is lost."""

    HEALTHY = 0
    DIMENSIONAL = 1
    COMPLETE = 2


class CollapseMeasures(NamedTuple):
    """What the state is read from.

    Attributes:
        spread: Normalised standard deviation, 0 to about 1; 0 if constant.
        directions: Effective rank of the unit embeddings' covariance; 0 if constant.
        possible: The same for isotropic embeddings of equal N and K.
        samples: Number N of finite embeddings that were measured.
        nonfinite: Embeddings with NaN or infinity, which were left out.
    """

    spread: float
    directions: float
    possible: float
    samples: int
    nonfinite: int

    @property
    def share(self) -> float:
        """log(directions) / log(possible), 0 to about 1; 0 if constant."""
        if self.directions <= 1:
            # One of one possible direction is all there is; a width of 1 has no dimensional state.
            return 1.0 if self.directions > 0 and self.possible <= 1 else 0.0
        return math.log(self.directions) / math.log(max(self.possible, 1 + 1e-9))


def collapse_measures(embeddings: Tensor) -> CollapseMeasures:
    """Measure what :func:`collapse_state` decides by.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 16.

    Returns:
        The measures, of the finite rows. Constant embeddings (up to rounding in their own dtype),
        zeros and rows of which fewer than 16 or fewer than half are finite have no spread and no
        direction.

    Raises:
        ValueError: If there are fewer than 16 embeddings: no state can be told from them, least of
            all the healthy one. Or if the shape is not (N, K).

    Example:
        >>> import torch
        >>> z = torch.cat([torch.eye(32), -torch.eye(32)])
        >>> measures = collapse_measures(z)
        >>> round(measures.spread, 2), round(measures.directions), round(measures.possible)
        (1.01, 32, 25)
    """
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"`embeddings` must have shape (N, K), got {tuple(embeddings.shape)}.")
    if len(embeddings) < MIN_SAMPLES:
        raise ValueError(
            f"`embeddings` must have at least {MIN_SAMPLES} rows to tell a state of collapse, got "
            f"{len(embeddings)}. Give more held-out images."
        )
    finite = embeddings[torch.isfinite(embeddings).all(dim=1)]
    count, width = finite.shape
    nonfinite = len(embeddings) - count
    possible = isotropic_baseline(max(count - 1, 1), width).effective_rank
    enough = count >= MIN_SAMPLES and count >= nonfinite
    if not enough or effective_rank(finite) == 0:
        return CollapseMeasures(0.0, 0.0, possible, count, nonfinite)
    unit = unit_rows(finite.double())
    return CollapseMeasures(
        spread=normalized_std(unit).item(),
        directions=effective_rank(unit).item(),
        possible=possible,
        samples=count,
        nonfinite=nonfinite,
    )


def collapse_state(
    embeddings: Tensor | CollapseMeasures,
    previous: CollapseState = CollapseState.HEALTHY,
    highest_share: float = 0.0,
    highest_spread: float = 0.0,
) -> CollapseState:
    """Tell a healthy encoder from a collapsed one, and which way it has collapsed.

    Complete below a spread of 0.07 (a mean cosine of about 0.995) or a fifth of the run's highest;
    otherwise dimensional below a share of directions of 0.20 (3 of 256) or half of the run's
    highest. To leave a state, 0.10 and three tenths, or 0.25 and 55 %, must be passed.

    Args:
        embeddings: Embeddings, shape (N, K), N ≥ 16, or their measures.
        previous: The state before, for the hysteresis.
        highest_share: The run's highest share of directions so far; 0 to look at these embeddings
            alone.
        highest_spread: The run's highest spread so far; likewise.

    Returns:
        The state. Constant embeddings, zeros, and embeddings most of which are not finite are
        COMPLETE.

    Raises:
        ValueError: If there are fewer than 16 embeddings, or the shape is not (N, K).

    Example:
        >>> import torch
        >>> z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
        >>> collapse_state(z), collapse_state(z[:, :2] @ z[:2]), collapse_state(z + 100)
        (<CollapseState.HEALTHY: 0>, <CollapseState.DIMENSIONAL: 1>, <CollapseState.COMPLETE: 2>)
    """
    measures = embeddings if isinstance(embeddings, tuple) else collapse_measures(embeddings)
    complete = previous == CollapseState.COMPLETE
    if measures.spread < max(COMPLETE_SPREAD[complete], LOST_SPREAD[complete] * highest_spread):
        return CollapseState.COMPLETE
    collapsed = previous != CollapseState.HEALTHY
    if measures.share < max(DIMENSIONAL_SHARE[collapsed], LOST_SHARE[collapsed] * highest_share):
        return CollapseState.DIMENSIONAL
    return CollapseState.HEALTHY
