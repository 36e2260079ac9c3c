import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from jepa_monitor.functional import (
    centroid_alignment,
    jacobian_alignment,
    jacobian_frobenius_norm,
    rank_one_share,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def network(inputs=6, outputs=4):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)]
    return nn.Sequential(*layers).double()


def jacobians(encoder, x):
    return torch.stack([jacobian(lambda one: encoder(one[None])[0], point) for point in x])


def by_hand(rows, x, others=None):
    """The definitions, one pair at a time in numpy: own values and means over other inputs."""
    rows, x = rows.numpy(), x.numpy()
    others = None if others is None else others.numpy()
    table = {"centroid": ([], []), "jacobian": ([], [])}
    for i, one in enumerate(rows):
        compared = others if others is not None else np.delete(x, i, axis=0)
        mu = one.sum(0)

        def cosine(y, mu=mu):
            return mu @ y / np.sqrt(mu @ mu) / np.sqrt(y @ y)

        def gain(y, one=one):
            return np.linalg.norm(one @ y) / np.linalg.norm(one, "fro") / np.linalg.norm(y)

        for name, measure in (("centroid", cosine), ("jacobian", gain)):
            table[name][0].append(measure(x[i]))
            table[name][1].append(np.mean([measure(y) for y in compared]))
    return table


@pytest.mark.parametrize("others", [None, normal(3, 6, seed=5)])
def test_alignments_against_their_definitions(others):
    encoder, x = network(), normal(7, 6, seed=1)
    rows = jacobians(encoder, x)
    expected = by_hand(rows, x, others)
    leaf = x.clone().requires_grad_()
    (centroids,) = torch.autograd.grad(encoder(leaf).sum(), leaf)  # the one backward pass
    for found, (value, shuffled) in (
        (centroid_alignment(centroids, x, others), expected["centroid"]),
        (jacobian_alignment(rows, x, others), expected["jacobian"]),
    ):
        assert found.value.tolist() == pytest.approx(value, abs=1e-12)
        assert found.shuffled.tolist() == pytest.approx(shuffled, abs=1e-12)


def test_levels_of_aligned_and_of_random_jacobians():
    x, c = normal(400, 64), normal(400, 8, seed=1)
    aligned = jacobian_alignment(c[:, :, None] * x[:, None], x)
    torch.testing.assert_close(aligned.value, torch.ones(400).double())
    random = jacobian_alignment(normal(400, 8, 64, seed=2), x)
    # E‖Jx‖²/‖J‖² = 1/D for an isotropic J
    assert random.value.square().mean().item() == pytest.approx(1 / 64, rel=0.1)
    assert random.shuffled.square().mean().item() == pytest.approx(1 / 64, rel=0.1)
    assert aligned.shuffled.mean().item() == pytest.approx(random.value.mean().item(), rel=0.4)


def test_images_and_scale():
    x, rows = normal(5, 3, 2, 2), normal(5, 4, 12, seed=1)
    flat = x.flatten(1)
    for factor in (1e-100, 1e100):
        found = jacobian_alignment(factor * rows, 3 * x)
        torch.testing.assert_close(found, jacobian_alignment(rows, flat))
        found = centroid_alignment(factor * rows.sum(1).view(5, 3, 2, 2), x)
        torch.testing.assert_close(found, centroid_alignment(rows.sum(1), flat))


def test_degenerate_jacobians_and_inputs_read_zero():
    x, rows = normal(3, 4), normal(3, 2, 4, seed=1)
    rows[0], x[1] = 0, 0
    for found in (jacobian_alignment(rows, x), centroid_alignment(rows.sum(1), x)):
        assert found.value[:2].tolist() == [0, 0]
        assert found.shuffled[0] == 0
        assert found.value[2] != 0
    values = torch.tensor([[0.0, 0.0], [1e-300, 0.0], [1e200, 1e200]], dtype=torch.float64)
    assert rank_one_share(values).tolist() == pytest.approx([0, 1, 0.5])


def test_rank_one_share_against_numpy():
    rows = normal(5, 4, 9)
    spectrum = np.linalg.svd(rows.numpy(), compute_uv=False)
    expected = spectrum[:, 0] ** 2 / (rows.numpy() ** 2).sum((1, 2))
    shuffled = torch.linalg.svdvals(rows).flip(1)
    assert rank_one_share(shuffled).tolist() == pytest.approx(expected)


def test_squared_frobenius_norm_is_unbiased():
    encoder, x = network(outputs=5), normal(3, 6, seed=1)
    expected = jacobians(encoder, x).flatten(1).square().sum(1)
    generator = torch.Generator().manual_seed(0)
    single = torch.stack(
        [jacobian_frobenius_norm(encoder, x, generator=generator) for _ in range(1200)]
    ).square()
    error = single.std(0) / 1200**0.5
    assert ((single.mean(0) - expected).abs() < 4 * error).all()
    many = jacobian_frobenius_norm(encoder, x, num_probes=3000, generator=generator)
    torch.testing.assert_close(many, expected.sqrt(), rtol=0.03, atol=0)


@pytest.mark.parametrize(("outputs", "probes", "error"), [(1, 1, 1e-9), (3, 3000, 0.05)])
def test_gradient_of_the_norm_is_that_of_the_exact_norm(outputs, probes, error):
    encoder, x = network(outputs=outputs), normal(4, 6, seed=1)
    exact = torch.vmap(torch.func.jacrev(encoder))(x).flatten(1).norm(dim=1)
    parameters = [encoder[0].weight, encoder[0].bias, encoder[2].weight]
    expected = torch.autograd.grad(exact.mean(), parameters)
    generator = torch.Generator().manual_seed(0)
    estimate = jacobian_frobenius_norm(encoder, x, probes, generator)
    found = torch.autograd.grad(estimate.mean(), parameters)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < error * other.norm()


def test_as_a_regulariser_it_shrinks_the_jacobian_and_leaves_the_inputs_alone():
    encoder, x = network(), normal(32, 6, seed=1)
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    before = jacobians(encoder, x).flatten(1).norm(dim=1).mean()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        with torch.no_grad():  # whatever the caller has set, the norm comes with its graph
            norm = jacobian_frobenius_norm(encoder, x, generator=generator)
        norm.mean().backward()
        optimizer.step()
    assert jacobians(encoder, x).flatten(1).norm(dim=1).mean() < 0.2 * before
    assert not x.requires_grad
    assert x.grad is None


def test_zero_jacobian_has_norm_and_gradient_zero():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    norm = jacobian_frobenius_norm(layer, torch.ones(4, 3))
    assert norm.tolist() == [0] * 4
    norm.sum().backward()
    assert layer.weight.grad.tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: centroid_alignment(normal(1, 3), normal(1, 3)),
            ValueError,
            "`inputs` must have at least 2 rows, got 1",
        ),
        (
            lambda: centroid_alignment(normal(3, 3), normal(2, 3)),
            ValueError,
            r"`centroids` and `inputs` must have the same number of rows, got \(3, 3\) and \(2, 3\)",
        ),
        (
            lambda: centroid_alignment(normal(2, 3), normal(2, 4)),
            ValueError,
            "`centroids` and `inputs` must have the same last dimension",
        ),
        (
            lambda: jacobian_alignment(normal(2, 3), normal(2, 3)),
            ValueError,
            r"`jacobians` must have shape \(N, V, K\)",
        ),
        (
            lambda: jacobian_alignment(normal(2, 1, 3), normal(2, 3), normal(2, 4)),
            ValueError,
            "`inputs` and `others` must have the same last dimension",
        ),
        (
            lambda: centroid_alignment(normal(2, 3), [1.0]),
            TypeError,
            "`inputs` must be a torch.Tensor, got list",
        ),
        (
            lambda: rank_one_share(-normal(2, 3).abs()),
            ValueError,
            "`singular_values` must not be negative",
        ),
        (
            lambda: jacobian_frobenius_norm(network(), normal(2, 6), num_probes=0),
            ValueError,
            "`num_probes` must be at least 1, got 0",
        ),
        (
            lambda: jacobian_frobenius_norm(nn.Conv1d(1, 2, 1), torch.ones(2, 1, 4)),
            ValueError,
            r"`encoder` must return \(2, K\), got \(2, 2, 4\)",
        ),
        (
            lambda: jacobian_frobenius_norm(lambda x: [x], normal(2, 6)),
            ValueError,
            r"`encoder` must return \(2, K\), got list",
        ),
        (
            lambda: jacobian_frobenius_norm(lambda x: x.detach(), normal(2, 6)),
            ValueError,
            "`encoder` lets no gradient reach its input",
        ),
        (
            lambda: jacobian_frobenius_norm(lambda x: network()(x.detach()), normal(2, 6)),
            ValueError,
            "`encoder` lets no gradient reach its input",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
