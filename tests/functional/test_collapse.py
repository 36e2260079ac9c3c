import numpy as np
import pytest
import torch

from jepa_monitor.functional import (
    alpha_req,
    collapse_level,
    effective_rank,
    isotropic_baseline,
    normalized_std,
    participation_ratio,
    rankme,
    stable_rank,
)

CENTRED = [effective_rank, participation_ratio, stable_rank]


def normal(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def with_spectrum(eigenvalues):
    """2K points of mean 0 whose covariance is diagonal with exactly these eigenvalues."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    k = len(values)
    z = torch.diag((values * (2 * k - 1) / 2).sqrt())
    return torch.cat([z, -z])


def entropy_rank(p):
    p = np.asarray(p, dtype=float) / np.sum(p)
    return np.exp(-np.sum(p * np.log(p)))


EIGENVALUES = [4.0, 2.0, 1.0, 0.5]


def test_closed_forms_on_a_known_spectrum():
    z = with_spectrum(EIGENVALUES)
    assert effective_rank(z).item() == pytest.approx(entropy_rank(EIGENVALUES))
    assert rankme(z, eps=0).item() == pytest.approx(entropy_rank(np.sqrt(EIGENVALUES)))
    assert participation_ratio(z).item() == pytest.approx(7.5**2 / 21.25)
    assert stable_rank(z).item() == pytest.approx(7.5 / 4)
    assert stable_rank(z, centred=False).item() == pytest.approx(7.5 / 4)


@pytest.mark.parametrize(("n", "k"), [(40, 7), (7, 40), (2, 5)])
def test_against_numpy_svd(n, k):
    z = normal(n, k) + 2
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(z).item() == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-12)
    eigenvalues = np.linalg.svd(z.numpy() - z.numpy().mean(0), compute_uv=False) ** 2
    eigenvalues = eigenvalues[: min(n - 1, k)]
    assert effective_rank(z).item() == pytest.approx(entropy_rank(eigenvalues), rel=1e-9)
    ratio = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(z).item() == pytest.approx(ratio)


def test_a_mean_moves_the_uncentred_metrics_only():
    z = normal(500, 32)
    for metric in CENTRED:
        torch.testing.assert_close(metric(z + 50), metric(z))
    assert rankme(z + 50) < 5 < rankme(z)
    assert stable_rank(z + 50, centred=False) < 1.1


@pytest.mark.parametrize(("eps", "width", "value"), [(1e-5, 512, 1.061), (1e-5, 768, 1.092)])
def test_the_floor_that_eps_gives_to_rank_one(eps, width, value):
    z = torch.ones(width, 1) * torch.ones(1, width)
    assert rankme(z, eps).item() == pytest.approx(value, abs=1e-3)
    assert rankme(z).item() < 1.004


# N, K, then RankMe, effective rank, participation ratio and NESum of simulated N(0, I).
TABLE = [
    (128, 128, 103, 78, 64, 33),
    (256, 128, 119, 100, 86, 46),
    (512, 128, 124, 113, 102, 58),
    (2048, 128, 127, 124, 120, 84),
    (512, 512, 413, 311, 257, 128),
    (1024, 512, 474, 398, 341, 180),
    (2048, 512, 495, 451, 409, 226),
    (8192, 512, 508, 496, 482, 325),
]


@pytest.mark.parametrize("row", TABLE)
def test_isotropic_baseline_against_the_simulated_table(row):
    n, k, rank, erank, ratio, nesum = row
    baseline = isotropic_baseline(n, k)
    assert baseline.rankme == pytest.approx(rank, abs=1)
    assert baseline.effective_rank == pytest.approx(erank, abs=1)
    assert baseline.participation_ratio == pytest.approx(ratio, abs=1)
    assert baseline.stable_rank == pytest.approx(nesum, rel=0.05)


@pytest.mark.parametrize("row", TABLE[:5])
def test_metrics_on_isotropic_embeddings(row):
    n, k, rank, erank, ratio, nesum = row
    z = normal(n, k)
    assert rankme(z).item() == pytest.approx(rank, rel=0.01)
    assert effective_rank(z).item() == pytest.approx(erank, rel=0.02)
    assert participation_ratio(z).item() == pytest.approx(ratio, rel=0.02)
    assert stable_rank(z).item() == pytest.approx(nesum, rel=0.08)


@pytest.mark.parametrize(("n", "k"), [(50, 200), (200, 50), (64, 64)])
def test_baseline_is_what_a_simulation_reads(n, k):
    z = [normal(n, k, seed) for seed in range(10)]
    baseline = isotropic_baseline(n, k)
    assert np.mean([rankme(x) for x in z]) == pytest.approx(baseline.rankme, rel=0.01)
    assert np.mean([effective_rank(x) for x in z]) == pytest.approx(
        baseline.effective_rank, rel=0.03
    )
    corrected = np.mean([participation_ratio(x, bias_corrected=True) for x in z])
    assert corrected == pytest.approx(k, rel=0.04)


@pytest.mark.parametrize("z", [normal(2, 9), torch.eye(2), torch.ones(2, 3)])
def test_two_embeddings_cannot_be_corrected_for_their_number(z):
    with pytest.raises(ValueError, match=r"`embeddings` must have at least 3 rows, got 2\."):
        participation_ratio(z, bias_corrected=True)
    assert participation_ratio(z) <= 1 + 1e-12


def test_correction_of_three_embeddings_by_hand():
    z = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0]]).double()  # eigenvalues 9 and 1/3
    ratio = (9 + 1 / 3) ** 2 / (81 + 1 / 9)
    assert participation_ratio(z).item() == pytest.approx(ratio)
    corrected = participation_ratio(z, bias_corrected=True).item()
    assert corrected == pytest.approx(1 / (1 / ratio - 1 / 2))


def test_baseline_checks_its_arguments():
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        isotropic_baseline(0, 3)
    with pytest.raises(TypeError, match="`k` must be an integer"):
        isotropic_baseline(3, 3.0)


def test_alpha_of_an_exact_power_law():
    for alpha in (0.5, 1.0, 2.0):
        fit = alpha_req(with_spectrum(torch.arange(1, 121).double() ** -alpha))
        assert fit.alpha.item() == pytest.approx(alpha)
        assert fit.r2.item() == pytest.approx(1)


def test_alpha_against_numpy_weighted_fit():
    z = normal(300, 130) * torch.arange(1, 131) ** -0.4
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(z.numpy().T)))[::-1][10:100]
    x, y = np.log(np.arange(11, 101)), np.log(eigenvalues)
    slope, intercept = np.polyfit(x, y, 1, w=np.arange(11, 101) ** -0.5)
    residual = y - slope * x - intercept
    fit = alpha_req(z)
    assert fit.alpha.item() == pytest.approx(-slope)
    assert fit.r2.item() == pytest.approx(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())


def test_alpha_of_collapsed_embeddings_is_infinite():
    low_rank = normal(400, 20) @ normal(20, 128, seed=1)
    for z in (low_rank, torch.ones(400, 128)):
        fit = alpha_req(z)
        assert fit.alpha.item() == float("inf")
        assert fit.r2.item() == 0


def test_alpha_tolerates_a_few_missing_directions():
    z = normal(4000, 110)
    z[:, :2] = 0  # what a LayerNorm takes away
    assert 0 < alpha_req(z).alpha < 0.6


@pytest.mark.parametrize(("positive", "fits"), [(7, True), (6, True), (5, False)])
def test_alpha_needs_half_of_its_window_and_five_of_it(positive, fits):
    eigenvalues = torch.arange(1, 13).double() ** -1.0
    eigenvalues[positive:] = 0
    fit = alpha_req(with_spectrum(eigenvalues), (2, 11))  # ten ranks
    assert (fit.alpha.item() == pytest.approx(1)) == fits
    assert (fit.alpha.item() == float("inf")) != fits


def test_alpha_needs_a_window():
    with pytest.raises(ValueError, match=r"`fit_ranks` \(11, 100\) must hold at least 5 of the 9"):
        alpha_req(normal(10, 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.1])
def test_constant_embeddings_are_never_healthy(dtype, value):
    z = torch.full((64, 16), value, dtype=dtype)
    for metric in CENTRED:
        assert metric(z) == 0
    assert participation_ratio(z, bias_corrected=True) == 0
    assert rankme(z) == pytest.approx(float(value != 0), abs=1e-4)
    assert normalized_std(z) == pytest.approx(0, abs=1e-12)
    assert collapse_level(z) == pytest.approx(1)


def test_constant_up_to_rounding_is_constant():
    z = 7 + 1e-7 * normal(64, 16)
    for metric in CENTRED:
        assert metric(z.float()) == 0
        assert metric(z) > 1  # in float64 the spread is real


def test_dimensional_collapse_shows_in_the_ranks():
    z = normal(500, 3) @ normal(3, 64, seed=1)
    assert participation_ratio(z) < 3
    assert effective_rank(z.float()) < 3
    assert rankme(z.float()) < 3.01
    assert normalized_std(z) > 0.7  # blind to it, as documented


def test_normalized_std_of_known_clouds():
    assert normalized_std(normal(4000, 128)).item() == pytest.approx(1, abs=0.01)
    direction = torch.nn.functional.normalize(normal(1, 128), dim=1)
    line = normal(4000, 1, seed=1) * direction
    expected = 128**0.5 * direction.abs().mean().item()
    assert normalized_std(line).item() == pytest.approx(expected, rel=0.01)
    unit = torch.nn.functional.normalize(normal(30, 8) + 1, dim=1).numpy()
    value = unit.std(axis=0, ddof=1).mean() * 8**0.5
    assert normalized_std(torch.from_numpy(unit) * 3).item() == pytest.approx(value)


@pytest.mark.parametrize("metric", [*CENTRED, normalized_std, collapse_level, alpha_req])
def test_one_row_has_no_spread(metric):
    with pytest.raises(ValueError, match=r"`embeddings` must have at least 2 rows, got 1\."):
        metric(torch.ones(1, 20))


@pytest.mark.parametrize("metric", [rankme, *CENTRED, normalized_std, collapse_level])
def test_returns_float64_scalars_and_rejects_nan(metric):
    value = metric(normal(20, 5).half())
    assert value.dtype == torch.float64
    assert value.shape == ()
    with pytest.raises(ValueError, match="1 non-finite rows of 2"):
        metric(torch.tensor([[1.0], [float("nan")]]))


def test_one_row_of_rankme():
    assert rankme(normal(1, 20)).item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"`eps` must lie in \[0, 1\], got -1"):
        rankme(normal(2, 2), eps=-1)
