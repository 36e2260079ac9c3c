"""Patch tokens in a look: every tag by NumPy, planted faults, what is kept, and when nothing is said."""

from __future__ import annotations

import itertools
import pathlib
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import Tiny, images, loader, mlp, off_the_start, trainer
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, JepaScoreCallback, ScoreOptions
from jepa_monitor.functional import dense_structure, isotropic_baseline
from jepa_monitor.insights import INSIGHTS, token_parts
from jepa_monitor.insights.token_parts import Tokens, TokenSet, mirrored_crop
from jepa_monitor.insights.tokens import TokenHealth, plot_components

Array = NDArray[np.float64]
PROBE, SIDE, WIDTH = 21, 4, 64  # 4 × 4 patches
DATA = images(PROBE, 3)
CHEAP: dict[str, Any] = {"max_probe_samples": 1, "options": ScoreOptions("sketch", rows=1)}


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = timm.create_model("test_vit", num_classes=0, img_size=8, patch_size=2)
    return off_the_start(made.double().eval(), seed)


def look(encoder: Any, data: Tensor = DATA, **settings: Any) -> Any:
    return DensityMonitor(data, insights=["tokens"], **CHEAP, **settings).evaluate(encoder)


def tokens_of(encoder: nn.Module, data: Tensor) -> tuple[Array, Array, Array]:
    """Class token, patches, and patches before the norm."""
    with torch.no_grad():
        x = encoder.patch_embed(data.double())
        x = encoder.blocks(encoder.norm_pre(encoder._pos_embed(x)))
        after = encoder.norm(x)
    return after[:, 0].numpy(), after[:, 1:].numpy(), x[:, 1:].numpy()


# ------------------------------------------------------------------------------ every tag by itself
@cache
def scalars() -> dict[str, float]:
    monitor = DensityMonitor(DATA, insights=["tokens"], **CHEAP)
    monitor.evaluate(vit(1))  # from which similarities drift
    return {
        tag: value
        for tag, value in monitor.evaluate(vit(0)).scalars.items()
        if tag.startswith("tokens/")
    }


def rank(z: Array) -> float:
    return float(np.exp(stats.entropy(np.linalg.svd(z - z.mean(0), compute_uv=False))))


def of_ranks(_: Array, t: Array, __: Array) -> dict[str, float]:
    draws = torch.rand(PROBE, 16, generator=torch.Generator().manual_seed(0)).argsort(1).numpy()
    across = np.mean([rank(t[np.arange(PROBE), draws[:, i]]) for i in range(16)])
    within = np.mean([rank(image) for image in t])
    return {
        "rank_across": across,
        "rank_across_relative": across / isotropic_baseline(PROBE - 1, WIDTH).rankme,
        "rank_within": within,
        "rank_within_relative": within / isotropic_baseline(15, WIDTH).rankme,
    }


def of_cosines(c: Array, t: Array, _: Array) -> dict[str, float]:
    own = np.array([1 - cdist(a, b[None], "cosine")[:, 0] for a, b in zip(t, c, strict=True)])
    others = [1 - cdist(t[i], t[(i + 1) % PROBE].mean(0)[None], "cosine") for i in range(PROBE)]
    return {
        "class_cosine": own.mean(),
        "class_cosine_std": own.std(1, ddof=1).mean(),
        "other_image_cosine": np.mean(others),
    }


def interval(by_image: Array, tokens: int) -> tuple[float, float, float]:
    """Wilson's, of as many independent tokens as the spread among images says."""
    share = by_image.mean()
    worth = float(len(by_image))
    if by_image.std() > 0:
        worth = min(share * (1 - share) / stats.sem(by_image) ** 2, len(by_image) * tokens)
    z = stats.norm.ppf(0.975)
    centre = share + z**2 / (2 * worth)
    half = z * np.sqrt(share * (1 - share) / worth + z**2 / (4 * worth**2))
    scale = 1 + z**2 / worth
    return share, max((centre - half) / scale, 0), min((centre + half) / scale, 1)


def of_lengths(_: Array, __: Array, before: Array) -> dict[str, float]:
    lengths = np.linalg.norm(before, axis=2)
    share, low, high = interval((lengths > 3 * np.median(lengths)).mean(1), 16)
    energies = before.reshape(-1, WIDTH)[lengths.argmax()] ** 2
    return {
        "norm_outliers": share,
        "norm_outliers_low": low,
        "norm_outliers_high": high,
        "norm_longest": lengths.max() / np.median(lengths),
        "norm_variation": lengths.std(ddof=1) / lengths.mean(),
        "norm_channels": energies.sum() ** 2 / (energies**2).sum(),
        "norm_top_channel": energies.max() / energies.sum(),
    }


def of_drift(_: Array, t: Array, __: Array) -> dict[str, float]:
    earlier = tokens_of(vit(1), DATA)[1]
    now, first = (np.array([1 - cdist(i, i, "cosine") for i in x]) for x in (t, earlier))
    terms = [dense_structure(torch.from_numpy(x[:16])) for x in (t, earlier)]
    dse1 = [float(found.inter - found.intra + found.dimension) for found in terms]
    best = now if dse1[0] > dse1[1] else first
    return {
        "gram_drift_first": ((now - first) ** 2).mean(),
        "gram_drift_first_clipped": ((now.clip(0) - first.clip(0)) ** 2).mean(),
        "gram_drift_best_dse1": ((now - best) ** 2).mean(),
        "gram_drift_best_dse1_clipped": ((now.clip(0) - best.clip(0)) ** 2).mean(),
    }


def of_places(_: Array, t: Array, __: Array) -> dict[str, float]:
    centred = t - t.mean((0, 1))
    share = PROBE * (centred.mean(0) ** 2).sum() / (centred**2).sum()
    null = 15 / (16 * PROBE - 1)
    near, far, morans = [], [], []
    for image in t:
        cosines, moved = 1 - cdist(image, image, "cosine"), image - image.mean(0)
        products = []
        for (r, c), (s, d) in itertools.product(np.ndindex(SIDE, SIDE), repeat=2):
            pair, distance = (r * SIDE + c, s * SIDE + d), np.hypot(r - s, c - d)
            if distance == 1:
                near.append(cosines[pair])
                products.append(moved[pair[0]] @ moved[pair[1]])
            if distance >= 2:
                far.append(cosines[pair])
        morans.append(16 * np.mean(products) / (moved**2).sum())
    return {
        "position_share": (share - null) / (1 - null),
        "near_cosine": np.mean(near),
        "far_cosine": np.mean(far),
        "locality": np.mean(near) - np.mean(far),
        "morans_i": np.mean(morans),
    }


def of_the_view(_: Array, t: Array, __: Array) -> dict[str, float]:
    view = tokens_of(vit(0), mirrored_crop(DATA.double()))[1]
    same = np.zeros((16, 16))
    for (r, c), (s, d) in itertools.product(np.ndindex(SIDE, SIDE), repeat=2):
        down, right = 0.75 * (r + 0.5), 0.75 * (SIDE - c - 0.5)
        inside = abs(down - s - 0.5) <= 1 and abs(right - d - 0.5) <= 1
        same[r * SIDE + c, s * SIDE + d] = inside
    nearest = [cdist(a, b, "cosine").argmin(1) for a, b in zip(view, t, strict=True)]
    hits = np.array([same[np.arange(16), index].mean() for index in nearest])
    found = ((value - same.mean()) / (1 - same.mean()) for value in interval(hits, 16))
    return dict(zip((f"view_neighbors{e}" for e in ("", "_low", "_high")), found, strict=True))


def of_the_structure(_: Array, t: Array, __: Array) -> dict[str, float]:
    """Its k-means has tests of its own (test_dense_structure.py); the rank is taken apart here."""
    unit = t[:16] / np.linalg.norm(t[:16], axis=2, keepdims=True)
    draws = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).argsort(1).numpy()
    ranks = []
    for i in range(16):
        singular = np.linalg.svd(unit[np.arange(16), draws[:, i]], compute_uv=False)
        ranks.append(np.exp(stats.entropy(singular)))
    terms = dense_structure(torch.from_numpy(t[:16]))
    return {
        "dse_dimension": np.mean(ranks) / 16,
        "dse_inter": float(terms.inter),
        "dse_intra": float(terms.intra),
    }


EXPECTED = (
    of_ranks, of_cosines, of_lengths, of_drift, of_places, of_the_view, of_the_structure
)  # fmt: skip


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda f: f.__name__)
def test_tag_is_what_it_says(expected: Any) -> None:
    for name, value in expected(*tokens_of(vit(0), DATA)).items():
        # Similarities are kept in float32; the view is enlarged by other arithmetic of the same kind.
        rel = 1e-5 if "gram" in name else 1e-6
        assert scalars()[f"tokens/{name}"] == pytest.approx(float(value), rel=rel, abs=1e-9), name


def test_no_tag_is_missing_from_these_tests() -> None:
    parts = tokens_of(vit(0), DATA)
    told = {f"tokens/{name}" for expected in EXPECTED for name in expected(*parts)}
    assert told == set(scalars()) == {tag for row in TokenHealth().rows for tag in row.tags}
    trivial = {tag for tag, value in scalars().items() if value in (0, 1)}
    assert trivial <= {
        "tokens/norm_outliers", "tokens/norm_outliers_low",
        "tokens/gram_drift_best_dse1", "tokens/gram_drift_best_dse1_clipped",
    }  # fmt: skip


def test_a_crop_lies_where_its_places_say() -> None:
    ramp = torch.linspace(0.5, 31.5, 32)  # pixels' centres
    across, down = (t[None, None] for t in torch.meshgrid(ramp, ramp, indexing="xy"))
    for image, expected in ((across, 0.75 * ramp.flip(0)), (down, 0.75 * ramp)):
        seen = mirrored_crop(image)[0, 0]
        line = seen[16] if image is across else seen[:, 16]
        torch.testing.assert_close(line[1:-1], expected[1:-1], atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------- planted faults
class Faulty(nn.Module):
    """A ViT whose patch tokens alone can be broken, before the last norm."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model("test_vit", num_classes=0, img_size=16, patch_size=2)
        self.fault = fault
        self.code = torch.randn(64, 8) @ torch.randn(8, WIDTH)
        few = torch.linalg.qr(torch.randn(WIDTH, 4)).Q
        self.few = few @ few.T

    def forward(self, x: Tensor) -> Tensor:
        vit = self.vit
        z = vit.blocks(vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
        classes, patches = z[:, :1], z[:, 1:]
        if self.fault == "collapse":
            patches = patches @ self.few
        if self.fault == "positions":  # a position code of rank 8 that outweighs all content
            patches = patches + 100 * self.code
        return vit.norm(torch.cat([classes, patches], 1))[:, 0]


PICTURES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_a_collapse_of_patches_that_the_pooled_rank_misses() -> None:
    before, after = (look(Faulty(fault), PICTURES) for fault in ("", "collapse"))
    pooled = "collapse/rankme_relative"
    assert after.scalars[pooled] == pytest.approx(before.scalars[pooled])  # what is watched without
    assert before.scalars["tokens/rank_across"] > 15
    assert after.scalars["tokens/rank_across"] < 4.1
    assert after.scalars["tokens/rank_within"] < 4.1
    assert after.scalars["tokens/dse_dimension"] < 0.3 * before.scalars["tokens/dse_dimension"]
    assert f"span only {after.scalars['tokens/rank_across']:.1f} directions" in str(after.verdict)
    assert "only" not in INSIGHTS["tokens"].says(before.scalars)


def test_a_broken_position_code_is_seen_before_the_first_step() -> None:
    monitor = DensityMonitor(PICTURES, insights=["tokens"], **CHEAP)
    first = monitor.watch()(Faulty("positions"), 0)
    sound = look(Faulty(), PICTURES).scalars
    assert first.step == 0
    assert first.scalars["tokens/rank_across"] < 9
    assert sound["tokens/rank_across"] > 15
    assert first.scalars["tokens/rank_within"] < 9
    assert first.scalars["tokens/position_share"] > 0.9
    assert sound["tokens/position_share"] < 0.3
    assert first.scalars["collapse/rankme_relative"] == sound["collapse/rankme_relative"]
    assert "only" in INSIGHTS["tokens"].says(first.scalars)


def test_long_tokens_are_seen_before_the_norm_that_hides_them() -> None:
    encoder = Faulty()
    encoder.vit.blocks.register_forward_hook(
        lambda module, inputs, z: torch.cat([z[:, :5], 30 * z[:, 5:6], z[:, 6:]], 1)
    )
    found = look(encoder, PICTURES).scalars
    assert found["tokens/norm_outliers"] == pytest.approx(1 / 64)
    assert found["tokens/norm_outliers_low"] > 0
    assert look(Faulty(), PICTURES).scalars["tokens/norm_outliers"] == 0


# ------------------------------------------------------------------------------- what is kept
def test_drift_counts_from_the_first_look_and_from_the_best() -> None:
    healthy, collapsed, later = Faulty(), Faulty("collapse"), Faulty()
    with torch.no_grad():
        later.vit.patch_embed.proj.weight.mul_(1.2)
    watch = DensityMonitor(PICTURES, insights=["tokens"], **CHEAP).watch()
    found = [
        watch(encoder, step).scalars for step, encoder in enumerate((collapsed, healthy, later))
    ]
    dse1 = [
        s["tokens/dse_inter"] - s["tokens/dse_intra"] + s["tokens/dse_dimension"] for s in found
    ]
    first, best = (
        [s[f"tokens/gram_drift_{name}"] for s in found] for name in ("first", "best_dse1")
    )
    assert first[0] == best[0] == 0
    assert first[1] > 0.01
    assert first[2] > 0.01
    # With weight 1 the tight clusters of collapsed tokens count for more than what they have lost.
    assert dse1[0] > max(dse1[1:])
    assert best == first

    watch = DensityMonitor(PICTURES, insights=["tokens"], **CHEAP).watch()
    found = [watch(encoder, step).scalars for step, encoder in enumerate((healthy, collapsed))]
    assert found[1]["tokens/gram_drift_best_dse1"] == 0 < found[1]["tokens/gram_drift_first"]


def test_a_resumed_run_compares_with_the_looks_before(tmp_path: pathlib.Path) -> None:
    def watch() -> Any:
        return DensityMonitor(DATA, insights=["tokens"], **CHEAP).watch()

    first = watch()
    first(vit(1), 0)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = watch()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = resumed(vit(0), 1).scalars
    for name in ("first", "first_clipped", "best_dse1", "best_dse1_clipped"):
        assert found[f"tokens/gram_drift_{name}"] == scalars()[f"tokens/gram_drift_{name}"]
    assert found["tokens/gram_drift_first"] > 0
    assert watch()(vit(0), 1).scalars["tokens/gram_drift_first"] == 0


def test_what_is_kept_is_small() -> None:
    big = torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    patches = nn.Conv2d(3, 200, 2, 2)  # 144 patches
    monitor = DensityMonitor(big, insights=["tokens"], **CHEAP)
    monitor.evaluate(lambda x: patches(x).flatten(2).transpose(1, 2))
    assert {
        name: kept.shape for name, kept in monitor.memory["tokens"].items() if name != "best_dse1"
    } == {
        "first": (32, 64, 64),
        "best": (32, 64, 64),
    }


# --------------------------------------------------------------------------- what there is to say
def test_encoders_without_tokens_are_told_of_once_and_the_rest_goes_on() -> None:
    monitor = DensityMonitor(DATA, insights=["tokens", "neighbors"], **CHEAP)
    with pytest.warns(
        UserWarning, match="goes without 'tokens': TokenError: `encoder` gives no tok"
    ):
        report = monitor.evaluate(mlp(192))
    assert not [tag for tag in report.scalars if tag.startswith("tokens/")]
    assert report.scalars["monitor/failed_insights"] == 1
    assert report.scalars["neighbors/drift"] == pytest.approx(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.evaluate(mlp(192))


def test_tokens_on_no_grid_and_without_a_last_norm() -> None:
    patches = nn.Conv2d(3, 12, 2, 2)
    report = look(lambda x: patches(x).flatten(2).transpose(1, 2)[:, :15])
    tags = {tag.removeprefix("tokens/") for tag in report.scalars if tag.startswith("tokens/")}
    assert {"rank_within", "position_share", "gram_drift_first", "other_image_cosine"} <= tags
    absent = ("near_cosine", "morans_i", "view_neighbors", "norm_longest", "class_cosine")
    assert not tags & set(absent)
    assert "Their lengths were not looked at" in str(report.verdict)
    assert "tokens/components" not in report.figures()


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_equal_tokens_say_so_in_finite_numbers(level: float) -> None:
    found = look(
        lambda x: x.flatten(1)[:, :1, None] * 0 + torch.full((len(x), 9, 5), level)
    ).scalars
    assert found["tokens/rank_across"] == found["tokens/rank_within"] == 0
    assert found["tokens/position_share"] == found["tokens/morans_i"] == 0
    assert found["tokens/view_neighbors"] == pytest.approx(0, abs=1e-9)
    assert found["tokens/near_cosine"] == pytest.approx(float(level > 0))


def test_images_with_tokens_that_are_not_finite_are_left_out() -> None:
    def broken(x: Tensor) -> Tensor:
        bright = (x.flatten(1).mean(1) > 2)[:, None, None]
        return torch.where(bright, torch.nan, vit(0).forward_features(x.double()))

    data = DATA.clone()
    data[3] += 5
    found, clean = look(broken, data), look(broken, torch.cat([DATA[:3], DATA[4:]]))
    names = {tag for tag in clean.scalars if tag.startswith("tokens/") and "gram" not in tag}
    assert (
        len(names) == 9
    )  # of a function that says neither which token is the class nor where the others lie
    for tag in names:
        assert found.scalars[tag] == pytest.approx(clean.scalars[tag], rel=1e-4, abs=1e-4), tag
    assert not [tag for tag in found.scalars if "gram_drift" in tag]
    assert found.failed == {}
    assert not [tag for tag in look(broken, data + 9).scalars if tag.startswith("tokens/")]


def test_many_patches_are_refused_and_wide_tokens_take_fewer_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stem = nn.Conv2d(3, 4, 1)
    with pytest.warns(UserWarning, match=r"gives 4225 patches an image.*at most 4096"):
        report = look(stem, torch.rand(8, 3, 65, 65))
    assert "tokens" in report.failed
    monkeypatch.setattr(token_parts, "_NUMBERS", 12 * 16 * 12)  # twelve images of 16 tokens of 12
    found = look(nn.Conv2d(3, 12, 2, 2), images(40)).look[Tokens()]
    assert found.patches.shape == (12, 16, 12)


class Trained(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            "test_vit", num_classes=0, img_size=8, patch_size=2, proj_drop_rate=0.1
        )


def test_training_is_what_it_would_be_without(tmp_path: pathlib.Path) -> None:
    def fit(*callbacks: Any) -> Trained:
        torch.manual_seed(0)
        module = Trained()
        trainer(tmp_path, list(callbacks), max_epochs=1).fit(module, loader())
        return module

    watch = JepaScoreCallback(probe=DATA, insights=["tokens"], max_overhead=None, **CHEAP)
    with_it, without = fit(watch), fit()
    assert with_it.losses == without.losses
    assert watch.failures == 0
    assert "tokens/view_neighbors" in watch.history[-1]
    for (name, a), b in zip(
        with_it.state_dict().items(), without.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


# ------------------------------------------------------------------------------------- the figure
def test_the_figure_shows_what_the_tokens_tell_apart() -> None:
    tokens = torch.zeros(4, 16, 6)
    left = torch.arange(16) % 4 < 2
    tokens[:, left, 0], tokens[:, ~left, 0] = 1.0, -1.0
    tokens += 0.01 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    figure = plot_components(TokenSet(DATA[:4], tokens, grid=(4, 4)))
    pictures = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(pictures) == 8
    assert pictures[0].shape == (8, 8, 3)
    for picture in pictures[4:]:
        assert picture.shape == (4, 4, 3)
        red = np.asarray(picture)[..., 0]
        assert abs(red[:, :2].mean() - red[:, 2:].mean()) > 0.8  # the first component
    assert "variance" in figure.get_suptitle()
    with pytest.raises(ValueError, match="`found` must hold tokens on a grid"):
        plot_components(TokenSet(DATA[:4], tokens))


def test_the_figure_of_equal_tokens_is_grey() -> None:
    report = look(lambda x: x.flatten(1)[:, :1, None] * 0 + torch.ones(len(x), 16, 5))
    figure = report.figures()["tokens/components"]
    assert np.ptp(np.asarray(figure.axes[-1].get_images()[0].get_array())) == 0


def test_a_look_has_the_figure_and_inputs_that_are_no_images_have_none() -> None:
    assert "tokens/components" in look(vit(0)).figures()
    data = torch.rand(20, 3, 8, 8)
    sequence = look(lambda x: x.flatten(2).transpose(1, 2), data.flatten(2))
    assert "tokens/rank_across" in sequence.scalars
    assert "tokens/components" not in sequence.figures()
