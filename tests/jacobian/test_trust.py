"""How far a sketch is trusted: measured on exact scores, told in tags and words, acted on by `auto`."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Hidden, images, mlp
from scipy import stats
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions, jepa_score, log_density
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian.sketch import row_count
from jepa_monitor.jacobian.spectra import Spectra
from jepa_monitor.jacobian.trust import settle, sketch_agreement


def test_agreement_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = 10 * torch.randn(12, generator=generator, dtype=torch.float64)
    sketched = exact / 4 + torch.randn(12, generator=generator, dtype=torch.float64) + 3
    found = sketch_agreement(sketched, exact, 16, 64)
    expected = stats.pearsonr(sketched, exact)
    interval = expected.confidence_interval(0.95)
    assert found.correlation == pytest.approx(expected.statistic)
    assert (found.lower, found.upper) == pytest.approx((interval.low, interval.high), abs=1e-4)
    assert found.error == pytest.approx((exact - 4 * sketched).std().item())
    assert found.spread == pytest.approx(exact.std().item())
    assert (found.images, found.rows) == (12, 16)
    assert str(found).startswith(f"sketches of 16 rows correlate {expected.statistic:.2f} (")


def test_scores_that_do_not_vary_have_no_order_to_keep() -> None:
    found = sketch_agreement(torch.arange(5.0), torch.full((5,), 3.0), 16, 64)
    assert math.isnan(found.correlation)
    assert found.spread == 0


def _spectra(correlations: dict[int, float], exact: Tensor) -> tuple[object, list[tuple]]:
    """Give spectra whose sketched scores follow the exact ones as well as asked for, by rows."""
    asked: list[tuple] = []
    noise = torch.randn(len(exact), generator=torch.Generator().manual_seed(3)).double()
    noise -= noise.mean() + exact * (noise @ exact) / (exact @ exact)
    noise *= exact.std() / noise.std()

    def take(part: Tensor, options: ScoreOptions) -> Spectra:
        which = part[:, 0].long()
        rows = None if options.method == "exact" else options.rows or 16
        asked.append((len(part), rows))
        r = correlations.get(rows or 0, 1.0)
        scores = exact[which] if rows is None else r * exact + (1 - r**2) ** 0.5 * noise
        scores = scores if rows is None else scores[which]
        basis = None if rows is None else torch.zeros(rows, 128, dtype=torch.float64)
        zero = torch.zeros(len(part))
        return Spectra(zero[:, None], scores.exp()[:, None], zero, zero.long(), basis)

    return take, asked


@pytest.mark.parametrize(
    ("correlations", "method", "rows", "asked"),
    [
        ({16: 0.97}, "auto", None, [(8, 16), (8, None)]),
        # Few images, then more, then twice the rows; exact scores are taken once.
        ({16: 0.3, 32: 0.98}, "auto", 32, [(8, 16), (8, None), (16, 16), (8, None), (16, 32)]),
        ({16: 0.3}, "sketch", None, [(8, 16), (8, None)]),
    ],
)
def test_rows_are_added_until_scores_agree(
    correlations: dict[int, float], method: str, rows: int | None, asked: list[tuple]
) -> None:
    exact = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
    exact -= exact.mean()
    take, seen = _spectra(correlations, exact)
    index = torch.arange(16.0)[:, None]
    options, agreement = settle(ScoreOptions(method), index, take)
    assert (options.method, options.rows) == (method, rows)
    assert seen == asked
    assert agreement is not None
    assert (agreement.correlation > 0.9) == (method == "auto")


def test_where_no_half_of_the_rows_will_do_all_are_taken() -> None:
    exact = torch.randn(16, generator=torch.Generator().manual_seed(1)).double()
    exact -= exact.mean()
    take, seen = _spectra({16: 0.1, 32: 0.2, 64: 0.3}, exact)
    options, agreement = settle(ScoreOptions("auto"), torch.arange(16.0)[:, None], take)
    assert (options.method, options.rows) == ("exact", None)
    assert [rows for _, rows in seen if rows] == [16, 16, 32, 64]
    assert agreement is not None
    assert agreement.rows == 64


def test_a_monitor_tells_and_takes_all_rows_where_a_sketch_is_blind() -> None:
    data, reference = images(20), images(200, 2)
    sketch = ScoreOptions("sketch", rows=16)
    blind = DensityMonitor(data, reference=reference, max_probe_samples=20, options=sketch)
    report = blind.evaluate(Hidden())
    scores = {
        rows: jepa_score(Hidden(), data[:8], method=method, rows=rows, reference=law)
        for method, rows, law in (("exact", None, None), ("sketch", 16, report.law))
    }
    truth = stats.pearsonr(scores[16], scores[None]).statistic
    assert truth < 0.9
    assert report.scalars["sketch/correlation"] == pytest.approx(truth, abs=1e-3)
    assert report.scalars["sketch/spread"] == pytest.approx(scores[None].std().item(), rel=1e-3)
    assert report.scalars["sketch/rows"] == report.scalars["jepa_score/terms"] == 16
    assert f"correlate {truth:.2f}" in report.method
    monitor = DensityMonitor(data, reference=reference, max_probe_samples=20)
    looks = [monitor.evaluate(Hidden()) for _ in range(2)]
    assert looks[0].method.startswith("exact, 48 rows; sketches of ")
    assert looks[0].scalars["sketch/correlation"] < 0.9
    assert looks[1].method == "exact, 48 rows"  # it stays with all rows: curves do not jump
    exact = jepa_score(Hidden(), data)
    for look in looks:
        torch.testing.assert_close(look.probe.scores, exact, rtol=0, atol=1e-3)
        assert look.scalars["jepa_score/terms"] == 48


def test_exact_scores_have_no_agreement() -> None:
    report = DensityMonitor(images(20)).evaluate(mlp(192, 20))
    assert not [tag for tag in report.scalars if tag.startswith("sketch/")]


@pytest.mark.parametrize("call", [jepa_score, log_density])
def test_more_numbers_than_inputs_are_scored_exactly(call: object) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 64))
    x, reference = torch.randn(20, 16), torch.randn(512, 16)
    settings = {"reference": reference}
    with pytest.raises(ValueError, match=r"`method` must be 'exact'.*\(64\).*\(16\), got 'sketch'"):
        call(encoder, x, **settings, method="sketch", rows=16)
    auto = call(encoder, x, **settings, method="auto")
    exact = call(encoder, x, **settings, method="exact")
    for found, expected in zip(auto, exact, strict=True):
        assert found is expected is None or torch.equal(found, expected)  # no `fibre`
    law = Gaussian.fit(encoder(reference).detach())
    assert row_count(ScoreOptions("auto"), 64, 64, whitened=True) == 16
    assert row_count(ScoreOptions("auto"), 64, 63, whitened=True) is None
    assert row_count(ScoreOptions("sketch"), 64, 16, whitened=False) == 16
    with pytest.raises(ValueError, match="whitening turns their order around"):
        jepa_score(encoder, x, method="sketch", reference=law)


def test_the_plan_counts_the_check() -> None:
    counted: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(192, 40)

        def forward(self, batch: Tensor) -> Tensor:
            found = self.net(batch)
            if found.requires_grad:
                found.register_hook(lambda gradient: counted.append(len(gradient)))
            return found

    sketch = ScoreOptions("sketch", rows=20)
    watched = DensityMonitor(
        images(20, 3), reference=images(30, 4), max_probe_samples=10, options=sketch
    )
    plan = watched.plan(Counting())
    assert "with 20 backward passes each, and 320 to check the sketch, 880 in all." in plan
    counted.clear()
    watched.evaluate(Counting())
    assert sum(counted) == 880 + 10  # and two for each of five sets: do images mix?
