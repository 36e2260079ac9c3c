import pytest
import torch

from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.metrics import Gaussianity


@pytest.mark.parametrize(("n", "m", "k"), [(500, 500, 16), (300, 900, 32), (1000, 250, 16)])
def test_a_law_that_was_fitted_to_few_embeddings_reads_zero_for_normal_ones(n, m, k):
    scores, small = [], 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n + m, k, generator=generator, dtype=torch.float64)
        z = z * torch.logspace(0, -2, k, dtype=torch.float64) + 3
        metric = Gaussianity(k, 64, gaussian=Gaussian.fit(z[:m], shrinkage=0.0))
        metric.update(z[m:])
        found = metric.compute()
        scores.append(found["z_score"])
        small += bool(found["max_p_value"] < 0.05)
    mean, sd = torch.stack(scores).mean(), torch.stack(scores).std()
    assert abs(mean) < 0.7
    assert sd < 1.6
    assert small <= 7


def test_other_laws_are_still_seen():
    z = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).exp()
    metric = Gaussianity(8, gaussian=Gaussian.fit(z[:500], shrinkage=0.0))
    metric.update(z[500:])
    assert metric.compute()["z_score"] > 10


def test_too_few_embeddings_behind_the_law():
    law = Gaussian.fit(torch.randn(10, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"`gaussian` must be fitted to more than 10 .* got 10"):
        Gaussianity(8, gaussian=law)


def test_a_shrunk_law_is_refused_for_it_moves_the_null():
    """Of normal embeddings it would read tens: measured with the check aside."""
    k, m, n = 16, 500, 500
    z = torch.randn(n + m, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z * torch.logspace(0, -2, k, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`gaussian` must be a law without shrinkage"):
        Gaussianity(k, gaussian=Gaussian.fit(z[:m], shrinkage=0.1))
    with pytest.raises(ValueError, match=r"got one of "):
        Gaussianity(k, gaussian=Gaussian.fit(z[:m]))
    shrunk, plain = Gaussian.fit(z[:m], shrinkage=0.1), Gaussian.fit(z[:m], shrinkage=0.0)
    scores = {}
    for name, law in (("shrunk", shrunk), ("plain", plain)):
        metric = Gaussianity(k, 64, gaussian=plain)
        metric.gaussian = law
        metric.update(z[m:])
        scores[name] = abs(metric.compute()["z_score"].item())
    assert scores["plain"] < 4
    assert scores["shrunk"] > 10
