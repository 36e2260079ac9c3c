"""The metric: batches and reductions give the mean of the float64 scores."""

from __future__ import annotations

import math
import pathlib
import pickle

import numpy as np
import pytest
import torch
from helpers import float64_score, images, leave_one_out_law, mlp
from matplotlib.figure import Figure
from scipy.stats import multivariate_normal
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection

from jepa_monitor import ScoreOptions, log_density
from jepa_monitor.functional.gaussian import Gaussian
from jepa_monitor.metrics import JepaScore, LogDensity


def _encoder() -> nn.Module:
    torch.manual_seed(3)
    return mlp(192)


def test_batches_add_up_to_the_mean() -> None:
    encoder, data = _encoder(), images(10)
    metric = JepaScore(encoder)
    first = metric(data[:4])
    metric.update(data[4:])
    expected = float64_score(encoder, data)
    assert first.item() == pytest.approx(expected[:4].mean().item(), abs=0.02)
    assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=0.02)
    metric.reset()
    metric.update(data[:2])
    assert metric.compute().item() == pytest.approx(expected[:2].mean().item(), abs=0.02)


def test_no_reduction_keeps_all_scores_in_order() -> None:
    encoder, data = _encoder(), images(10)
    metric = JepaScore(encoder, reduction="none")
    for batch in data.split(4):
        metric.update(batch)
    torch.testing.assert_close(metric.compute(), float64_score(encoder, data), rtol=0, atol=0.02)


def test_encoder_is_not_owned() -> None:
    encoder = _encoder()

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.metric = JepaScore(encoder)

    holder = Holder()
    assert list(holder.metric.children()) == []
    assert set(holder.state_dict()) == {f"encoder.{name}" for name in encoder.state_dict()}
    assert len(list(holder.parameters())) == len(list(encoder.parameters()))
    clone = holder.metric.clone()
    encoder[-1].weight.data.mul_(2)  # the clone follows the encoder: it has no copy of its own
    clone.update(images(4))
    expected = float64_score(encoder, images(4)).mean().item()
    assert clone.compute().item() == pytest.approx(expected, abs=0.02)


def test_pickles_with_its_encoder() -> None:
    metric = JepaScore(_encoder())
    metric.update(images(4))
    restored = pickle.loads(pickle.dumps(metric))
    restored.update(images(4, seed=5))
    expected = float64_score(_encoder(), torch.cat([images(4), images(4, seed=5)])).mean().item()
    assert restored.compute().item() == pytest.approx(expected, abs=0.02)
    assert hash(restored) != hash(metric)


def test_nonfinite_scores_are_counted_and_left_out() -> None:
    def encoder(batch: torch.Tensor) -> torch.Tensor:
        return batch.sqrt()

    metric = JepaScore(encoder)
    metric.update(torch.tensor([[0.25, 1.0], [0.0, 1.0]]))
    assert metric.nonfinite.item() == 1
    assert metric.compute().item() == pytest.approx(torch.tensor(0.5).log().item(), abs=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_images_is_an_error(reduction: str) -> None:
    with pytest.raises(RuntimeError, match=r"has seen no images|no finite score"):
        JepaScore(_encoder(), reduction=reduction).compute()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_plots(reduction: str) -> None:
    metric = JepaScore(_encoder(), reduction=reduction)
    metric.update(images(6))
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.has_data()


def test_inside_a_step_with_gradients_off() -> None:
    metric = JepaScore(_encoder())
    with torch.inference_mode():
        metric.reset()
        metric.update(images(4))
    metric.update(images(4, seed=5))
    assert torch.isfinite(metric.compute())


def test_reference_whitens_the_sketch() -> None:
    encoder = _encoder()
    options = ScoreOptions(method="sketch", rows=8)
    metric = JepaScore(encoder, reference=images(200, seed=9), options=options, reduction="none")
    metric.update(images(6))
    # All rows, whitened: the exact score shifted by −½ log det Σ of the reference.
    embeddings = encoder(images(200, seed=9)).detach().double().numpy()
    _, log_det = np.linalg.slogdet(leave_one_out_law(embeddings).cov)
    expected = float64_score(encoder, images(6)) - 0.5 * log_det
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": 3}, TypeError, "`encoder` must be a module or a callable, got int"),
        ({"reduction": "sum"}, ValueError, "`reduction` must be one of mean, none, got 'sum'"),
        ({"pool": "max"}, ValueError, "`pool` must be one of"),
        ({"nonsense": 1}, ValueError, "Unexpected keyword arguments: `nonsense`"),
    ],
)
def test_wrong_use_is_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        JepaScore(**({"encoder": _encoder()} | arguments))


def test_log_density_is_the_mean_of_the_change_of_variables() -> None:
    encoder, data, reference = _encoder(), images(7), images(200, seed=9)
    metric = LogDensity(encoder, reference)
    each = LogDensity(encoder, reference, reduction="none")
    for batch in data.split(3):
        metric.update(batch)
        each.update(batch)
    embeddings = encoder(reference).detach().double().numpy()
    prior = torch.from_numpy(
        leave_one_out_law(embeddings).logpdf(encoder(data).detach().double().numpy())
    )
    expected = float64_score(encoder, data) + prior
    torch.testing.assert_close(each.compute(), expected, rtol=0, atol=0.02)
    assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=0.02)
    assert isinstance(each.plot()[0], Figure)


def test_log_density_takes_a_law_and_follows_the_encoder_after_a_reset() -> None:
    encoder = _encoder()
    width = encoder(images(1)).shape[1]
    law = Gaussian(torch.zeros(width).double(), torch.eye(width).double(), 100, 0.0)
    metric = LogDensity(encoder, law)
    metric.update(images(4))
    z = encoder(images(4)).detach().double()
    prior = multivariate_normal(np.zeros(width), np.eye(width)).logpdf(z.numpy())
    expected = float64_score(encoder, images(4)) + torch.from_numpy(np.atleast_1d(prior))
    assert metric.compute().item() == pytest.approx(expected.mean().item(), abs=0.02)
    with pytest.raises(ValueError, match="`reference` must be images or a fitted Gaussian"):
        LogDensity(encoder, None)


class Counted(Dataset):  # type: ignore[type-arg]
    """Images that count in a file how often they are read, by copies of theirs and elsewhere too."""

    def __init__(self, path: pathlib.Path) -> None:
        self.images, self.path = images(40, seed=9), path

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.path.open("a") as file:
            file.write(".")
        return self.images[index]

    @property
    def reads(self) -> int:
        return self.path.stat().st_size


def test_forward_reads_the_reference_once_and_a_reset_again(tmp_path: pathlib.Path) -> None:
    encoder, reference = _encoder(), Counted(tmp_path / "reads")
    metric = LogDensity(encoder, reference)
    for batch in images(8).split(2):
        value = metric(batch)
        expected = log_density(encoder, batch, reference.images).log_density.mean()
        assert value.item() == pytest.approx(expected.item(), abs=1e-3)
    once = reference.reads
    assert 40 <= once < 44  # a source is asked for an image first, to see what it is
    encoder[-1].weight.data.mul_(2)
    metric.reset()
    expected = log_density(encoder, images(4), reference.images).log_density.mean()
    assert metric(images(4)).item() == pytest.approx(expected.item(), abs=1e-3)
    assert reference.reads == 2 * once


def test_a_reference_that_can_be_read_once_serves_every_epoch_and_every_copy() -> None:
    encoder = _encoder()
    metric = LogDensity(encoder, iter(images(40, seed=9).split(8)))
    copy_of_it = metric.clone()
    for scale in (1.0, 2.0):
        encoder[-1].weight.data.mul_(scale)
        expected = log_density(encoder, images(4), images(40, seed=9)).log_density.mean()
        for each in (metric, copy_of_it):
            assert each(images(4)).item() == pytest.approx(expected.item(), abs=1e-3)
            assert each(images(4)).item() == pytest.approx(expected.item(), abs=1e-3)
            each.reset()


def test_student_and_teacher_that_start_equal_stay_two() -> None:
    student, teacher = _encoder(), _encoder()
    both = MetricCollection({"student": JepaScore(student), "teacher": JepaScore(teacher)})
    both.update(images(4))
    both.compute()
    both.reset()
    student[-1].weight.data.mul_(2)
    both.update(images(4))
    found = both.compute()
    for name, encoder in (("student", student), ("teacher", teacher)):
        expected = float64_score(encoder, images(4)).mean().item()
        assert found[name].item() == pytest.approx(expected, abs=0.02)


def test_a_batch_without_a_finite_score_is_nan_and_counted() -> None:
    metric = JepaScore(lambda batch: batch.sqrt())
    assert torch.isfinite(metric(torch.tensor([[0.25, 1.0]])))
    with pytest.warns(UserWarning, match="no finite score to average.*value of this batch is NaN"):
        value = metric(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert value.isnan()
    assert metric.nonfinite == 2
    assert metric.compute().item() == pytest.approx(math.log(0.5), abs=1e-5)
