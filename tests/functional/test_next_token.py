"""Next-token perception: SciPy's subspace angles, closed cases, padding, and what the published order does."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from jepa_monitor.functional import next_token_perception, predictive_overlap

B, T, D, K = 300, 9, 12, 4


def states(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of two to nine tokens whose next state follows the last in some directions."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, D, generator=draw, dtype=torch.float64)
    carried = torch.linspace(0.95, 0.0, D, dtype=torch.float64)
    for t in range(1, T):
        hidden[:, t] = carried * hidden[:, t - 1] + (1 - carried**2).sqrt() * hidden[:, t]
    lengths = torch.randint(2, T + 1, (B,), generator=draw)
    return hidden, torch.arange(T) < lengths[:, None]


def directions(second: np.ndarray, cross: np.ndarray, k: int, largest: bool) -> np.ndarray:
    """SciPy's generalised eigenvectors."""
    values, vectors = scipy.linalg.eigh(cross @ cross.T, second)
    order = np.argsort(-values if largest else values)
    return vectors[:, order[:k]]


def by_hand(
    hidden: Tensor, mask: Tensor, labels: Tensor, context: str, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of the paper, text by text."""
    second, cross, means = np.zeros((D, D)), np.zeros((D, D)), []
    for text, real in zip(hidden.numpy(), mask.numpy(), strict=True):
        h = text[real]
        means.append(h.mean(0))
        for t in range(len(h) - 1):
            c = {"sum": h[: t + 1].sum(0), "mean": h[: t + 1].mean(0), "last": h[t]}[context]
            second += np.outer(c, c)
            cross += np.outer(c, h[t + 1])
    m, y = np.array(means), np.eye(int(labels.max()) + 1)[labels.numpy()]
    if centred:
        m, y = m - m.mean(0), y - y.mean(0)
    return second, cross, m.T @ m, m.T @ y


@pytest.mark.parametrize("context", ["sum", "mean", "last"])
@pytest.mark.parametrize("centred", [True, False])
def test_the_value_is_that_of_scipys_subspace_angles(context: str, centred: bool) -> None:
    hidden, mask = states()
    labels = (hidden[:, 0, 1] > 0).long() + (hidden[:, 1, 7] > 0.5).long()
    found = next_token_perception(hidden, mask, labels, k=K, context=context, centred=centred)
    b_v, a_v, b_u, a_u = by_hand(hidden, mask, labels, context, centred)
    k_u = 2 if centred else 3
    v, u = directions(b_v, a_v, K, True), directions(b_u, a_u, k_u, True)
    angles = scipy.linalg.subspace_angles(u, v)
    assert (found.label_directions, found.token_directions) == (k_u, K)
    assert found.value.item() == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-6)
    assert found.chance == K / D
    assert found.excess.item() == pytest.approx((found.value.item() - K / D) / (1 - K / D))


def test_the_published_form_is_that_of_the_code() -> None:
    hidden, mask = states()
    labels = (hidden[:, 0, 1] > 0).long() + (hidden[:, 1, 7] > 0.5).long()
    found = next_token_perception(
        hidden, mask, labels, k=3, order="published", orthonormal=False, centred=False
    )
    b_v, a_v, b_u, a_u = by_hand(hidden, mask, labels, "sum", False)
    v = directions(b_v, a_v, 3, False)
    # Of the classes three of twelve eigenvalues are not 0: the smallest are any basis of the others.
    assert found.label_directions == 3
    projector = v @ np.linalg.pinv(v)
    null = scipy.linalg.null_space(a_u.T)
    assert found.value.item() <= np.linalg.norm(projector @ scipy.linalg.orth(null), 2) ** 2 + 1e-9
    largest = next_token_perception(hidden, mask, labels, k=3, orthonormal=False, centred=False)
    u = directions(b_u, a_u, 3, True)
    v = directions(b_v, a_v, 3, True)
    expected = np.linalg.norm(v @ np.linalg.pinv(v) @ u) ** 2 / np.linalg.norm(u) ** 2
    assert largest.value.item() == pytest.approx(expected, abs=1e-6)


def test_closed_cases() -> None:
    """States that are white: the next token is told by the first K numbers alone."""
    draw = torch.Generator().manual_seed(1)
    count = 4000
    hidden = torch.randn(count, 2, D, generator=draw, dtype=torch.float64)
    hidden[:, 1, :K] = hidden[:, 0, :K]
    mask = torch.ones(count, 2, dtype=torch.bool)
    means = hidden.mean(1)

    def told(direction: Tensor) -> float:
        labels = (means @ direction > 0).long()
        return next_token_perception(hidden, mask, labels, k=K).value.item()

    inside, outside = torch.zeros(D).double(), torch.zeros(D).double()
    inside[:K], outside[K:] = 1.0, 1.0
    assert told(inside) > 0.98
    assert told(outside) < 0.02
    assert told(inside / 2 + outside / 8**0.5) == pytest.approx(0.5, abs=0.05)
    random = torch.randint(2, (count,), generator=draw)
    found = next_token_perception(hidden, mask, random, k=K, shuffles=200)
    assert abs(found.value - found.null) < 3 * found.null_std
    whole = next_token_perception(hidden, mask, random, k=D)
    assert whole.value.item() == pytest.approx(1)
    assert whole.excess.isnan()


def test_padding_says_nothing_wherever_it_is() -> None:
    hidden, mask = states()
    labels = torch.arange(B) % 3
    plain = next_token_perception(hidden, mask, labels, k=K)
    padded = torch.cat([torch.full((B, 4, D), 7.0, dtype=torch.float64), hidden], 1)
    padded[:, 4:][~mask] = -99.0
    left = torch.cat([torch.zeros(B, 4, dtype=torch.bool), mask], 1)
    found = next_token_perception(padded, left, labels, k=K)
    for mine, other in zip(found, plain, strict=True):
        assert float(mine) == pytest.approx(float(other), abs=1e-9)
    again = next_token_perception(hidden, mask, labels, k=K)
    assert again.null == plain.null  # the shuffles are those of the seed
    before = torch.get_rng_state()
    assert next_token_perception(hidden, mask, labels, k=K, shuffles=0).null.isnan()
    assert torch.equal(before, torch.get_rng_state())


GOOD = (torch.randn(4, 3, 5), torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("place", "wrong", "error", "message"),
    [
        (0, torch.randn(4, 5), ValueError, "`hidden` must have shape"),
        (0, torch.full((4, 3, 5), torch.nan), ValueError, "`hidden`"),
        (1, torch.ones(4, 3), TypeError, "`mask` must be a boolean tensor, got torch.float32"),
        (1, torch.ones(4, 2, dtype=torch.bool), ValueError, r"`mask` must have shape \(4, 3\)"),
        (1, torch.arange(3) < torch.tensor([[3], [0], [3], [3]]), ValueError, "text 1: it is all padding"),
        (1, torch.arange(3) < torch.ones(4, 1), ValueError, "there is no next token"),
        (2, torch.tensor([0.0, 1, 0, 1]), TypeError, "`labels` must be a tensor of integers"),
        (2, torch.tensor([0, 1]), ValueError, r"`labels` must have shape \(4,\), got \(2,\)"),
        (2, torch.zeros(4, dtype=torch.long), ValueError, "at least 2 classes, got 1"),
    ],
)  # fmt: skip
def test_errors(place: int, wrong: Tensor, error: type[Exception], message: str) -> None:
    arguments = list(GOOD)
    arguments[place] = wrong
    with pytest.raises(error, match=message):
        next_token_perception(*arguments)


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"context": "all"}, {"order": "ascending"}, {"shuffles": -1}]
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        next_token_perception(*GOOD, **options)  # type: ignore[arg-type]


def test_predictive_overlap_is_that_of_scipys_subspace_angles() -> None:
    draw = torch.Generator().manual_seed(3)
    x = (
        1
        + torch.randn(400, D, generator=draw, dtype=torch.float64)
        @ torch.diag(torch.arange(1.0, D + 1)).double()
    )
    y = x[:, :5] @ torch.randn(5, 7, generator=draw, dtype=torch.float64) + torch.randn(
        400, 7, generator=draw, dtype=torch.float64
    )
    labels = (x[:, 1] > 1).long() + (x[:, 8] > 9).long()
    found = predictive_overlap(x, y, x[:200], labels[:200], k=K)
    a, b, m = (part.numpy() - part.numpy().mean(0) for part in (x, y, x[:200]))
    one_hot = np.eye(3)[labels[:200].numpy()]
    v = directions(a.T @ a, a.T @ b, K, True)
    u = directions(m.T @ m, m.T @ (one_hot - one_hot.mean(0)), 2, True)
    expected = np.mean(np.cos(scipy.linalg.subspace_angles(u, v)) ** 2)
    assert found.value.item() == pytest.approx(expected, abs=1e-6)
    assert (found.chance, found.label_directions) == (K / D, 2)


def test_predictive_overlap_of_what_is_and_is_not_predicted() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(4000, D, generator=draw, dtype=torch.float64)
    of_class = {place: (x[:, place] > 0).long() for place in (0, 9)}
    seen, unseen = (predictive_overlap(x, x[:, :3], x, of_class[place], k=3) for place in (0, 9))
    assert seen.value > 0.95
    assert unseen.value < 0.02
    assert abs(seen.null - 3 / D) < 0.1  # inputs that vary alike in all directions


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (1, torch.rand(3, 2), "`targets` must be as many as `inputs`, 20, got 3"),
        (2, torch.rand(9, 4), "`embeddings` must have the width of `inputs`, 6, got 4"),
        (0, torch.ones(20, 6), "`inputs` must vary, got 20 that are the same"),
        (2, torch.ones(9, 6), "`embeddings` must vary, got 9 that are the same"),
        (3, torch.zeros(9).long(), "at least 2 classes"),
    ],
)
def test_predictive_overlap_checks_what_it_is_given(
    place: int, wrong: Tensor, message: str
) -> None:
    given = [torch.rand(20, 6), torch.rand(20, 2), torch.rand(9, 6), torch.arange(9) % 2]
    given[place] = wrong
    with pytest.raises(ValueError, match=message):
        predictive_overlap(*given)
