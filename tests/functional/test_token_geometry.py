"""Shape of tokens: closed forms, SciPy's shortest paths, scikit-learn, and Gaussian tokens as a null."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import kneighbors_graph

from jepa_monitor.functional import (
    archetypal_analysis,
    geodesics,
    matched_gaussian,
    pca_dimensions,
    position_axes,
    token_geometry,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixtures(corners, count, seed=0):
    """Random mixtures of the corners, (G, count, d), after the corners themselves."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(len(corners), count, corners.shape[1], generator=generator).double() ** 3
    return torch.cat([corners, (shares / shares.sum(2, keepdim=True)) @ corners], 1)


# -------------------------------------------------------------------------------------- archetypes
def test_mixtures_of_three_points_have_three_archetypes():
    corners = 5 * normal(6, 3, 8) + 20
    points = mixtures(corners, 40)
    found = archetypal_analysis(points, 3)
    assert found.error.max() < 1e-5
    for corner, archetypes in zip(corners, found.archetypes, strict=True):
        assert torch.cdist(corner, archetypes).amin(1).max() < 0.05 * corner.std()
    assert archetypal_analysis(points, 2).error.min() > 0.03


def test_shares_are_shares_and_the_error_is_theirs():
    points = normal(3, 30, 5) + 4
    found = archetypal_analysis(points, 4)
    assert found.mixtures.min() >= 0
    torch.testing.assert_close(found.mixtures.sum(2), torch.ones(3, 30, dtype=torch.float64))
    residual = (points - found.mixtures @ found.archetypes).square().sum((1, 2))
    total = (points - points.mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(found.error, residual / total)


def test_the_error_lies_between_pca_and_kmeans():
    points = normal(4, 60, 12) ** 3
    found = archetypal_analysis(points, 5)
    for image, error in zip(points.numpy(), found.error.tolist(), strict=True):
        total = ((image - image.mean(0)) ** 2).sum()
        pca = 1 - PCA(4).fit(image).explained_variance_ratio_.sum()
        clusters = KMeans(5, n_init=5, random_state=0).fit(image).inertia_ / total
        assert pca <= error <= clusters


def test_as_many_archetypes_as_points_leave_nothing():
    assert archetypal_analysis(normal(2, 6, 9), 6).error.max() < 1e-6
    assert archetypal_analysis(torch.ones(1, 6, 9), 3).error.isnan().all()


# ------------------------------------------------------------------------------------------- parts
def test_gaussian_points_have_the_moments_and_lose_the_shape():
    points = mixtures(3 * normal(2, 3, 5), 200) + 7
    drawn = matched_gaussian(points, seed=1)
    torch.testing.assert_close(drawn.mean(1), points.mean(1))
    for one, other in zip(points, drawn, strict=True):
        torch.testing.assert_close(other.T.cov(), one.T.cov(), atol=1e-8, rtol=1e-6)
    own, null = (archetypal_analysis(x, 3).error for x in (points, drawn))
    assert (own < 1e-4).all()
    assert (null > 0.03).all()


def test_more_dimensions_than_points_are_matched_too():
    points = normal(2, 6, 20)
    drawn = matched_gaussian(points)
    for one, other in zip(points, drawn, strict=True):
        torch.testing.assert_close(other.T.cov(), one.T.cov(), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_dimensions_are_those_of_scikit_learn(shape, share):
    points = (normal(*shape) @ torch.diag(torch.arange(1.0, shape[1] + 1).double())) + 100
    ratios = PCA().fit(points.numpy()).explained_variance_ratio_.cumsum()
    assert pca_dimensions(points[None], share).item() == int((ratios < share).sum()) + 1
    assert pca_dimensions(torch.full((1, 5, 3), 0.1)).item() == 0


def test_axes_of_place_are_found():
    sheet = torch.linalg.qr(normal(10, 2)).Q.T
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    tokens = 0.01 * normal(50, 16, 10, seed=1) + 3 * (places - 1.5) @ sheet
    axes, rank = position_axes(tokens, 2)
    torch.testing.assert_close(axes.T @ axes, sheet.T @ sheet, atol=1e-3, rtol=0)
    assert rank.item() == pytest.approx(2, abs=0.01)


# --------------------------------------------------------------------------------------- geodesics
def test_ways_are_those_of_scipy():
    points = normal(2, 25, 3)
    found = geodesics(points, 4, pairs=10_000)
    first, second = np.triu_indices(25, 1)
    for image, ratio, gap, connected in zip(points.numpy(), *found, strict=True):
        graph = kneighbors_graph(image, 4, mode="distance")
        ways = shortest_path(csr_matrix(graph.maximum(graph.T)), directed=False)[first, second]
        straight = np.linalg.norm(image[first] - image[second], axis=1)
        reached = np.isfinite(ways)
        assert ratio.item() == pytest.approx((ways / straight)[reached].mean())
        assert connected.item() == pytest.approx(reached.mean())
        middle = (image[first] + image[second]) / 2
        nearest = np.linalg.norm(middle[:, None] - image[None], axis=2).min(1)
        assert gap.item() == pytest.approx((nearest / (straight / 2)).mean())


def test_a_circle_is_half_of_pi_longer_than_its_diameter_and_a_line_is_straight():
    angles = 2 * math.pi * torch.arange(200).double() / 200
    circle = torch.stack([angles.cos(), angles.sin()], 1)[None]
    arcs = torch.arange(1, 200).double() * math.pi / 200  # half the angle of two points
    expected = (torch.minimum(arcs, math.pi - arcs) / arcs.sin()).mean()
    found = geodesics(circle, 2, pairs=10**6)
    assert found.ratio.item() == pytest.approx(expected.item(), rel=1e-3)
    line = torch.linspace(0, 1, 50)[None, :, None].double()
    assert geodesics(line, 2).ratio.item() == pytest.approx(1)
    assert geodesics(line, 2).gap < 0.1


def test_apart_is_no_way_and_one_point_tells_nothing():
    points = torch.cat([normal(1, 6, 2), normal(1, 6, 2, seed=1) + 100], 1)
    found = geodesics(points, 3)
    assert found.connected < 0.6
    assert found.ratio.isfinite().all()
    assert geodesics(torch.ones(1, 5, 2), 2).ratio.isnan().all()


# ------------------------------------------------------------------------------------------- whole
def test_gaussian_tokens_are_at_their_own_level():
    found = token_geometry(normal(40, 25, 12) @ normal(12, 12, seed=1), archetypes=5)
    for name, near in (
        ("position_rank", 0.35),
        ("dimensions", 0.05),
        ("content_dimensions", 0.05),
        ("archetype_error", 0.1),
        ("geodesic_ratio", 0.1),
        ("midpoint_gap", 0.05),
    ):
        value, null = getattr(found, name).item(), getattr(found, f"{name}_gaussian").item()
        assert value == pytest.approx(null, rel=near), name
    assert found.archetype_error > found.pca_error


def test_shape_that_is_there_is_seen():
    corners = 4 * normal(12, 3, 10)
    few = token_geometry(mixtures(corners, 30), archetypes=3)
    assert few.archetype_error < 0.01
    assert few.archetype_error_gaussian > 0.08
    turn = torch.linspace(0, 3.5 * math.pi, 40).double()
    spiral = (1 + turn)[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    tokens = spiral @ torch.linalg.qr(normal(10, 2, seed=1)).Q.T + 0.05 * normal(20, 40, 10, seed=2)
    placed = token_geometry(tokens, archetypes=3, neighbors=2)
    assert placed.position_rank < 2
    assert placed.geodesic_ratio > 1.3 * placed.geodesic_ratio_gaussian
    assert placed.content_dimensions > 3 * placed.dimensions  # what is left is noise


def test_parts_are_those_of_the_whole_and_images_of_one_token_are_left_out():
    tokens = normal(5, 12, 6)
    found = token_geometry(tokens, archetypes=4, neighbors=3, share=0.8)
    assert found.dimensions == pca_dimensions(tokens, 0.8).mean()
    axes, rank = position_axes(tokens, 2)
    assert found.position_rank == rank
    left = tokens - tokens @ axes.T @ axes
    assert found.content_dimensions == pca_dimensions(left, 0.8).mean()
    torch.testing.assert_close(found.archetype_error, archetypal_analysis(tokens, 4).error.mean())
    with_dull = torch.cat([tokens, torch.ones(2, 12, 6).double()])
    again = token_geometry(with_dull, archetypes=4, neighbors=3, share=0.8)
    torch.testing.assert_close(again.archetype_error, found.archetype_error)
    assert all(value.isnan() for value in token_geometry(torch.ones(2, 12, 6), archetypes=4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: archetypal_analysis(normal(1, 4, 2), 5), "`k` must be at most the 4 points"),
        (lambda: archetypal_analysis(normal(4, 2), 2), "`points` must have shape"),
        (lambda: geodesics(normal(1, 4, 2), 4), "`neighbors` must be at most 3, got 4"),
        (lambda: pca_dimensions(normal(1, 4, 2), 1.5), "`share` must lie in"),
        (lambda: position_axes(normal(3, 4, 2), 3), "`count` must be at most 2, got 3"),
        (lambda: token_geometry(normal(3, 8, 4)), "at most the 8 tokens of an image, got 10"),
        (lambda: token_geometry(normal(3, 8, 4), archetypes=1), "`archetypes` must be at least 2"),
        (lambda: token_geometry(normal(3, 8, 4) / 0.0, archetypes=3), "`tokens` has 3 non-finite"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
