import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.pairwise import cosine_similarity

from jepa_monitor.functional import prior_kernel, sample_tasks, task_prior_performance


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def residual_of_additive_fit(similarity):
    """U-centring by its meaning: what no sum a_i + a_j explains of the pairs, by least squares."""
    count = len(similarity)
    pairs = list(itertools.combinations(range(count), 2))
    design = np.zeros((len(pairs), count))
    for row, (i, j) in enumerate(pairs):
        design[row, i] = design[row, j] = 1
    target = np.array([similarity[i, j] for i, j in pairs])
    residual = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    kernel = np.zeros((count, count))
    for (i, j), value in zip(pairs, residual, strict=True):
        kernel[i, j] = kernel[j, i] = value
    return kernel / np.sqrt((kernel**2).sum() / (count * (count - 1)))


def hsic(first, second):
    """Unbiased HSIC as in Song et al. (JMLR 13, 2012), Eq. 5, up to a constant."""
    n = len(first)
    a, b = first - np.diag(np.diag(first)), second - np.diag(np.diag(second))
    cross = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()
    return np.trace(a @ b) + cross


def test_kernels_against_least_squares():
    z, labels = normal(15, 4) + 1, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 7, 7, 7, -3, -3])
    expected = residual_of_additive_fit(cosine_similarity(z.numpy()))
    assert prior_kernel(z).numpy() == pytest.approx(expected, abs=1e-10)
    same = (labels[:, None] == labels).numpy().astype(float)
    expected = residual_of_additive_fit(same)
    assert prior_kernel(labels).numpy() == pytest.approx(expected, abs=1e-10)
    assert prior_kernel(normal(6, 3, 2, 2)).shape == (6, 6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_closed_form_against_sampled_symmetric_graphs(temperature):
    # Formulas of the paper on graphs that are drawn; nothing of the closed form is used.
    rng = np.random.default_rng(0)
    z, prior = normal(30, 5), normal(30, 3, seed=1)
    model, kernel = (residual_of_additive_fit(cosine_similarity(x.numpy())) for x in (z, prior))
    pairs = np.triu_indices(30, 1)
    probability = 1 / (1 + np.exp(-kernel[pairs] / temperature))
    edges = rng.random((20_000, len(probability))) < probability
    performance = ((2.0 * edges - 1) @ model[pairs]) / len(probability)
    found = task_prior_performance(z, prior, temperature)
    error = performance.std() / 20_000**0.5
    assert found.mean.item() == pytest.approx(performance.mean(), abs=4 * error)
    assert found.variance.item() == pytest.approx(performance.var(), rel=4 * (2 / 20_000) ** 0.5)
    # The published variance sums over ordered pairs as if they were independent: half of it.
    ordered = 2 * (model[pairs] ** 2 * 4 * probability * (1 - probability)).sum()
    assert found.variance.item() == pytest.approx(2 * ordered / (30 * 29) ** 2, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_mean_over_best_is_debiased_cka_with_the_mean_graph(temperature):
    z, prior = normal(40, 5), normal(40, 3, seed=1) + 0.5
    prior[:, :2] += z[:, :2]
    found = task_prior_performance(z, prior, temperature)
    kernel = residual_of_additive_fit(cosine_similarity(prior.numpy()))
    graph = 1 / (1 + np.exp(-kernel / temperature))
    model = cosine_similarity(z.numpy())
    expected = hsic(model, graph) / np.sqrt(hsic(model, model) * hsic(graph, graph))
    assert (found.mean / found.best).item() == pytest.approx(expected, abs=1e-9)


def test_chance_is_zero_whatever_the_number_of_samples():
    for count in (20, 80):
        found = [
            task_prior_performance(normal(count, 4, seed=s), torch.arange(count) % 3, 1.0).mean
            for s in range(200)
        ]
        values = torch.stack(found)
        assert abs(values.mean()) < 4 * values.std() / 200**0.5


def test_what_does_not_matter_and_what_does():
    z, labels = normal(40, 6), torch.arange(40) % 4
    z = z + 3 * torch.nn.functional.one_hot(labels, 6)
    found = task_prior_performance(z, labels)
    rotation = torch.linalg.qr(normal(6, 6, seed=1)).Q
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task_prior_performance(7 * z @ rotation, labels), found)
    torch.testing.assert_close(task_prior_performance(z[order], labels[order]), found)
    assert 0.3 < found.mean < found.best < 1
    torch.testing.assert_close(task_prior_performance(z, 5 - labels), found)
    assert task_prior_performance(z, torch.arange(40) // 10).mean < 0.1
    assert task_prior_performance(z, labels, 100.0).mean.item() == pytest.approx(0, abs=0.01)
    assert task_prior_performance(z, labels, 1e-9).variance == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_constant_embeddings_read_chance(dtype, value):
    labels = torch.arange(20) % 4
    z = torch.full((20, 3), value, dtype=dtype)
    z[::2] *= 1 + torch.finfo(dtype).eps  # as after another order of the same sum
    found = task_prior_performance(z, labels)
    assert (found.mean, found.variance) == (0, 0)
    assert found.best > 0.5
    found = task_prior_performance(normal(20, 3), z)
    assert (found.mean, found.best) == (0, 0)
    assert task_prior_performance(normal(20, 3), torch.zeros(20).long()).mean == 0


def test_sampler_against_the_probabilities_of_all_labelings():
    temperature = 0.5
    kernel = prior_kernel(normal(4, 2)).numpy()
    expected = dict.fromkeys(itertools.product((0, 1), repeat=4), 0.0)
    for order in itertools.permutations(range(4)):
        for labels in expected:
            probability = 1.0
            for position, i in enumerate(order):
                before = order[:position]
                logits = [
                    sum(kernel[i, j] for j in before if labels[j] == c) / (4 * temperature)
                    for c in (0, 1)
                ]
                weights = np.exp(logits)
                probability *= weights[labels[i]] / weights.sum()
            expected[labels] += probability / 24
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat(
        [sample_tasks(normal(4, 2), 20, 2, temperature, generator) for _ in range(1000)]
    )
    counts = dict.fromkeys(expected, 0)
    for draw in draws.tolist():
        counts[tuple(draw)] += 1
    for labels, probability in expected.items():
        # All draws of a call share their order, hence the wider margin.
        assert counts[labels] / 20_000 == pytest.approx(probability, abs=0.01)


def test_sampled_tasks_follow_the_prior_at_low_temperature_only():
    labels = torch.arange(90) % 3
    generator = torch.Generator().manual_seed(0)
    cold = sample_tasks(labels, 20, 3, 1e-3, generator)
    hot = sample_tasks(labels, 20, 3, 1e3, generator)
    assert cold.shape == hot.shape == (20, 90)
    assert cold.dtype == torch.int64
    # Classes that start with one label stay together; each class agrees with itself.
    within = [len(task[labels == c].unique()) == 1 for task in cold for c in range(3)]
    assert np.mean(within) > 0.9
    assert np.mean([adjusted_rand_score(labels, task) for task in hot]) < 0.05
    assert hot.double().mean().item() == pytest.approx(1, abs=0.1)
    state = generator.get_state()
    again = sample_tasks(labels, 5, 3, 0.1, generator)
    generator.set_state(state)
    assert torch.equal(again, sample_tasks(labels, 5, 3, 0.1, generator))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: task_prior_performance(normal(3, 2), torch.arange(3)),
            ValueError,
            "`embeddings` must have at least 4 rows, got 3",
        ),
        (
            lambda: task_prior_performance(normal(5, 2), torch.arange(4)),
            ValueError,
            "`embeddings` and `prior` must have the same number of samples, got 5 and 4",
        ),
        (
            lambda: task_prior_performance(normal(5, 2), torch.arange(5), 0),
            ValueError,
            r"`temperature` must lie in \(0, inf\), got 0",
        ),
        (
            lambda: prior_kernel(torch.ones(5, 2).long()),
            ValueError,
            r"`prior` must be labels of shape \(N,\) with N ≥ 4, or .* got torch.int64 of shape",
        ),
        (lambda: prior_kernel([1]), TypeError, "`prior` must be a torch.Tensor, got list"),
        (
            lambda: sample_tasks(torch.arange(5), 0),
            ValueError,
            "`num_tasks` must be at least 1, got 0",
        ),
        (
            lambda: sample_tasks(torch.arange(5), 1, 1),
            ValueError,
            "`num_classes` must be at least 2, got 1",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
