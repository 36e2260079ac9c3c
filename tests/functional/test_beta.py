import pytest
import torch
from scipy import special, stats

from jepa_monitor.functional._beta import beta_tails, log_beta_binomial


@pytest.mark.parametrize("largest", [1.0, 20.0, 3000.0])
def test_tails_against_scipy(largest):
    generator = torch.Generator().manual_seed(0)
    a, b, x = torch.rand(3, 4000, generator=generator, dtype=torch.float64)
    a, b = 0.5 + largest * a, 0.5 + largest * b
    x = torch.where(torch.arange(4000) % 2 == 0, x, (a / (a + b) + 0.05 * (x - 0.5)).clamp(0, 1))
    lower, upper = beta_tails(x, 1 - x, a, b)
    expected = special.betainc(a.numpy(), b.numpy(), x.numpy())
    torch.testing.assert_close(lower, torch.from_numpy(expected), rtol=1e-9, atol=1e-300)
    expected = special.betaincc(a.numpy(), b.numpy(), x.numpy())
    torch.testing.assert_close(upper, torch.from_numpy(expected), rtol=1e-9, atol=1e-300)


def test_ends():
    ends = torch.tensor([0.0, 1.0]).double()
    a = torch.full((2,), 0.5).double()
    lower, upper = beta_tails(ends, 1 - ends, a, 3 * a)
    assert lower.tolist() == [0, 1]
    assert upper.tolist() == [1, 0]


def test_upper_tail_keeps_its_precision():
    complement = torch.tensor([1e-30]).double()
    two = torch.tensor([2.0]).double()
    _, upper = beta_tails(1 - complement, complement, two, 3 * two)
    assert upper.item() == pytest.approx(special.betainc(6, 2, 1e-30), rel=1e-12)


@pytest.mark.parametrize(("n", "a", "b"), [(1, 1, 1), (64, 3, 62), (512, 25.5, 480.0)])
def test_beta_binomial_against_scipy(n, a, b):
    expected = torch.from_numpy(stats.betabinom.pmf(range(n + 1), n, a, b))
    torch.testing.assert_close(log_beta_binomial(n, a, b).exp(), expected, rtol=1e-9, atol=1e-300)
