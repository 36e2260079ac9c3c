"""Calibration against a law of hardly more embeddings than dimensions, as the callback has it."""

import pytest
import torch
from scipy import stats

from jepa_monitor.functional.calibration import hdr_pit
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.insights.law import law_scalars
from jepa_monitor.metrics import DensityCalibration


def drawn(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return z * torch.logspace(0, -2, width, dtype=torch.float64) + 3


@pytest.mark.parametrize(
    ("width", "reference", "probe"), [(60, 64, 40), (24, 60, 200), (80, 40, 30)]
)
def test_normal_embeddings_read_as_calibrated_however_few_the_law_is_of(width, reference, probe):
    values = []
    for seed in range(60):
        z = drawn(reference + probe, width, seed)
        metric = DensityCalibration(z[:reference])
        metric.update(z[reference:])
        values.append(metric.compute())
    p_values = torch.stack([value["ks_p_value"] for value in values]).numpy()
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    gaps = torch.stack([value["coverage_gap"] for value in values])
    # Of uniform levels the gap is ½ less their mean.
    assert abs(gaps.mean()) < 4 * (1 / 12 / probe / 60) ** 0.5
    # The chi-squared law of the distances, which takes the fitted law for the true one, fails.
    if reference > width + 2:
        law = Gaussian.fit(z[:reference], shrinkage=0.0)
        assert stats.kstest(hdr_pit(z[reference:], law).numpy(), "uniform").pvalue < 1e-6


def test_other_laws_are_seen():
    z = drawn(160, 24, 0)
    for probe in (
        1.5 * (z[60:] - 3) + 3,
        torch.distributions.StudentT(3).sample((100, 24)) * z.std(0) + 3,
    ):
        metric = DensityCalibration(z[:60])
        metric.update(probe.double())
        assert metric.compute()["ks_p_value"] < 1e-3


def test_the_order_of_the_embeddings_and_of_batches_does_not_matter():
    z = drawn(160, 24, 0)
    values = []
    for order in (torch.arange(60, 160), torch.arange(159, 59, -1)):
        metric = DensityCalibration(z[:60])
        for batch in z[order].split(33):
            metric.update(batch)
        values.append({name: value.item() for name, value in metric.compute().items()})
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_it_reads_what_the_callback_logs():
    # Another order judges each embedding by others: both are draws of one law.
    differences = []
    for seed in range(30):
        z = drawn(140, 24, seed)
        metric = DensityCalibration(z[:60])
        metric.update(z[60:])
        logged = law_scalars(z[60:], z[:60])
        differences.append(
            metric.compute()["calibration_error"].item() - logged["density/calibration_error"]
        )
    mean, sd = torch.tensor(differences).mean(), torch.tensor(differences).std()
    assert abs(mean) < 3 * sd / 30**0.5
    assert sd < 0.31 / 80**0.5
