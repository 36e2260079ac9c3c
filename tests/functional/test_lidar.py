import numpy as np
import pytest
import torch
from scipy import linalg

from jepa_monitor.functional import lidar
from jepa_monitor.functional.lidar import _largest_noise_root


def views(n, q, k, rank, seed=0, scale=1.0):
    """Unit within-sample noise and a signal of unit variance in the first ``rank`` directions."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 1, k, generator=generator)
    signal[..., rank:] = 0
    return scale * signal + torch.randn(n, q, k, generator=generator)


def literal(z, delta=1e-4, eps=1e-8):
    """The formula of the paper, by a generalised eigenproblem."""
    z = z.double().numpy()
    n, q, k = z.shape
    means = z.mean(axis=1)
    residuals = (z - means[:, None]).reshape(-1, k)
    within = residuals.T @ residuals / (n * (q - 1)) + delta * np.eye(k)
    values = linalg.eigh(np.cov(means.T), within, eigvals_only=True).clip(0) + eps
    p = values / values.sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(40, 3, 5), (20, 4, 30), (100, 10, 128)])
def test_literal_formula(shape):
    z = views(*shape, rank=3)
    value = lidar(z, correct_noise=False).item()
    assert value == pytest.approx(literal(z), rel=1e-9)


@pytest.mark.parametrize(("n", "q"), [(100, 10), (1000, 50)])
def test_noise_correction_finds_the_rank_of_the_signal(n, q):
    assert lidar(views(n, q, 128, rank=0)) == 0
    assert lidar(views(n, q, 128, rank=1)).item() == pytest.approx(1)
    assert lidar(views(n, q, 128, rank=10)).item() == pytest.approx(10, rel=0.1)
    literal_value = lidar(views(n, q, 128, rank=0), correct_noise=False)
    assert literal_value > 60  # the false healthy reading that the correction removes


def test_corrected_formula():
    z = views(400, 2, 4, rank=3) * torch.tensor([3.0, 1.0, 1.0, 1.0])
    z[:, :, 0] += 3 * z[:, :1, 0]
    x = z.double().numpy()
    means = x.mean(axis=1)
    within = np.diff(x, axis=1)[:, 0] / 2**0.5
    within = within.T @ within / 400 + 1e-4 * np.eye(4)
    values = linalg.eigh(np.cov(means.T), within, eigvals_only=True)
    assert values[0] < 0.7
    assert values[1] > 1  # one direction of noise at about 1/q, three of signal
    p = (values[1:] - 0.5) / (values[1:] - 0.5).sum()
    assert lidar(z).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_full_rank_signal_stays_high():
    assert lidar(views(1000, 50, 128, rank=128)) > 115


@pytest.mark.parametrize(("n", "q", "k"), [(100, 10, 64), (50, 4, 4), (30, 3, 16)])
def test_noise_alone_passes_in_one_percent(n, q, k):
    alarms = sum(bool(lidar(views(n, q, k, rank=0, seed=seed)) > 0) for seed in range(300))
    assert alarms <= 10  # 3 expected; P(more than 10) is under 1e-3


def test_tracy_widom_quantile_by_simulation():
    generator = torch.Generator().manual_seed(0)

    def wishart(freedom):
        x = torch.randn(freedom, 8, generator=generator, dtype=torch.float64)
        return (x.T @ x / freedom).numpy()

    largest = [linalg.eigvalsh(wishart(40), wishart(120))[-1] for _ in range(1000)]
    assert _largest_noise_root(8, 120, 40) == pytest.approx(np.quantile(largest, 0.99), rel=0.05)


@pytest.mark.parametrize("correct_noise", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_constant_embeddings_are_never_healthy(correct_noise, value, dtype):
    assert lidar(torch.full((50, 4, 16), value, dtype=dtype), correct_noise=correct_noise) == 0


def test_embeddings_that_shrink_to_nothing():
    assert lidar(1e-6 * views(100, 4, 16, rank=16, scale=3.0)) == 0


def test_identical_views():
    z = views(200, 1, 8, rank=8).expand(-1, 3, -1)
    assert lidar(z) > 7


def test_errors():
    with pytest.raises(ValueError, match=r"must have n·\(q - 1\) > K to know the noise, got 10"):
        lidar(views(10, 2, 16, rank=2))
    assert lidar(views(10, 2, 16, rank=2), correct_noise=False) > 0
    with pytest.raises(ValueError, match=r"shape \(N, V, K\) with V ≥ 2"):
        lidar(torch.ones(10, 1, 4))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        lidar(torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"`delta` must lie in \(0, inf\)"):
        lidar(views(10, 4, 4, rank=2), delta=0)
    with pytest.raises(ValueError, match="`eps` must lie in"):
        lidar(views(10, 4, 4, rank=2), eps=-1)
