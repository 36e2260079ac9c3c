"""Agreement of two views, and the paths of token states, by NumPy and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from jepa_monitor.functional import (
    common_share,
    draw_spans,
    pair_gap,
    pair_retrieval,
    path_curvature,
    tube_loss,
)


def views(count: int = 60, width: int = 7, noise: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(count, width)) + 0.5
    return torch.from_numpy(z), torch.from_numpy(z + noise * rng.normal(size=z.shape))


def gap_by_hand(z: np.ndarray, y: np.ndarray) -> float:
    cosines = cosine_similarity(z, y)
    others = ~np.eye(len(z), dtype=bool)
    return float(np.diag(cosines).mean() - cosines[others].mean())


def test_the_gap_is_that_of_all_cosines_and_its_error_the_jackknife() -> None:
    z, y = views()
    found = pair_gap(z, y)
    a, b = z.numpy(), y.numpy()
    cosines = cosine_similarity(a, b)
    assert found.aligned.item() == pytest.approx(np.diag(cosines).mean())
    assert found.shuffled.item() == pytest.approx(cosines[~np.eye(60, dtype=bool)].mean())
    assert found.gap.item() == pytest.approx(gap_by_hand(a, b))
    without = [gap_by_hand(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(60)]
    error = 1.96 * math.sqrt(59 * np.var(without))
    assert found.error.item() == pytest.approx(error)
    assert found.aligned_error.item() == pytest.approx(1.96 * stats.sem(np.diag(cosines)))


def test_identical_views_have_cosine_one_and_permuted_ones_no_gap() -> None:
    z, _ = views(400)
    found = pair_gap(z, 3 * z)
    assert found.aligned.item() == pytest.approx(1)
    assert found.aligned_error.item() == pytest.approx(0, abs=1e-7)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    permuted = pair_gap(z, z[order])
    assert abs(permuted.gap.item()) < 1.5 * permuted.error.item()
    assert permuted.aligned.item() < found.aligned.item() - found.gap.item() / 2


def test_the_interval_of_the_gap_holds_the_truth_as_often_as_it_says() -> None:
    # Views on a circle, one the other turned by an angle of mean cosine e^(−1/8): all cosines of others are 0.
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        angle = rng.uniform(0, 2 * np.pi, 40)
        turned = angle + 0.5 * rng.normal(size=40)
        z, y = (torch.from_numpy(np.stack([np.cos(x), np.sin(x)], 1)) for x in (angle, turned))
        found = pair_gap(z, y)
        held += abs(found.gap.item() - math.exp(-0.125)) <= found.error.item()
    assert stats.binomtest(held, 400, 0.95).pvalue > 1e-3


def test_retrieval_counts_the_nearest_and_shares_ties() -> None:
    z, y = views()
    nearest = cosine_similarity(z.numpy(), y.numpy()).argmax(1)
    hits = int((nearest == np.arange(60)).sum())
    found = pair_retrieval(z, y)
    assert found.share.item() == pytest.approx(hits / 60)
    ends = stats.binomtest(hits, 60).proportion_ci(0.95, "wilson")
    assert (found.low.item(), found.high.item()) == pytest.approx((ends.low, ends.high))
    assert found.chance.item() == pytest.approx(1 / 60)
    assert pair_retrieval(z, torch.ones_like(z)).share.item() == pytest.approx(1 / 60)
    twice = torch.cat([z[:30], z[:30]])  # of every two equal views one is meant
    assert pair_retrieval(twice, twice).share.item() == pytest.approx(0.5)


def test_common_share_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(5000, 8)) + 2.0  # ‖mean‖² = 32, mean ‖z‖² = 40
    assert common_share(torch.from_numpy(z)).item() == pytest.approx(0.8, abs=0.01)
    y = rng.normal(size=(9, 3))
    truth = np.sum(y.mean(0) ** 2) / np.mean(np.sum(y**2, 1))
    assert common_share(torch.from_numpy(y)).item() == pytest.approx(truth)
    assert math.isnan(common_share(torch.zeros(3, 2)).item())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_gap(torch.ones(3, 2), torch.ones(4, 2)), "same shape"),
        (lambda: pair_gap(torch.ones(2, 2), torch.ones(2, 2)), "`first` must have at least 3 rows"),
        (lambda: pair_retrieval(torch.ones(3, 2), torch.full((3, 2), torch.nan)), "`second` has 3"),
        (lambda: common_share(torch.ones(3)), "`embeddings` must have shape"),
        (lambda: draw_spans(torch.tensor([5, 2])), "text 1 has 2 tokens"),
        (lambda: draw_spans(torch.ones(0, dtype=torch.int64)), r"`lengths` must have shape \(B,\)"),
        (lambda: tube_loss(torch.ones(2, 4, 3), torch.tensor([[0, 1, 2]])), r"shape \(B, 3\) for 2"),
        (lambda: tube_loss(torch.ones(1, 4, 3), torch.tensor([[0, 1, 4]])), "s < r < t below 4"),
        (lambda: tube_loss(torch.ones(1, 4, 3), torch.tensor([[0, 2, 2]])), "s < r < t below 4"),
        (lambda: tube_loss(torch.ones(4, 3), torch.tensor([[0, 1, 2]])), r"shape \(B, T, K\)"),
        (lambda: path_curvature(torch.ones(1, 4, 3), torch.ones(1, 4)), "`real` must be bool"),
        (
            lambda: path_curvature(torch.full((1, 4, 3), torch.nan), torch.ones(1, 4).bool()),
            "`states` must be finite",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_numbers_and_floating_point_are_not_confused() -> None:
    with pytest.raises(TypeError, match="`lengths` must hold whole numbers"):
        draw_spans(torch.ones(3))
    with pytest.raises(TypeError, match="`states` must be a floating-point"):
        tube_loss(torch.ones(1, 4, 3).long(), torch.tensor([[0, 1, 2]]))


# ------------------------------------------------------------------------------------------- paths
def test_spans_are_in_order_within_the_text_and_all_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5] * 6000 + [3, 9])
    spans = draw_spans(lengths, draw)
    assert bool((spans.diff(dim=1) > 0).all())
    assert bool((spans[:, 2] < lengths).all())
    found = dict.fromkeys(itertools.combinations(range(5), 3), 0)
    for row in spans[:6000].tolist():
        found[tuple(row)] += 1
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_a_line_has_0_a_random_walk_1_and_a_zigzag_2() -> None:
    real, rng = torch.ones(1, 40, dtype=torch.bool), np.random.default_rng(5)
    line = torch.arange(40.0)[None, :, None] * torch.tensor([1.0, -2.0, 0.5])
    zigzag = torch.tensor([0.0, 1.0] * 20)[None, :, None] * torch.tensor([1.0, -2.0, 0.5])
    walk = torch.from_numpy(rng.normal(size=(500, 40, 6)).cumsum(1))
    assert path_curvature(line, real).item() == pytest.approx(0, abs=1e-6)
    assert path_curvature(zigzag, real).item() == pytest.approx(2)
    turns = path_curvature(walk, real.expand(500, -1))
    assert turns.mean().item() == pytest.approx(1, abs=4 * turns.std().item() / 500**0.5)
    spans = draw_spans(torch.full((500,), 40), torch.Generator().manual_seed(1))
    assert tube_loss(line.expand(500, -1, -1), spans).abs().max().item() < 1e-5
    lost = tube_loss(walk, spans)
    assert lost.mean().item() == pytest.approx(1, abs=4 * lost.std().item() / 500**0.5)
    assert tube_loss(zigzag, torch.tensor([[3, 4, 7]])).item() == pytest.approx(2)
    apart = torch.from_numpy(rng.normal(size=(2000, 3, 512)))
    alone = path_curvature(apart, torch.ones(2000, 3, dtype=torch.bool)).mean().item()
    assert alone == pytest.approx(1.5, abs=0.01)


def test_paths_are_those_of_the_equation_and_padding_counts_for_nothing() -> None:
    rng = np.random.default_rng(6)
    h = rng.normal(size=(3, 8, 4))
    lengths, truth = (8, 5, 2), []
    real = torch.arange(8) < torch.tensor(lengths)[:, None]
    for states, length in zip(h, lengths, strict=True):
        steps = np.diff(states[:length], axis=0)
        pairs = itertools.pairwise(steps)
        turns = [1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]
        truth.append(np.mean(turns) if turns else np.nan)
    padded = torch.from_numpy(h).masked_fill(~real[..., None], torch.inf)
    assert path_curvature(padded, real).numpy() == pytest.approx(np.array(truth), nan_ok=True)
    spans = torch.tensor([[0, 3, 7], [1, 2, 4]])
    lost = tube_loss(torch.from_numpy(h[:2]), spans)
    for row, (s, r, t) in enumerate(spans.tolist()):
        u, v = h[row, t] - h[row, r], h[row, r] - h[row, s]
        assert lost[row].item() == pytest.approx(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    assert math.isnan(path_curvature(torch.ones(1, 8, 4), torch.ones(1, 8).bool()).item())


def test_the_loss_of_a_path_has_the_gradient_of_its_equation() -> None:
    states = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spans = torch.tensor([[0, 2, 5], [1, 3, 4]])
    assert torch.autograd.gradcheck(lambda h: tube_loss(h, spans), states.requires_grad_())
