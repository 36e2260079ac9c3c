"""Lanczos quadrature: against dense logarithms of matrices, and against what a monitor must not disturb."""

from __future__ import annotations

import copy
import dataclasses
import math
import pathlib

import pytest
import torch
from helpers import (
    Tiny,
    float64_score,
    images,
    in_two_processes,
    interpreter_settings,
    loader,
    trainer,
)
from rough_encoders import WIDTH, jacobians, rough
from torch import Tensor, nn

from jepa_monitor import (
    DensityMonitor,
    JepaScoreCallback,
    ScoreOptions,
    jacobian_spectrum,
    jepa_score,
    log_density,
)
from jepa_monitor.encoders import Embedder
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.jacobian import estimate_scores, leverage_map
from jepa_monitor.jacobian.deep import estimates
from jepa_monitor.jacobian.estimate import estimate_errors
from jepa_monitor.jacobian.lanczos import balanced_starts, krylov_basis
from jepa_monitor.jacobian.prepared import fit_reference
from jepa_monitor.jacobian.response import RespondingLaw
from jepa_monitor.metrics import JepaScore


def log_of(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.log()) @ vectors.mT


@pytest.mark.parametrize(("count", "width"), [(1, 7), (6, 192), (7, 64), (8, 8), (7, 7), (5, 6)])
def test_starts_are_orthonormal_and_balanced(count: int, width: int) -> None:
    starts = balanced_starts(count, width, 3)
    torch.testing.assert_close(starts @ starts.mT, torch.eye(count).double(), rtol=0, atol=1e-12)
    shares = starts.square().sum(0)
    torch.testing.assert_close(shares, torch.full_like(shares, count / width), rtol=0, atol=1e-12)
    assert not torch.equal(starts.abs(), balanced_starts(count, width, 4).abs()) or count == 1


@pytest.mark.parametrize("whitened", [False, True])
def test_converged_quadrature_is_the_logarithm_of_the_matrix(whitened: bool) -> None:
    """All K rows from two starts: uᵀ log(A) u of a dense eigendecomposition, in the coordinates used."""
    encoder, data = rough().double(), images(3).double()
    law = Gaussian.fit(encoder(images(300, 5).double()).detach()) if whitened else None
    options = ScoreOptions("lanczos", rows=WIDTH, steps=WIDTH // 2, seed=2)
    # One row fewer than all, or the exact score would be taken: a wider encoder has the same rows.
    found = estimates(Embedder(encoder), data, dataclasses.replace(options, rows=38, steps=19), law)
    basis = krylov_basis(2, 19, WIDTH, 192, law, 2)
    weights = torch.eye(WIDTH).double() if basis.weights is None else basis.weights
    assert torch.linalg.det(weights).abs().item() == pytest.approx(1)
    rows = weights @ jacobians(encoder, data)
    for i, one in enumerate(rows):
        dense = WIDTH / 2 * (basis.starts @ log_of(one @ one.mT) @ basis.starts.mT).diagonal()
        torch.testing.assert_close(found.samples[i, :, 0], dense, rtol=0, atol=0.5)
    assert estimates(Embedder(encoder), data, options, law) is None


@pytest.mark.parametrize(("rows", "steps"), [(5, 5), (10, 5), (24, 6)])
def test_quadrature_of_few_eigenvalues_is_exact(rows: int, steps: int) -> None:
    """Of four distinct singular values four steps see all, and the next changes nothing, whatever the start."""
    left, right = (torch.linalg.qr(torch.randn(n, n).double()).Q for n in (WIDTH, 192))
    values = torch.tensor([3.0, 1.0, 0.2, 0.01]).double().repeat(WIDTH // 4)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, WIDTH, bias=False)).double()
    encoder[1].weight.data = left @ (values[:, None] * right[:WIDTH])
    found = estimates(
        Embedder(encoder), images(2).double(), ScoreOptions("lanczos", rows=rows, steps=steps)
    )
    starts = balanced_starts(rows // steps, WIDTH, 0)
    matrix = encoder[1].weight.data @ encoder[1].weight.data.mT
    dense = WIDTH / 2 * (starts @ log_of(matrix) @ starts.mT).diagonal()
    for sample in found.samples:
        torch.testing.assert_close(sample[:, 0], dense, rtol=0, atol=1e-6)
        torch.testing.assert_close(sample[:, 1], torch.zeros_like(dense), rtol=0, atol=1e-6)


def test_where_the_coordinates_are_right_the_estimate_is_exact() -> None:
    """Starts measure a diagonal matrix without error: of a linear encoder, whitened by its response."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, WIDTH)).double()
    weight = encoder[1].weight.data
    response = Gaussian(torch.zeros(WIDTH).double(), weight @ weight.mT, 500, 0.0)
    law = RespondingLaw(*(getattr(response, n) for n in ("mean", "covariance", "count", "shrinkage")),
                        response=response)  # fmt: skip
    options = ScoreOptions("lanczos", rows=4, steps=1)
    found = estimates(Embedder(encoder), images(3).double(), options, law)
    exact = torch.linalg.svdvals(weight).log().sum()
    torch.testing.assert_close(found.scores(1e-6), exact.expand(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("inputs", [12, 192])
def test_estimates_approach_exact_scores(inputs: int) -> None:
    """Also of more embeddings than inputs (12), where the Krylov space is one of inputs."""
    encoder, data = rough(inputs=inputs), images(8).flatten(1)[:, :inputs]
    exact = float64_score(encoder, data)
    rank = min(WIDTH, inputs)
    off = []
    for steps in (1, 2, rank // 2 - 1):
        found = jepa_score(encoder, data, method="lanczos", rows=2 * steps, steps=steps)
        off.append((found - exact).abs().mean())
    assert off[2] < off[0]
    wide = jepa_score(encoder, data, method="lanczos", rows=rank - 1, steps=1)
    assert (wide - exact).abs().mean() < (exact.abs().mean() + rank) / 4
    everything = jepa_score(encoder, data, method="lanczos", rows=2 * rank, steps=2)
    torch.testing.assert_close(everything, exact, rtol=0, atol=1e-3)


def test_whitening_by_the_response_to_noise_makes_estimates_better() -> None:
    encoder = nn.Sequential(rough(), nn.Linear(WIDTH, WIDTH, bias=False))
    encoder[1].weight.data = torch.diag(torch.logspace(0, -3, WIDTH))
    data, exact = images(24), float64_score(encoder, images(24))
    law = fit_reference(Embedder(encoder), images(600, 9), torch.device("cpu"), responding=True)
    off = {}
    for kind, reference in (("plain", None), ("response", law)):
        found = [
            estimate_scores(encoder, data, reference=reference, seed=s).scores for s in range(4)
        ]
        off[kind] = (torch.stack(found) - exact).abs().mean()
    assert off["response"] < 0.5 * off["plain"]
    plain = estimate_scores(encoder, data)
    assert plain.method == "lanczos, 6 starts, 2 steps, 12 of 40 rows, plain, differences"


def test_the_law_of_a_reference_knows_its_response() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    weight = encoder[1].weight.detach().double()
    law = fit_reference(Embedder(encoder), images(1200), torch.device("cpu"), responding=True)
    assert law.response.count == 1000
    torch.testing.assert_close(law.response.covariance, weight @ weight.mT, rtol=0, atol=0.12)
    assert isinstance(law.to("cpu"), RespondingLaw)


def test_errors_are_those_of_means_of_starts() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 3 * torch.randn(400, 8, generator=generator, dtype=torch.float64)
    truth = 50 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    common = torch.arange(8.0).double()  # of each start, the same for all images: an offset
    samples = torch.stack([truth + noise + common, torch.full_like(noise, 2.0)], 2)
    errors = estimate_errors(samples)
    assert errors.mean().item() == pytest.approx(2 * 3 / math.sqrt(8), rel=0.05)
    off = samples[:, :, 0].mean(1) - truth[:, 0] - common.mean()
    assert 0.92 < (off.abs() <= errors).double().mean() < 0.98
    assert torch.isnan(estimate_errors(samples[:, :1])).all()
    assert torch.isnan(estimate_errors(samples[:1])).all()


def test_exact_scores_have_no_error_and_a_sketch_none_that_is_known() -> None:
    exact = estimate_scores(rough(), images(4), method="exact")
    assert exact.errors.tolist() == [0.0] * 4
    assert exact.method == "exact, 40 rows"
    with pytest.warns(UserWarning, match="not whitened"):
        sketch = estimate_scores(rough(), images(4), method="sketch")
    assert torch.isnan(sketch.errors).all()


def test_log_density_adds_the_whole_law_of_the_embedding() -> None:
    encoder, reference = rough(), images(300, 4)
    exact = log_density(encoder, images(5), reference)
    found = log_density(encoder, images(5), reference, method="lanczos")
    torch.testing.assert_close(found.log_prior, exact.log_prior, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.log_density, found.jepa_score + found.log_prior)


def test_a_jacobian_that_is_not_finite_costs_no_other_image_its_score() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = rough()

        def forward(self, x: Tensor) -> Tensor:
            bad = (x.flatten(1).sum(1) < 0).to(x.dtype)
            return self.net(x) / (1 - bad)[:, None]

    data = images(4)
    alone = jepa_score(rough(), data, method="lanczos")
    data[1] = -1.0
    found = jepa_score(Broken(), data, method="lanczos")
    assert torch.isnan(found).tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], alone[[0, 2, 3]], rtol=0, atol=0.05)


def test_scores_depend_neither_on_the_batch_nor_on_memory() -> None:
    encoder, data = rough(), images(6)
    law = fit_reference(Embedder(encoder), images(200, 8), torch.device("cpu"), responding=True)
    whole = jepa_score(encoder, data, reference=law, method="lanczos")
    apart = torch.cat([
        jepa_score(encoder, part, reference=law, method="lanczos", max_memory=20_000)
        for part in data.split(2)
    ])  # fmt: skip
    torch.testing.assert_close(whole, apart, rtol=0, atol=0.05)  # of nats: differences in float32


def test_it_leaves_no_trace() -> None:
    encoder = nn.Sequential(rough(), nn.Dropout(0.5), nn.Linear(WIDTH, 24), nn.BatchNorm1d(24))
    encoder.train()
    encoder(images(8)).square().mean().backward()
    before, modes = interpreter_settings(), [m.training for m in encoder.modules()]
    weights = [t.clone() for t in (*encoder.parameters(), *encoder.buffers())]
    gradients = [p.grad.clone() for p in encoder.parameters()]
    data = images(5)
    with torch.inference_mode():
        estimate_scores(encoder, data, reference=images(40, 3))
    assert interpreter_settings() == before
    assert [m.training for m in encoder.modules()] == modes
    after = [*encoder.parameters(), *encoder.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(encoder.parameters(), gradients, strict=True))
    assert not data.requires_grad


def test_fused_attention_has_forward_mode() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x - x.detach() + (20 * x.detach()).round() / 20  # which differences do not see
            tokens = self.patches(x).flatten(2).mT
            tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return nn.functional.gelu(tokens).mean(1)

    found = estimate_scores(Attending(), images(3), rows=8)
    assert found.method.endswith("forward mode")
    assert torch.isfinite(found.scores).all()


def test_tolerance_takes_what_it_needs() -> None:
    encoder, data, reference = rough(), images(24), images(400, 6)
    exact = jepa_score(encoder, data)
    loose = estimate_scores(encoder, data, reference=reference, method="auto", tolerance=50.0)
    tight = estimate_scores(encoder, data, reference=reference, method="auto", tolerance=1e-9)
    assert loose.agreement.images == 16
    assert loose.agreement.error <= 50
    assert loose.method.startswith(("sketch, 16 of 40 rows", "lanczos"))
    assert tight.options.method == "exact"
    assert tight.method.startswith("exact, 40 rows; ")
    torch.testing.assert_close(tight.scores, exact)
    middle = (loose.agreement.error + 1e-6, 0.3)
    for tolerance in middle:
        found = estimate_scores(encoder, data, reference=reference, tolerance=tolerance)
        offset = found.scores[:16] - exact[:16]
        assert float(offset.std()) <= tolerance + 1e-6
        assert found.options.method == "exact" or found.agreement.steps > 0
    ordered = estimate_scores(encoder, data, reference=reference, method="auto", correlation=0.9)
    pair = torch.stack([ordered.scores[:16], exact[:16]])
    assert torch.corrcoef(pair)[0, 1] >= 0.9
    torch.testing.assert_close(
        jepa_score(encoder, data, reference=reference, method="auto", tolerance=1e-9), exact
    )


def test_too_few_images_to_tell_by_are_scored_exactly() -> None:
    found = estimate_scores(rough(), images(3), tolerance=100.0)
    assert (found.method, found.agreement) == ("exact, 40 rows", None)


def test_a_monitor_estimates_and_says_how() -> None:
    options = ScoreOptions("lanczos")
    monitor = DensityMonitor(images(20), reference=images(120, 4), options=options)
    first, second = (monitor.evaluate(rough()) for _ in range(2))
    assert first.method.startswith(
        "lanczos, 6 starts, 2 steps, 12 of 40 rows, whitened by the response to noise, differences; "
        "estimates of 2 steps and 12 rows correlate"
    )
    assert torch.equal(first.probe.scores, second.probe.scores)  # the same starts at every look
    exact = jepa_score(rough(), images(20))
    off = (first.probe.scores - exact)[:8].std().item()
    assert first.scalars["sketch/error"] == pytest.approx(off, abs=1e-3)
    assert first.scalars["sketch/rows"] == 12
    # What estimates do not have is absent, not 0.
    assert first.probe.singular_values.shape == (20, 0)
    absent = ("jepa_score/clipped", "jepa_score/below_noise_floor", "jacobian/effective_rank")
    assert not set(absent) & set(first.scalars)
    assert first.scalars["jepa_score/mean"] == pytest.approx(first.probe.scores.mean().item())
    first.overview()


def test_detectors_go_without_spectra() -> None:
    monitor = DensityMonitor(
        images(20),
        reference=images(260, 4),
        max_probe_samples=90,
        options=ScoreOptions("lanczos"),
        detectors=["combined", "spectrum_shape"],
    )
    report = monitor.evaluate(rough())
    assert (
        "examples with finite spectrum_shape features, got 0"
        in report.failed["detector spectrum_shape"]
    )
    assert torch.isfinite(report.look.detected["probe"]["combined"]).all()


def test_a_fit_with_estimates(tmp_path: pathlib.Path) -> None:
    callback = JepaScoreCallback(
        probe=images(12), reference=images(40, 2), options=ScoreOptions("lanczos", rows=8)
    )
    plain = Tiny()
    watched = copy.deepcopy(plain)
    for module, callbacks in ((plain, []), (watched, [callback])):
        torch.manual_seed(5)
        made = trainer(tmp_path, callbacks)
        made.fit(module, loader())
    assert watched.losses == plain.losses
    assert made.callback_metrics["sketch/rows"] == 8
    width = watched.encoder(images(2)).shape[1]
    assert made.callback_metrics["jepa_score/terms"] == width  # on the scale of all rows
    assert made.callback_metrics["monitor/failed_insights"] == 0


def _look(rank: int, folder: pathlib.Path) -> tuple[str, Tensor]:
    monitor = DensityMonitor(
        images(10), reference=images(60, 4), distributed=True, options=ScoreOptions("lanczos")
    )
    report = monitor.evaluate(rough())
    return report.method, report.probe.scores


@pytest.mark.slow  # exact scores and sketches are shared out in tests/test_distributed.py
def test_processes_share_the_work(tmp_path: pathlib.Path) -> None:
    first, second = in_two_processes(_look, tmp_path)
    alone = DensityMonitor(
        images(10), reference=images(60, 4), options=ScoreOptions("lanczos")
    ).evaluate(rough())
    assert first[0] == second[0] == alone.method
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[1], alone.probe.scores, rtol=0, atol=0.05)


ODD = ScoreOptions("lanczos", rows=8)
WRONG = {
    "steps of a sketch": (lambda: ScoreOptions("sketch", steps=2), ValueError, "`steps` is for `method='lanczos'`, got 2"),
    "steps": (lambda: ScoreOptions("lanczos", steps=0), ValueError, "`steps` must be at least 1"),
    "rows that do not divide": (lambda: ScoreOptions("lanczos", rows=7), ValueError, "`rows` must be a multiple of `steps`, 2, got 7"),
    "tolerance of exact": (lambda: ScoreOptions(tolerance=3.0), ValueError, "`tolerance` is for `method='auto'` or 'lanczos', got 'exact'"),
    "tolerance": (lambda: ScoreOptions("auto", tolerance=0.0), ValueError, "`tolerance` must be"),
    "correlation": (lambda: ScoreOptions("auto", correlation=1.0), ValueError, "`correlation` must be below 1, got 1.0"),
    "spectrum": (lambda: jacobian_spectrum(rough(), images(2), method="lanczos"), ValueError, "`method` must be 'exact' or 'sketch' where spectra.*got 'lanczos'"),
    "spectrum to a tolerance": (lambda: jacobian_spectrum(rough(), images(2), method="auto", tolerance=1.0), ValueError, "got a tolerance"),
    "gradient": (lambda: jepa_score(rough(), images(2), method="lanczos", differentiable=True), ValueError, "got 'lanczos'"),
    "fibre": (lambda: log_density(rough(), images(2), images(9), fibre="gaussian", method="lanczos"), ValueError, "got 'lanczos'"),
    "map": (lambda: leverage_map(rough(), images(2), method="lanczos"), ValueError, "got 'lanczos'"),
    "metric to a tolerance": (lambda: JepaScore(rough(), options=ScoreOptions("auto", tolerance=1.0)), ValueError, "`options` must say how to score"),
    "other width": (lambda: jepa_score(rough(), images(2), method="lanczos", reference=Gaussian.fit(torch.randn(9, 7))), ValueError, "width 40, got 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_metric_estimates() -> None:
    metric = JepaScore(rough(), options=ODD, reduction="none")
    metric.update(images(4))
    torch.testing.assert_close(
        metric.compute(), jepa_score(rough(), images(4), method="lanczos", rows=8)
    )
