"""k-NN, ridge and few-shot accuracy against scikit-learn, closed forms and simulation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jepa_monitor.functional import few_shot_accuracy, knn_predict, probing, ridge_predict


def features(seed=0, n=300, m=1100, width=6, classes=5, noise=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1000 + width).normal(size=(classes, width))
    labels = rng.integers(0, classes, n + m)
    x = centres[labels] + noise * rng.normal(size=(n + m, width))
    names = torch.arange(classes) * 7 + 3  # neither from 0 nor dense
    x, labels = torch.from_numpy(x), names[torch.from_numpy(labels)]
    return x[:n], labels[:n], x[n:], labels[n:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (999, 0.2)])
@pytest.mark.parametrize("block", [64, 4096])
def test_neighbours_vote_as_in_scikit_learn(k, temperature, block, monkeypatch):
    monkeypatch.setattr(probing, "_BLOCK", block)
    known, labels, asked, _ = features()
    reference = KNeighborsClassifier(
        min(k, 300), metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(known, labels)
    predicted = knn_predict(known, labels, 3 * asked, k, temperature)
    np.testing.assert_array_equal(predicted, reference.predict(asked))
    assert 0.3 < (predicted == features()[3]).double().mean() < 0.95


def test_neighbours_that_tie_share_the_places():
    # Cosine 1 with the first, 0 with six others, of which two places are left: four of six are of
    # class 5, so its two places weigh 4/3 against 2/3. No order of the rows changes that.
    known = torch.zeros(7, 7)
    known[range(7), range(7)] = 1
    labels = torch.tensor([9, 8, 8, 5, 5, 5, 5])
    for order in (torch.arange(7), torch.arange(6, -1, -1)):
        asked = known[:1]
        hot = knn_predict(known[order], labels[order], asked, k=3, temperature=100.0)
        assert hot.tolist() == [5]
        cold = knn_predict(known[order], labels[order], asked, k=3, temperature=0.1)
        assert cold.tolist() == [9]


@pytest.mark.parametrize(("n", "width"), [(200, 6), (60, 100)])
def test_the_linear_map_is_that_of_scikit_learn(n, width):
    known, labels, asked, truth = features(2, n=n, m=400, width=width, noise=2.0)
    reference = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=probing._PENALTIES))
    expected = reference.fit(known.numpy(), labels.numpy()).predict(asked.numpy())
    assert probing._PENALTIES[0] < reference[-1].alpha_ < probing._PENALTIES[-1]
    predicted = ridge_predict(known, labels, asked)
    np.testing.assert_array_equal(predicted, expected)
    np.testing.assert_array_equal(ridge_predict(5 * known - 3, labels, 5 * asked - 3), expected)
    assert 0.3 < (predicted == truth).double().mean() < 1


@pytest.mark.parametrize("predict", [knn_predict, ridge_predict])
@pytest.mark.parametrize("jitter", [0.0, 1e-7])
def test_constant_embeddings_read_the_most_frequent_class(predict, jitter):
    _, labels, asked, _ = features(n=50)
    labels = torch.where(torch.arange(50) < 20, labels.max(), labels)
    known = torch.ones(50, 6) + jitter * torch.rand(50, 6)  # float32: rounding
    most = labels.mode().values
    assert bool((predict(known, labels, asked.float()) == most).all())
    assert int(labels[0]) == int(most)
    assert bool((predict(known.flip(0), labels.flip(0), asked.float()) == most).all())


def test_few_shots_with_all_examples_are_the_neighbours_of_all():
    known, labels, asked, truth = features(3, n=60, m=80, classes=3)
    order = torch.cat([(labels == c).nonzero()[:, 0][:12] for c in labels.unique()])
    z, classes = known[order], labels[order]
    found = few_shot_accuracy((z, classes), (asked, truth), shots=12)
    right = (knn_predict(z, classes, asked) == truth).double()
    p, n, q = right.mean().item(), len(right) - 1, 1.959963984540054
    assert found.accuracy.item() == pytest.approx(p)
    half = q * np.sqrt(p * (1 - p) / n + q**2 / (4 * n**2))
    ends = [(p + q**2 / (2 * n) + sign * half) / (1 + q**2 / n) for sign in (-1, 1)]
    assert [found.lower.item(), found.upper.item()] == pytest.approx(ends)


def test_one_shot_is_the_mean_over_draws_and_its_interval_covers_it():
    known, labels, asked, truth = features(4, n=400, m=4000, width=5, classes=4)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):  # the truth: the nearest example, over many draws
        some = [rng.choice(np.flatnonzero(labels == c)) for c in labels.unique()]
        nearest = KNeighborsClassifier(1, metric="cosine").fit(known[some], labels[some])
        shares.append(nearest.score(asked, truth))
    expected, covered = np.mean(shares), 0
    for start in range(0, 4000, 100):
        some = slice(start, start + 100)
        found = few_shot_accuracy((known, labels), (asked[some], truth[some]), 1, seed=start)
        covered += bool(found.lower <= expected <= found.upper)
    # 40 intervals: of 95 % each at least 34 cover it, but for one case in 700.
    assert covered >= 34
    assert 0.3 < expected < 0.9
    wide = few_shot_accuracy((known, labels), (asked, truth), 1, draws=100)
    assert wide.accuracy.item() == pytest.approx(expected, abs=0.03)


def test_draws_have_a_generator_of_their_own():
    known, labels, asked, truth = features()
    state = torch.get_rng_state()
    first = few_shot_accuracy((known, labels), (asked, truth), 2)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert few_shot_accuracy((known, labels), (asked, truth), 2) == first
    assert few_shot_accuracy((known, labels), (asked, truth), 2, seed=1) != first


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, 2), torch.zeros(3), torch.ones(1, 2)), ValueError, "`labels` must be integers of shape .3,., one for each row of `known`, got torch.float32"),
        ((torch.ones(3, 2), torch.zeros(2).long(), torch.ones(1, 2)), ValueError, "got torch.int64 of shape .2,."),
        ((torch.ones(3, 2), [0, 1, 2], torch.ones(1, 2)), TypeError, "`labels` must be a torch.Tensor, got list"),
        ((torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 3)), ValueError, "`known` and `asked` must have the same last dimension"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("predict", [knn_predict, ridge_predict])
def test_wrong_use_is_named(predict, arguments, error, message):
    with pytest.raises(error, match=message):
        predict(*arguments)


def test_wrong_numbers_are_named():
    z, labels = torch.rand(4, 2), torch.tensor([0, 0, 0, 1])
    with pytest.raises(ValueError, match="`known` must have at least 2 rows, got 1"):
        ridge_predict(z[:1], labels[:1], z)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        knn_predict(z, labels, z, k=0)
    with pytest.raises(ValueError, match="`temperature` must be finite and above 0"):
        knn_predict(z, labels, z, temperature=0)
    with pytest.raises(ValueError, match=r"`shots` must be at most 1, as many as .* got 2"):
        few_shot_accuracy((z, labels), (z, labels), 2)
