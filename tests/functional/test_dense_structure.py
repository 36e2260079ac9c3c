"""The terms of DSE: closed forms, invariances, and a collapse of tokens that pooling hides."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from jepa_monitor.functional import dense_structure, rankme


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_point_masses_have_no_size_and_exact_distances():
    masses = unit(normal(16, 3, 12))  # three things an image, all different
    tokens = masses.repeat_interleave(5, dim=1)
    found = dense_structure(tokens)
    assert found.intra.item() == pytest.approx(0, abs=1e-9)
    assert found.intra_image.item() == pytest.approx(0, abs=1e-9)
    assert found.intra_group.item() == pytest.approx(0, abs=1e-9)
    scale = (masses.flatten(0, 1) - masses.mean((0, 1))).norm(dim=1).mean()
    nearest = []
    for group in masses.view(2, 24, 12).numpy():
        distances = cdist(group, group)
        np.fill_diagonal(distances, np.inf)
        nearest.append(distances.min(1).mean())
    assert found.inter.item() == pytest.approx(np.mean(nearest) / scale.item())


def test_size_of_clusters_by_hand():
    # One cluster an image and a group of one image: clusters are known.
    tokens = normal(2, 9, 4) + 3 * normal(2, 1, 4, seed=1)
    found = dense_structure(tokens, clusters=1, group=1, normalized=False)
    flat = tokens.flatten(0, 1)
    scale = (flat - flat.mean(0)).norm(dim=1).mean().item()
    sizes = [
        np.linalg.svd(image - image.mean(0), compute_uv=False).sum() / np.sqrt(8)
        for image in tokens.numpy()
    ]
    assert found.intra_image.item() == pytest.approx(np.mean(sizes) / scale)
    assert found.intra_group.item() == pytest.approx(np.mean(sizes) / scale)
    assert found.intra.item() == pytest.approx(np.mean(sizes) / scale)
    assert found.inter == 0  # there is no other cluster


def test_a_cluster_of_fewer_tokens_than_dimensions_counts_its_dimensions():
    tokens = normal(1, 5, 30)
    found = dense_structure(tokens, clusters=1, group=1, normalized=False)
    image = tokens[0].numpy()
    centred = image - image.mean(0)
    size = np.linalg.svd(centred, compute_uv=False).sum() / np.sqrt(30)
    assert found.intra.item() == pytest.approx(size / np.linalg.norm(centred, axis=1).mean())


def test_clusters_of_one_token_have_no_size():
    assert dense_structure(normal(2, 3, 5), clusters=3, group=2).intra == 0


@pytest.mark.parametrize(("images", "width", "level"), [(512, 192, 0.947), (96, 96, 0.80)])
def test_dimension_of_isotropic_tokens(images, width, level):
    # The level of (i): y = 3/8, min(B, d)·exp(entropy) of singular values by Marchenko and Pastur.
    found = dense_structure(normal(images, 3, width), clusters=1, positions=3)
    assert found.dimension.item() == pytest.approx(level, abs=0.01)


def test_dimension_against_numpy():
    tokens = unit(normal(8, 1, 5) * torch.tensor([3.0, 1, 1, 0.2, 0.1]))
    share = np.linalg.svd(tokens[:, 0].numpy(), compute_uv=False)
    share = share / share.sum()
    expected = np.exp(-(share * np.log(share)).sum()) / 5
    found = dense_structure(tokens, clusters=1)
    assert found.dimension.item() == pytest.approx(expected)


def test_size_and_rotation_do_not_matter():
    tokens = normal(8, 12, 6) + 2 * normal(8, 1, 6, seed=1)
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    for normalized in (True, False):
        expected = dense_structure(tokens, normalized=normalized)
        for other in (tokens @ rotation, 1e-150 * tokens, 1e150 * tokens):
            found = dense_structure(other, normalized=normalized)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert dense_structure(tokens, normalized=False) != dense_structure(tokens)


def test_every_argument_matters_and_no_global_randomness():
    tokens = normal(16, 12, 6) + 2 * normal(16, 1, 6, seed=1)
    before = torch.get_rng_state()
    plain = dense_structure(tokens)
    assert torch.equal(torch.get_rng_state(), before)
    assert dense_structure(tokens) == plain
    for other in ({"clusters": 2}, {"group": 4}, {"positions": 2}, {"seed": 1}):
        assert dense_structure(tokens, **other) != plain
    assert dense_structure(tokens, positions=99) == dense_structure(tokens, positions=12)


def test_a_collapse_of_tokens_that_pooling_does_not_see():
    # Patches in 4 directions and a class token that keeps all: its rank stays, theirs falls.
    healthy = normal(32, 16, 24)
    collapsed = (normal(32, 16, 4) @ normal(4, 24, seed=1)).float()
    classes = normal(32, 24, seed=2)
    pooled = rankme(classes)
    assert pooled > 18
    assert dense_structure(collapsed).dimension < 0.2
    assert dense_structure(healthy).dimension > 0.7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_equal_tokens_have_no_structure(dtype, value):
    for number in dense_structure(torch.full((8, 6, 5), value, dtype=dtype)):
        assert number == 0
        assert number.dtype == torch.float64


def test_errors():
    with pytest.raises(ValueError, match="`tokens` must be of a multiple of 8 images, got 12"):
        dense_structure(normal(12, 6, 5))
    with pytest.raises(ValueError, match="`tokens` must have at least 3 patches an image, got 2"):
        dense_structure(normal(8, 2, 5))
    with pytest.raises(ValueError, match=r"`tokens` must have shape \(N, V, K\)"):
        dense_structure(normal(8, 5))
    for name in ("clusters", "group", "positions"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            dense_structure(normal(8, 6, 5), **{name: 0})
