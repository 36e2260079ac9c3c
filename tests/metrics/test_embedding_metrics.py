import pytest
import torch
from torchmetrics import MetricCollection

from jepa_monitor import functional
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.metrics import (
    Alignment,
    AlphaReQ,
    CollapseLevel,
    DensityCalibration,
    EffectiveRank,
    Gaussianity,
    LiDAR,
    OODDetection,
    OutlierFraction,
    ParticipationRatio,
    RankMe,
    Uniformity,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stream(metric, z, size=100):
    for batch in z.split(size):
        metric.update(batch)
    return metric.compute().item()


@pytest.mark.parametrize(
    ("log_condition", "error"), [(2, 1e-12), (6, 1e-12), (8, 1e-5), (12, 1e-5)]
)
def test_rankme_from_the_gram_matrix_against_svd(log_condition, error):
    z = normal(1000, 128) * torch.logspace(0, -log_condition, 128)
    expected = functional.rankme(z).item()
    assert stream(RankMe(128), z) == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("rank", [1, 10, 64])
def test_rankme_of_rank_deficient_float32(rank):
    z = (normal(1000, rank) @ normal(rank, 128, seed=1)).float()
    assert stream(RankMe(128), z) == pytest.approx(functional.rankme(z).item(), rel=1e-5)


def test_rankme_of_fewer_samples_than_dimensions():
    z = normal(10, 64)
    assert stream(RankMe(64), z) == pytest.approx(functional.rankme(z).item(), rel=1e-9)


@pytest.mark.parametrize(("mean", "error"), [(1.0, 1e-12), (1e4, 1e-8), (1e6, 1e-4)])
def test_a_large_mean_costs_digits(mean, error):
    z = normal(1000, 32) + mean
    expected = functional.effective_rank(z).item()
    assert stream(EffectiveRank(32), z) == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.1])
def test_constant_embeddings_are_never_healthy(dtype, value):
    z = torch.full((300, 16), value, dtype=dtype)
    for metric in (EffectiveRank(16), ParticipationRatio(16)):
        assert stream(metric, z, 7) == 0
    assert stream(RankMe(16), z, 7) == pytest.approx(float(value != 0), abs=1e-4)
    assert stream(CollapseLevel(16), z, 7) == pytest.approx(1, abs=1e-6)
    assert stream(Uniformity(16), z, 7) == pytest.approx(0, abs=1e-9)
    assert stream(LiDAR(16, 3), z.view(100, 3, 16), 7) == 0
    assert stream(LiDAR(16, 3, correct_noise=False), z.view(100, 3, 16), 7) == 0
    alpha = AlphaReQ(16, fit_ranks=(2, 12))
    alpha.update(z)
    assert alpha.compute()["alpha"] == float("inf")
    gaussianity = Gaussianity(16)
    gaussianity.update(z)
    assert gaussianity.compute()["z_score"] > 10


def test_the_coarsest_dtype_decides_what_is_constant():
    metric = EffectiveRank(8)
    for dtype in (torch.float64, torch.float16, torch.float32, torch.float16):
        metric(1 + 1e-4 * normal(50, 8).to(dtype))
    assert metric.resolution == torch.finfo(torch.float16).eps
    assert metric.compute() == 0


def test_moment_metrics_share_one_state_in_a_collection():
    collection = MetricCollection([RankMe(8), EffectiveRank(8), ParticipationRatio(8)])
    for batch in normal(100, 8).split(25):
        collection.update(batch)
    collection.compute()
    assert len(collection.compute_groups) == 1


def test_errors():
    with pytest.raises(ValueError, match="`num_features` must be at least 1, got 0"):
        RankMe(0)
    with pytest.raises(ValueError, match=r"`embeddings` must have shape \(B, 8\), got \(5, 4\)\."):
        RankMe(8).update(normal(5, 4))
    with pytest.raises(ValueError, match=r"`eps` must lie in \[0, 1\]"):
        RankMe(8, eps=2)
    with pytest.raises(ValueError, match="`num_views` must be at least 2, got 1"):
        LiDAR(8, num_views=1)
    with pytest.raises(ValueError, match=r"shape \(B, 4, 8\), got \(5, 3, 8\)\."):
        LiDAR(8, num_views=4).update(normal(5, 3, 8))
    with pytest.raises(ValueError, match="`num_features` 8, got 4"):
        Gaussianity(8, gaussian=Gaussian.fit(normal(50, 4)))
    with pytest.raises(TypeError, match=r"`reference` must be embeddings .* got Gaussian"):
        DensityCalibration(Gaussian.fit(normal(50, 4)))
    with pytest.raises(ValueError, match="`reference` must have"):
        DensityCalibration(normal(3, 4))
    with pytest.raises(ValueError, match=r"`t` must lie in \(0, inf\)"):
        Uniformity(8, t=-1)
    with pytest.raises(ValueError, match=r"`exponent` must lie in \(0, inf\)"):
        Alignment(exponent=0)
    with pytest.raises(ValueError, match=r"`confidence` must lie in \(0, 1\)"):
        OutlierFraction(normal(99), confidence=2)
    with pytest.raises(ValueError, match="`scores` and `in_distribution` must have the same shape"):
        OODDetection().update(normal(3), torch.ones(4))
    with pytest.raises(ValueError, match="`in_distribution` must hold 0 and 1 only"):
        OODDetection().update(normal(3), torch.tensor([0, 1, 2]))
    metric = EffectiveRank(8)
    metric.update(normal(1, 8))
    with pytest.raises(RuntimeError, match="`EffectiveRank` needs at least 2 samples to compute"):
        metric.compute()
    metric = OODDetection()
    metric.update(normal(3), torch.ones(3))
    with pytest.raises(RuntimeError, match="both kinds to compute, got 3 in-distribution and 0"):
        metric.compute()
