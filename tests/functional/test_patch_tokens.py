"""Functions of patch tokens against closed forms, NumPy by loops, and their levels without any structure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor

from jepa_monitor.functional import (
    class_token_cosines,
    crop_places,
    gram_drift,
    isotropic_baseline,
    locality,
    other_image_cosine,
    patch_neighbors,
    position_share,
    rankme,
    token_gram,
    token_norms,
    token_rank,
)
from jepa_monitor.functional._tokens import chosen_places, share_of_tokens


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=99)).Q


def entropy_of_singular_values(z: np.ndarray) -> float:
    singular = np.linalg.svd(z - z.mean(0), compute_uv=False)
    return float(np.exp(stats.entropy(singular)))


# ------------------------------------------------------------------------------------------- ranks
def test_ranks_against_singular_values_in_numpy() -> None:
    tokens = normal(9, 5, 7) * torch.arange(1, 8)
    found = token_rank(tokens)
    within = np.mean([entropy_of_singular_values(image) for image in tokens.numpy()])
    assert found.within.item() == pytest.approx(within)
    # All five places of every image are drawn, one at a time: an order that the seed says.
    order = torch.rand(9, 5, generator=torch.Generator().manual_seed(0)).argsort(1).numpy()
    across = np.mean(
        [entropy_of_singular_values(tokens.numpy()[np.arange(9), order[:, i]]) for i in range(5)]
    )
    assert found.across.item() == pytest.approx(across)
    assert found.across_relative.item() == pytest.approx(across / isotropic_baseline(8, 7).rankme)
    assert found.within_relative.item() == pytest.approx(within / isotropic_baseline(4, 7).rankme)


@pytest.mark.parametrize(("images", "patches", "width"), [(64, 49, 32), (24, 100, 96)])
def test_isotropic_tokens_have_a_relative_rank_of_one(
    images: int, patches: int, width: int
) -> None:
    found = token_rank(normal(images, patches, width))
    assert found.across_relative.item() == pytest.approx(1, abs=0.02)
    assert found.within_relative.item() == pytest.approx(1, abs=0.02)


def test_a_collapse_of_patches_which_a_class_token_hides() -> None:
    healthy = normal(64, 36, 48)
    collapsed = healthy[..., :4] @ normal(4, 48, seed=1)
    class_tokens = normal(64, 48, seed=2)
    pooled = rankme(class_tokens) / isotropic_baseline(64, 48).rankme
    assert pooled.item() == pytest.approx(1, abs=0.02)  # what is watched without tokens
    before, after = token_rank(healthy), token_rank(collapsed)
    assert after.across.item() <= 4
    assert after.within.item() <= 4
    assert after.across_relative < 0.12
    assert before.across_relative > 0.9


def test_tokens_that_code_their_place_alone_have_the_rank_of_the_code() -> None:
    code = normal(36, 8) @ normal(8, 48, seed=1)  # the same in every image
    tokens = code + 1e-3 * normal(64, 36, 48, seed=2)
    found = token_rank(tokens)
    assert found.across.item() < 9
    assert found.within.item() < 9
    assert position_share(tokens).excess.item() > 0.99


def test_equal_tokens_have_no_rank() -> None:
    found = token_rank(torch.full((4, 5, 6), 1 / 3))
    assert [value.item() for value in found] == [0, 0, 0, 0]


# ----------------------------------------------------------------------------------------- cosines
def test_cosines_with_the_class_token_by_hand() -> None:
    tokens, classes = normal(3, 4, 5), normal(3, 5, seed=1)
    cosines = np.array(
        [1 - cdist(t, c[None], "cosine")[:, 0] for t, c in zip(tokens, classes, strict=True)]
    )
    found = class_token_cosines(classes, tokens)
    assert found.mean.item() == pytest.approx(cosines.mean())
    assert found.std.item() == pytest.approx(cosines.std(1, ddof=1).mean())
    others = np.array(
        [1 - cdist(tokens[i], tokens[(i + 1) % 3].mean(0)[None], "cosine") for i in range(3)]
    )
    assert other_image_cosine(tokens).item() == pytest.approx(others.mean())


def test_levels_of_cosines() -> None:
    images, patches, width = 50, 40, 64
    found = class_token_cosines(normal(images, width, seed=1), normal(images, patches, width))
    assert abs(found.mean.item()) < 4 / np.sqrt(images * width)
    assert found.std.item() == pytest.approx(1 / np.sqrt(width), rel=0.03)
    assert abs(other_image_cosine(normal(images, patches, width)).item()) < 4 / np.sqrt(
        images * width
    )
    repeated = normal(images, 1, width).expand(-1, patches, -1)
    found = class_token_cosines(repeated[:, 0], repeated)
    assert found.mean.item() == pytest.approx(1)
    assert found.std.item() == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------------------- norms
def test_lengths_of_normal_tokens() -> None:
    width = 50
    found = token_norms(normal(40, 64, width))
    # Standard deviation over mean of the χ law, and 1/√(2d), its first order.
    law = stats.chi(width)
    assert found.variation.item() == pytest.approx(law.std() / law.mean(), rel=0.04)
    assert law.std() / law.mean() == pytest.approx(1 / np.sqrt(2 * width), rel=0.01)
    assert found.outliers.share == 0
    assert 0 < found.outliers.upper < 0.1
    assert 8 < found.channels.item() < width  # about d/3
    assert token_norms(normal(200, 10, 8)).outliers.share == 0


def test_a_few_long_tokens_in_one_channel() -> None:
    tokens = normal(20, 25, 30)
    tokens[3, 7] = torch.eye(30).double()[11] * 200
    tokens[8, :2] *= 10
    lengths = tokens.norm(dim=2).numpy()
    found = token_norms(tokens)
    assert found.outliers.share.item() == pytest.approx(3 / 500)
    assert found.longest.item() == pytest.approx(200 / np.median(lengths))
    assert found.variation.item() == pytest.approx(lengths.std(ddof=1) / lengths.mean())
    assert found.channels == found.top_channel == 1
    tokens[3, 7, :4] = 100.0
    energies = tokens[3, 7].numpy() ** 2
    found = token_norms(tokens)
    assert found.top_channel.item() == pytest.approx(energies.max() / energies.sum())
    assert found.channels.item() == pytest.approx(energies.sum() ** 2 / (energies**2).sum())


def test_the_last_norm_hides_long_tokens() -> None:
    tokens = normal(20, 25, 30)
    tokens[:, 4] *= 50
    assert token_norms(tokens).outliers.share.item() == pytest.approx(1 / 25)
    assert token_norms(torch.nn.functional.layer_norm(tokens, (30,))).outliers.share == 0


def test_tokens_of_zeros_have_no_outliers() -> None:
    found = token_norms(torch.zeros(2, 3, 4))
    assert found.outliers.share == found.longest == found.variation == found.channels == 0


# --------------------------------------------------------------------------------------- drift
def test_drift_of_token_similarities_by_hand() -> None:
    first, second = normal(3, 4, 5), normal(3, 4, 6, seed=1)
    grams = [[1 - cdist(t, t, "cosine") for t in tokens.numpy()] for tokens in (first, second)]
    a, b = map(np.array, grams)
    np.testing.assert_allclose(token_gram(first).numpy(), a, atol=1e-12)
    drift = gram_drift(token_gram(first), token_gram(second))
    assert drift.item() == pytest.approx(((a - b) ** 2).mean())
    clipped = gram_drift(token_gram(first), token_gram(second), clip_negative=True)
    assert clipped.item() == pytest.approx(((a.clip(0) - b.clip(0)) ** 2).mean())
    assert clipped < drift


def test_levels_of_drift() -> None:
    patches, width = 30, 40
    first, second = normal(60, patches, width), normal(60, patches, width, seed=1)
    drift = gram_drift(token_gram(first), token_gram(second)).item()
    assert drift == pytest.approx(2 / width * (1 - 1 / patches), rel=0.03)
    lengths = normal(60, patches, 1, seed=2).exp()
    moved = gram_drift(token_gram(first), token_gram(lengths * first @ rotation(width)))
    assert moved.item() == pytest.approx(0, abs=1e-28)


# ------------------------------------------------------------------------------------------ locality
def morans_i(image: np.ndarray, rows: int, columns: int) -> float:
    centred = image - image.mean(0)
    products, weights = 0.0, 0
    for (r, c), (s, d) in itertools.product(np.ndindex(rows, columns), repeat=2):
        if abs(r - s) + abs(c - d) == 1:
            products += centred[r * columns + c] @ centred[s * columns + d]
            weights += 1
    return rows * columns / weights * products / (centred**2).sum()


def test_locality_by_loops() -> None:
    rows, columns = 3, 5
    tokens = normal(4, rows * columns, 6).cumsum(1)
    found = locality(tokens, (rows, columns))
    near, far = [], []
    for image in tokens.numpy():
        cosines = 1 - cdist(image, image, "cosine")
        for (r, c), (s, d) in itertools.product(np.ndindex(rows, columns), repeat=2):
            value = cosines[r * columns + c, s * columns + d]
            if np.hypot(r - s, c - d) == 1:
                near.append(value)
            if np.hypot(r - s, c - d) >= 2.5:
                far.append(value)
    expected = np.mean([morans_i(image, rows, columns) for image in tokens.numpy()])
    assert found.morans_i.item() == pytest.approx(expected)
    assert found.near.item() == pytest.approx(np.mean(near))
    assert found.far.item() == pytest.approx(np.mean(far))
    assert found.locality.item() == pytest.approx(np.mean(near) - np.mean(far))


def test_the_level_of_morans_i_is_exact_over_all_arrangements() -> None:
    image = normal(6, 3)
    arrangements = torch.stack([image[list(p)] for p in itertools.permutations(range(6))])
    assert locality(arrangements, (2, 3)).morans_i.item() == pytest.approx(-1 / 5, abs=1e-12)


def test_smooth_noisy_and_equal_tokens() -> None:
    ramp = torch.cartesian_prod(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12))[None].double()
    assert locality(ramp, (12, 12)).morans_i > 0.85
    board = (-1.0) ** torch.cartesian_prod(torch.arange(4), torch.arange(4)).sum(1)
    found = locality(board[None, :, None].double(), (4, 4))
    assert found.morans_i.item() == found.near.item() == pytest.approx(-1)
    noise = locality(normal(50, 49, 64), (7, 7))
    assert abs(noise.locality.item()) < 0.01
    equal = locality(torch.full((2, 9, 4), 1 / 3), (3, 3))
    assert (equal.near.item(), equal.far.item()) == pytest.approx((1, 1))
    assert equal.morans_i == 0


# --------------------------------------------------------------------------------- place
def test_share_of_place_against_analysis_of_variance() -> None:
    tokens = normal(6, 5, 1) + normal(5, 1, seed=1)
    found = position_share(tokens)
    groups = [tokens[:, p, 0].numpy() for p in range(5)]
    f = stats.f_oneway(*groups).statistic
    share = f * 4 / (f * 4 + 25)  # R² of F with 4 and 25 degrees of freedom
    assert found.share.item() == pytest.approx(share)
    assert found.null.item() == pytest.approx(4 / 29)
    assert found.excess.item() == pytest.approx((share - 4 / 29) / (25 / 29))


def test_the_level_of_the_share_is_exact_over_arrangements() -> None:
    values = normal(6, 2)
    shares = [
        position_share(values[list(order)].view(3, 2, 2)).share.item()
        for order in itertools.permutations(range(6))
    ]
    assert np.mean(shares) == pytest.approx(1 / 5)


def test_the_share_of_place_at_its_ends() -> None:
    assert abs(position_share(normal(40, 30, 20)).excess.item()) < 0.01
    same = normal(1, 30, 20).expand(8, -1, -1)
    assert position_share(same).share.item() == pytest.approx(1)
    assert position_share(torch.full((3, 4, 5), 1 / 3)).excess == 0


# ------------------------------------------------------------------------- neighbours across views
def test_places_of_a_crop_by_loops() -> None:
    rows, columns, top, left, side = 5, 4, 0.1, 0.2, 0.6
    found = crop_places((rows, columns), top, left, side, mirrored=True)
    for (r, c), (s, d) in itertools.product(np.ndindex(rows, columns), repeat=2):
        down = (top + side * (r + 0.5) / rows) * rows
        right = (left + side * (1 - (c + 0.5) / columns)) * columns
        same = abs(down - s - 0.5) <= 1 and abs(right - d - 0.5) <= 1
        assert bool(found[r * columns + c, s * columns + d]) == same


def test_neighbours_against_loops_and_chance() -> None:
    tokens = normal(7, 12, 4)
    others = tokens + 1.5 * normal(7, 12, 4, seed=1)
    same = crop_places((3, 4), 0.0, 0.0, 1.0, mirrored=False)
    hits = [
        float(same[p, (1 - cdist(a, b, "cosine"))[p].argmax()])
        for a, b in zip(tokens.numpy(), others.numpy(), strict=True)
        for p in range(12)
    ]
    found = patch_neighbors(tokens, others, same)
    chance = same.double().mean().item()
    assert found.chance.item() == pytest.approx(chance)
    assert 0.1 < np.mean(hits) < 0.9
    assert found.share.share.item() == pytest.approx((np.mean(hits) - chance) / (1 - chance))
    unrelated = patch_neighbors(normal(200, 12, 6), normal(200, 12, 6, seed=1), same).share
    assert unrelated.lower < 0 < unrelated.upper
    assert abs(unrelated.share.item()) < 0.06


def test_tokens_without_content_find_nothing() -> None:
    mirrored = crop_places((6, 6), 0.0, 0.0, 0.75, mirrored=True)
    equal = torch.ones(5, 36, 4)
    assert patch_neighbors(equal, equal, mirrored).share.share.item() == pytest.approx(0, abs=1e-12)
    # Tokens that code their place in the grid find that place, which the view has moved.
    code = normal(1, 36, 24).expand(5, -1, -1)
    assert patch_neighbors(code, code, mirrored).share.share.item() < 0.35


# ------------------------------------------------------------------------------------- shares
def test_the_interval_of_a_share_of_alike_tokens_covers_it() -> None:
    rng = np.random.default_rng(0)
    truth, covered, naive = 0.3, 0, 0
    for _ in range(600):
        images = torch.from_numpy(rng.binomial(36, rng.beta(3, 7, size=64)) / 36)
        found = share_of_tokens(images, 36)
        covered += bool(found.lower <= truth <= found.upper)
        low, high = stats.binomtest(int(images.sum() * 36), 36 * 64).proportion_ci(method="wilson")
        naive += low <= truth <= high
    assert covered / 600 > 0.93
    assert naive / 600 < 0.75  # what it would be if tokens were independent


def test_the_interval_where_no_image_differs() -> None:
    found = share_of_tokens(torch.zeros(50).double(), 100)
    expected = stats.binomtest(0, 50).proportion_ci(method="wilson")
    assert (found.lower.item(), found.upper.item()) == pytest.approx(tuple(expected), abs=1e-12)


def test_chosen_places_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    places = chosen_places(50, 8, 0)
    assert len(set(places.tolist())) == 8
    assert torch.equal(places, places.sort().values)
    assert torch.equal(chosen_places(5, 8, 0), torch.arange(5))
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------------- all of them
MEASURES = {
    "ranks": token_rank,
    "class": lambda t: class_token_cosines(t[:, 0], t[:, 1:]),
    "control": lambda t: (other_image_cosine(t),),
    "norms": lambda t: (*token_norms(t).outliers, token_norms(t).longest, token_norms(t).variation),
    "locality": lambda t: locality(t, (3, 4)),
    "place": position_share,
    "neighbours": lambda t: patch_neighbors(t, t.flip(1), torch.eye(12).bool().flip(1)).share,
}


@pytest.mark.parametrize("name", MEASURES)
def test_rotations_and_scale_change_nothing(name: str) -> None:
    tokens = normal(6, 12, 9) + 0.5
    tokens[2, 5] *= 8
    expected = [value.item() for value in MEASURES[name](tokens)]
    for factor in (1e-150, 1e150):
        found = [value.item() for value in MEASURES[name](factor * tokens @ rotation(9))]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.zeros(4, 12, dtype=torch.long), TypeError, "floating-point tensor"),
        (torch.zeros(4, 12), ValueError, r"must have shape \(N, V, K\)|\(N, K\) with K"),
        (torch.full((4, 12, 3), torch.nan), ValueError, "non-finite"),
    ],
)
def test_wrong_tokens_are_named(
    name: str, tokens: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MEASURES[name](tokens)


T = normal(3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: token_rank(T[:1]), ValueError, "`tokens` must have at least 2 rows, got 1"),
        (lambda: token_rank(T, positions=0), ValueError, "`positions` must be"),
        (lambda: other_image_cosine(T[:1]), ValueError, "at least 2 rows"),
        (lambda: class_token_cosines(T[:2, 0], T), ValueError, "same number of rows"),
        (lambda: class_token_cosines(T[:, 0, :3], T), ValueError, "same last dimension"),
        (lambda: token_norms(T, factor=1.0), ValueError, "`factor` must lie in"),
        (lambda: gram_drift(T, T), ValueError, r"`gram` must have shape \(B, P, P\)"),
        (lambda: gram_drift(token_gram(T), token_gram(T[:2])), ValueError, "the same shape"),
        (lambda: locality(T, (3, 2)), ValueError, "`grid` must have 4 places.*got 3 x 2"),
        (lambda: position_share(T[:1]), ValueError, "at least 2 rows"),
        (lambda: crop_places((2, 2), 0.5, 0.0, 0.6, False), ValueError, "`top` . `side` must be"),
        (lambda: crop_places((2, 2), 0.0, 0.0, 1.5, False), ValueError, "`side` must lie in"),
        (lambda: patch_neighbors(T, T, torch.ones(4, 4)), ValueError, "must be bool of shape"),
        (lambda: patch_neighbors(T, T, torch.ones(4, 4).bool()), ValueError, "got a share of 1"),
    ],
)  # fmt: skip
def test_wrong_use_is_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
