"""Shape of the tokens of images: in go patch tokens (B, P, d), out come numbers beside those of Gaussian tokens.

Whether tokens lie on few dimensions, are mixtures of few archetypes, or on a curved sheet: each is asked of the tokens
and of normal ones of the same mean and covariance, for which none of it means anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa_monitor._checks import check_positive_int
from jepa_monitor.functional._checks import as_views, require_number
from jepa_monitor.functional._spectrum import stable_share
from jepa_monitor.functional.archetypes import archetypal_analysis

__all__ = [
    "Geodesics",
    "TokenGeometry",
    "geodesics",
    "matched_gaussian",
    "pca_dimensions",
    "position_axes",
    "token_geometry",
]

_DRAWS = 32  # images of Gaussian tokens of the covariance of all
_PAIRS = 64  # of tokens of an image


class Geodesics(NamedTuple):
    """Ways through neighbours against straight ones; means over pairs, (G,), float64.

    Args:
        ratio: Length of the shortest way through the graph over that of the straight line; at least 1.
        gap: Distance from the middle of the straight line to the nearest point, over half its length: 1
            if nothing is nearer than its ends, 0 if a point lies there.
        connected: Share of the pairs between which there is a way.
    """

    ratio: Tensor
    gap: Tensor
    connected: Tensor


class TokenGeometry(NamedTuple):
    """Shape of tokens; 0-dimensional float64 tensors, means over images.

    Args:
        position_rank: Stable rank of the mean tokens of the places; of a sheet about 2.
        position_rank_gaussian: The same, if tokens do not know their place.
        dimensions: Principal components of an image's tokens that make up a share of its variance.
        dimensions_gaussian: The same of Gaussian tokens of the covariance of all images' tokens.
        content_dimensions: As ``dimensions``, after the leading axes of place were taken off.
        content_dimensions_gaussian: The same of Gaussian tokens of the covariance of what is left.
        archetype_error: Share of an image's variance that k archetypes leave.
        archetype_error_gaussian: The same of Gaussian tokens of the image's own mean and covariance.
        pca_error: What k − 1 principal axes leave, of both: the least that archetypes could.
        geodesic_ratio: Length of ways through neighbouring tokens over straight ones.
        geodesic_ratio_gaussian: The same of Gaussian tokens of the image's own mean and covariance.
        midpoint_gap: How empty the middle of a straight line between tokens is, 0 … 1.
        midpoint_gap_gaussian: The same of Gaussian tokens.
    """

    position_rank: Tensor
    position_rank_gaussian: Tensor
    dimensions: Tensor
    dimensions_gaussian: Tensor
    content_dimensions: Tensor
    content_dimensions_gaussian: Tensor
    archetype_error: Tensor
    archetype_error_gaussian: Tensor
    pca_error: Tensor
    geodesic_ratio: Tensor
    geodesic_ratio_gaussian: Tensor
    midpoint_gap: Tensor
    midpoint_gap_gaussian: Tensor


def matched_gaussian(points: Tensor, seed: int = 0) -> Tensor:
    """Draw points that have exactly the mean and the covariance of others, and no other structure.

    The singular vectors of each centred set are replaced by random ones, uniform over those orthogonal to the
    constant vector: as those of normal points are, whatever their covariance. All sets get the same ones.

    Args:
        points: G sets of N points, (G, N, d), N ≥ 2.
        seed: Of the draw.

    Returns:
        (G, N, d), float64.

    Source:
        Eaton, Multivariate Statistics (1983), Prop. 7.3, for the uniform law.

    Example:
        >>> import torch
        >>> points = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0)) ** 3
        >>> drawn = matched_gaussian(points)
        >>> torch.allclose(drawn[0].T.cov(), points[0].double().T.cov())
        True
    """
    x = as_views(points, "points", min_samples=1, min_views=2)
    centre = x.mean(1, keepdim=True)
    _, sizes, axes = torch.linalg.svd(x - centre, full_matrices=False)
    count, rank = x.shape[1], min(x.shape[1] - 1, sizes.shape[1])
    noise = torch.randn(
        count, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    left, triangle = torch.linalg.qr(noise - noise.mean(0))
    left = (left * triangle.diagonal().sign()).to(x.device)  # else the law is not uniform
    drawn: Tensor = (left * sizes[:, None, :rank]) @ axes[:, :rank] + centre
    return drawn


def pca_dimensions(points: Tensor, share: float = 0.95) -> Tensor:
    """Count the principal components of each set that make up a share of its variance.

    Args:
        points: G sets of N points, (G, N, d), N ≥ 2.
        share: Of the variance, in (0, 1].

    Returns:
        (G,), float64; 0 for points that are all the same.

    Example:
        >>> import torch
        >>> pca_dimensions(torch.tensor([[[0.0, 0.0], [2.0, 2.0], [3.0, 3.0]]]))
        tensor([1.], dtype=torch.float64)
    """
    x = as_views(points, "points", min_samples=1, min_views=2)
    require_number(share, "share", 0.0, 1.0)
    variances = _variances(x, torch.finfo(points.dtype).eps)
    return _reaching(variances, share)


def _variances(x: Tensor, resolution: float) -> Tensor:
    """Sums of squares along the principal axes of each set, descending; 0 of what is rounding."""
    centred = x - x.mean(1, keepdim=True)
    wide = x.shape[2] > x.shape[1]
    gram = centred @ centred.transpose(1, 2) if wide else centred.transpose(1, 2) @ centred
    values = torch.linalg.eigvalsh(gram).flip(1).clamp(min=0)
    floor = (4 * resolution) ** 2 * x.square().sum((1, 2))
    return torch.where(values.sum(1) > floor, values.T, 0.0).T


def _reaching(variances: Tensor, share: float) -> Tensor:
    total = variances.sum(1, keepdim=True)
    below = variances.cumsum(1) < share * total * (1 - 1e-12)
    return torch.where(total[:, 0] > 0, 1 + below.double().sum(1), 0.0)


def position_axes(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the directions in which the mean tokens of the places differ most.

    Args:
        tokens: (B, P, d).
        count: How many, at most min(P, d).

    Returns:
        Orthonormal directions (count, d), and the stable rank of the centred means, 0-dimensional.

    Raises:
        ValueError: If there are not as many.
    """
    t = as_views(tokens, "tokens", min_samples=1, min_views=2)
    check_positive_int(count, "count")
    if count > min(t.shape[1:]):
        raise ValueError(f"`count` must be at most {min(t.shape[1:])}, got {count}.")
    means = t.mean(0)
    _, sizes, axes = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    return axes[:count], stable_share(sizes.square())


def geodesics(
    points: Tensor, neighbors: int = 6, *, pairs: int = _PAIRS, seed: int = 0
) -> Geodesics:
    """Compare shortest ways through the graph of nearest neighbours with straight lines.

    On a curved sheet the ratio rises above 1 and the middles of lines are empty. So they are for few points in
    many dimensions, whatever their shape: read both beside :func:`matched_gaussian`. Memory O(GN²), time O(GN³).

    Args:
        points: G sets of N points, (G, N, d), N ≥ 3.
        neighbors: Of a point, which has an edge to each; 1 … N − 1.
        pairs: How many to draw, the same of each set; all, if there are no more.
        seed: Of the draw.

    Returns:
        Means over pairs; NaN for a set whose points are all the same.

    Raises:
        ValueError: If there are fewer points than neighbours.

    Source:
        Tenenbaum et al., Isomap (2000), for the graph; arXiv 2510.08638 for the comparison.

    Example:
        >>> import torch
        >>> line = torch.arange(5.0)[None, :, None]
        >>> [round(float(value), 6) for value in geodesics(line, 2)]
        [1.0, 0.466667, 1.0]
    """
    x = as_views(points, "points", min_samples=1, min_views=3)
    check_positive_int(neighbors, "neighbors")
    check_positive_int(pairs, "pairs")
    count = x.shape[1]
    if neighbors >= count:
        raise ValueError(f"`neighbors` must be at most {count - 1}, got {neighbors}.")
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    ways = _shortest(distances, neighbors)
    first, second = torch.triu_indices(count, count, 1, device=x.device)
    if len(first) > pairs:
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))[:pairs]
        first, second = first[order], second[order]
    straight, through = distances[:, first, second], ways[:, first, second]
    apart = straight > 0
    # Stewart's theorem: from the middle of a line to any point, by the distances of its ends.
    squares = distances.square()
    middle = squares[:, first].add(squares[:, second]).amin(2) / 2 - straight.square() / 4
    gap = middle.clamp(min=0).sqrt() / (straight / 2)
    reached = apart & through.isfinite()
    ratio = torch.where(reached, through / straight, 0.0).sum(1) / reached.sum(1)
    return Geodesics(
        ratio,
        torch.where(apart, gap, 0.0).sum(1) / apart.sum(1),
        reached.sum(1) / apart.sum(1),
    )


def _shortest(distances: Tensor, neighbors: int) -> Tensor:
    """All shortest ways (Floyd & Warshall) through edges to the nearest, either way."""
    own = distances.clone()
    own.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = own.topk(neighbors, dim=2, largest=False).indices
    edges = torch.full_like(distances, torch.inf).scatter(2, nearest, distances.gather(2, nearest))
    ways = torch.minimum(edges, edges.transpose(1, 2))
    ways.diagonal(dim1=1, dim2=2).zero_()
    for via in range(distances.shape[1]):
        ways = torch.minimum(ways, ways[:, :, via, None] + ways[:, None, via])
    return ways


def token_geometry(
    tokens: Tensor,
    *,
    archetypes: int = 10,
    neighbors: int = 6,
    place_axes: int = 2,
    share: float = 0.95,
    seed: int = 0,
) -> TokenGeometry:
    """Say what shape the tokens of images have, each number beside that of Gaussian tokens.

    A claim about shape (few archetypes, a curved sheet) holds only as far as a number differs from its control:
    Gaussian tokens have archetypes and geodesics too. Images whose tokens are all the same are left out.

    Args:
        tokens: Patch tokens of B images, (B, P, d), P ≥ 3.
        archetypes: k, 2 … P.
        neighbors: Of a token in the graph of its image, 1 … P − 1.
        place_axes: Directions of place to take off, 1 … min(P, d).
        share: Of the variance that dimensions are to make up.
        seed: Of the Gaussian tokens and of the pairs of tokens.

    Returns:
        The numbers.

    Raises:
        ValueError: If there are too few tokens for what is asked.

    Source:
        Tests of the Minkowski representation hypothesis, arXiv 2510.08638; the controls are ours.

    Example:
        >>> import torch
        >>> tokens = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> found = token_geometry(tokens, archetypes=4)
        >>> round(float(found.dimensions), 1), round(float(found.dimensions_gaussian), 1)
        (6.8, 6.4)
    """
    t = as_views(tokens, "tokens", min_samples=1, min_views=3)
    resolution = torch.finfo(tokens.dtype).eps
    return shape_of_tokens(t, resolution, archetypes, neighbors, place_axes, share, seed)


def shape_of_tokens(
    t: Tensor,
    resolution: float,
    archetypes: int,
    neighbors: int,
    place_axes: int,
    share: float,
    seed: int,
) -> TokenGeometry:
    """Compute :func:`token_geometry` of tokens in float64.

    Args:
        t: (B, P, d), float64.
        resolution: Machine epsilon of the dtype in which they came.
        archetypes: See :func:`token_geometry`.
        neighbors: See :func:`token_geometry`.
        place_axes: See :func:`token_geometry`.
        share: See :func:`token_geometry`.
        seed: See :func:`token_geometry`.

    Returns:
        As :func:`token_geometry`.

    Raises:
        ValueError: If there are too few tokens for what is asked.
    """
    if check_positive_int(archetypes, "archetypes") < 2:
        raise ValueError(f"`archetypes` must be at least 2, got {archetypes}.")
    if archetypes > t.shape[1]:
        raise ValueError(
            f"`archetypes` must be at most the {t.shape[1]} tokens of an image, got {archetypes}."
        )
    if check_positive_int(neighbors, "neighbors") >= t.shape[1]:
        raise ValueError(f"`neighbors` must be at most {t.shape[1] - 1}, got {neighbors}.")
    if check_positive_int(place_axes, "place_axes") > min(t.shape[1:]):
        raise ValueError(f"`place_axes` must be at most {min(t.shape[1:])}, got {place_axes}.")
    require_number(share, "share", 0.0, 1.0)
    axes, position_rank = position_axes(t, place_axes)
    content = t - t @ axes.T @ axes
    variances = _variances(t, resolution)
    varied = variances.sum(1) > 0
    if not bool(varied.any()):
        return TokenGeometry(*t.new_full((len(TokenGeometry._fields),), torch.nan))
    noise = torch.randn(
        _DRAWS, *t.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(t.device)
    like, content_like = noise @ _root(t), noise @ _root(content)
    drawn = matched_gaussian(t[varied], seed)
    both = torch.cat([t[varied], drawn])
    errors = archetypal_analysis(both, archetypes).error.chunk(2)
    ways = geodesics(both, neighbors, seed=seed)
    ratios, gaps = ways.ratio.chunk(2), ways.gap.chunk(2)
    floor = variances[varied, archetypes - 1 :].sum(1) / variances[varied].sum(1)
    return TokenGeometry(
        position_rank,
        torch.stack([position_axes(image[None], 1)[1] for image in like]).mean(),
        _reaching(variances[varied], share).mean(),
        pca_dimensions(like, share).mean(),
        pca_dimensions(content[varied], share).mean(),
        pca_dimensions(content_like, share).mean(),
        errors[0].mean(),
        errors[1].mean(),
        floor.mean(),
        ratios[0].mean(),
        ratios[1].mean(),
        gaps[0].mean(),
        gaps[1].mean(),
    )


def _root(tokens: Tensor) -> Tensor:
    """The square root of the covariance of all tokens, (d, d)."""
    flat = tokens.flatten(0, 1)
    centred = flat - flat.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred / len(flat))
    root: Tensor = (axes * values.clamp(min=0).sqrt()) @ axes.T
    return root
