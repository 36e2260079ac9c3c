"""TwoNN and the growth of the spanning tree, against closed forms, SciPy and scikit-learn."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors

from jepa_monitor.functional import mst_dimension, two_nn
from jepa_monitor.functional.mst_dimension import spanning_tree_length


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cube(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, width, generator=generator, dtype=torch.float64)


def tree(points):
    return minimum_spanning_tree(squareform(pdist(points))).sum()


@pytest.mark.parametrize("block", [7, 256])
def test_two_nn_against_sklearn(block, monkeypatch):
    monkeypatch.setattr(importlib.import_module(two_nn.__module__), "_BLOCK", block)
    z = normal(50, 6) * torch.arange(1, 7) + 3
    distances = NearestNeighbors(n_neighbors=2).fit(z.numpy()).kneighbors()[0]
    expected = 49 / np.log(distances[:, 1] / distances[:, 0]).sum()
    found = two_nn(z)
    assert found.dimension.item() == pytest.approx(expected)
    assert found.error.item() == pytest.approx(expected / 50**0.5)
    assert found.duplicates == 0
    unit = z / z.norm(dim=1, keepdim=True)
    assert two_nn(z, normalized=True).dimension.item() == pytest.approx(
        two_nn(unit).dimension.item()
    )


@pytest.mark.parametrize(("width", "bias"), [(1, 0.0), (2, 0.03), (5, 0.1)])
def test_two_nn_of_a_cube_is_within_its_error(width, bias):
    found = two_nn(cube(2000, width))
    assert abs(found.dimension - width) < bias * width + 3 * found.error


def test_standard_error_of_two_nn_by_simulation():
    found = [two_nn(cube(300, 2, seed)) for seed in range(100)]
    spread = np.std([x.dimension.item() for x in found])
    assert np.mean([x.error.item() for x in found]) == pytest.approx(spread, rel=0.25)


def test_tree_against_scipy_and_by_hand():
    for count, width in ((30, 4), (3, 2), (2, 1)):
        points = normal(count, width).numpy()
        distances = squareform(pdist(points))
        assert spanning_tree_length(distances) == pytest.approx(tree(points))
    line = np.array([[3.0], [-1], [7], [0]])
    assert spanning_tree_length(squareform(pdist(line))) == pytest.approx(8)
    triangle = np.array([[0.0, 0], [3, 0], [0, 4]])
    assert spanning_tree_length(squareform(pdist(triangle))) == pytest.approx(7)


def test_mst_dimension_is_the_slope_of_the_trees():
    z = normal(200, 5)
    sizes = (40, 100, 160)
    points = z / z.abs().max()
    # Subsets are drawn from the distinct points in sorted order: sort them first.
    order = np.lexsort(points.numpy().T[::-1])
    points = points[torch.from_numpy(order)]
    generator = torch.Generator().manual_seed(7)
    logs = np.array([
        [
            math.log(tree(points[torch.randperm(200, generator=generator)[:n]].numpy()))
            for _ in range(4)
        ]
        for n in sizes
    ])  # fmt: skip
    x = np.repeat(np.log(sizes), 4)
    slope = np.polyfit(x, logs.ravel(), 1)[0]
    found = mst_dimension(z, normalized=False, sizes=sizes, draws=4, seed=7)
    assert found.dimension.item() == pytest.approx(1 / (1 - slope))
    # The error by the bootstrap over draws, with the unbiased variance of each size.
    rng = np.random.default_rng(0)
    slopes = [
        np.polyfit(x, np.stack([rng.choice(row, 4) for row in logs]).ravel(), 1)[0]
        for _ in range(3000)
    ]
    expected = np.std(slopes) * math.sqrt(4 / 3) / (1 - slope) ** 2
    assert found.error.item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("width", "low", "high"), [(1, 0.97, 1.03), (2, 1.85, 2.1), (5, 4.2, 5)])
def test_mst_dimension_of_a_cube(width, low, high):
    assert low < mst_dimension(cube(1000, width), normalized=False).dimension < high


def test_helix_is_a_line():
    t = torch.linspace(0, 20, 1000).double()
    helix = torch.stack([t.cos(), t.sin(), t], 1)
    assert mst_dimension(helix, normalized=False).dimension.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("function", [two_nn, lambda z: mst_dimension(z, normalized=False)])
def test_rotation_size_and_empty_coordinates_do_not_matter(function):
    # The order of the points decides the subsets: keep the first coordinate, which sorts them.
    z = torch.cat([torch.arange(100.0).double()[:, None], 20 * normal(100, 3)], 1)
    rotation = torch.eye(4).double()
    rotation[1:, 1:] = torch.linalg.qr(normal(3, 3, seed=1)).Q
    padded = torch.cat([z @ rotation, torch.zeros(100, 2)], 1)
    for other in (padded, 1e-150 * padded, 1e150 * padded):
        torch.testing.assert_close(function(other), function(z))


@pytest.mark.parametrize("function", [two_nn, mst_dimension])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.1])
def test_constant_embeddings_have_no_dimension(function, dtype, value):
    z = torch.full((80, 5), value, dtype=dtype)
    z[::2] *= 1 + torch.finfo(dtype).eps  # a rounding apart
    found = function(z)
    assert found.dimension == found.error == math.inf
    assert found.duplicates == 79


@pytest.mark.parametrize("function", [two_nn, lambda z: mst_dimension(z, sizes=(10, 40))])
def test_duplicates_are_left_out_and_counted(function):
    z = normal(60, 4)
    found = function(torch.cat([z, z[:25]]))
    torch.testing.assert_close(found[:2], function(z)[:2])
    assert found.duplicates == 25
    assert found.dimension < math.inf


def test_fewer_distinct_points_than_a_subset_have_no_dimension():
    z = normal(30, 4).repeat(3, 1)
    assert mst_dimension(z, sizes=(10, 40)).dimension == math.inf
    assert two_nn(normal(2, 3).repeat(4, 1)).dimension == math.inf
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 2)
    assert two_nn(lattice).dimension == math.inf  # all ratios are 1


def test_collapse_lowers_both_which_is_why_they_are_gated():
    z = normal(500, 2) @ normal(2, 32, seed=1)
    assert mst_dimension(z, normalized=False).dimension < 2.5
    assert two_nn(z).dimension < 2.5


def test_no_global_randomness():
    before = torch.get_rng_state()
    first = mst_dimension(normal(100, 4))
    torch.manual_seed(5)
    assert mst_dimension(normal(100, 4)) == first
    torch.set_rng_state(before)
    mst_dimension(normal(100, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert mst_dimension(normal(100, 4), seed=1) != first
    assert mst_dimension(normal(100, 4), draws=1).error == math.inf


def test_errors():
    with pytest.raises(ValueError, match="at least 3 rows, got 2"):
        two_nn(normal(2, 3))
    with pytest.raises(ValueError, match="at least 48 rows, got 47"):
        mst_dimension(normal(47, 3))
    for sizes in ((2, 10), (10, 101), (10, 10), (10,)):
        with pytest.raises(ValueError, match="`sizes` must be at least two different numbers from"):
            mst_dimension(normal(100, 3), sizes=sizes)
    with pytest.raises(ValueError, match="`draws` must be at least 1"):
        mst_dimension(normal(100, 3), draws=0)
