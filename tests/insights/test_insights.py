"""What a monitor tells beside scores: closed forms, and when it says nothing."""

from __future__ import annotations

import pathlib

import pytest
import torch
from helpers import Validated, images, loader, mlp, trainer
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jepa_monitor import DensityMonitor, JepaScoreCallback

ALL = ("alignment", "tasks", "separation", "neighbors")


class Along(nn.Module):
    """f(x) = ½ ‖x‖² c: the Jacobian c xᵀ is aligned with its input in every row."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.linspace(1, 2, 20))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.flatten(1).square().sum(1, keepdim=True) * self.c


def test_alignment_of_a_jacobian_along_its_input() -> None:
    data = images(24)
    scalars = DensityMonitor(data, insights=["alignment"]).evaluate(Along()).scalars
    assert scalars["jacobian/alignment"] == pytest.approx(1, abs=1e-4)
    assert scalars["jacobian/centroid_alignment"] == pytest.approx(1, abs=1e-4)
    assert scalars["jacobian/rank_one_share"] == pytest.approx(1, abs=1e-4)
    # In the place of x: the mean cosine of the first 16 images, the image itself among them.
    unit = nn.functional.normalize(data[:16].flatten(1).double(), dim=1)
    expected = (unit @ unit.T).mean().item()
    assert scalars["jacobian/alignment_shuffled"] == pytest.approx(expected, abs=1e-4)
    assert scalars["jacobian/centroid_alignment_shuffled"] == pytest.approx(expected, abs=1e-4)


def test_rank_one_share_of_known_singular_values() -> None:
    encoder = nn.Linear(3, 2, bias=False)
    encoder.weight.data = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    scalars = DensityMonitor(torch.rand(4, 3)).evaluate(encoder).scalars
    assert scalars["jacobian/rank_one_share"] == pytest.approx(0.9)


def test_classes_that_are_apart_and_classes_that_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    apart = nn.functional.one_hot(labels, 6).float() * 20
    data = apart + torch.randn(60, 6, generator=generator)
    monitor = DensityMonitor(data, insights=["tasks", "separation"], labels=labels)
    scalars = monitor.evaluate(nn.Identity()).scalars
    assert scalars["separation/accuracy"] == 1
    assert scalars["separation/merged"] == 0
    assert scalars["separation/auroc"] == pytest.approx(1)
    assert scalars["tasks/mean"] > 0.9 * scalars["tasks/best"]
    assert NearestCentroid().fit(data, labels).score(data, labels) == 1
    mixed = labels[torch.randperm(60, generator=generator)]
    monitor = DensityMonitor(data, insights=["tasks", "separation"], labels=mixed)
    worse = monitor.evaluate(nn.Identity()).scalars
    assert worse["separation/accuracy"] < 0.6
    assert abs(worse["tasks/mean"]) < 0.2 * scalars["tasks/mean"]


def test_neighbours_of_the_same_encoder_agree_and_of_a_random_one_do_not() -> None:
    data = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    encoder = nn.Linear(8, 8)
    nn.init.orthogonal_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    monitor = DensityMonitor(data, insights=["neighbors"], compare_with=nn.Identity())
    scalars = monitor.evaluate(encoder).scalars
    assert scalars["neighbors/drift"] == pytest.approx(1)
    assert scalars["neighbors/reference"] == pytest.approx(1)  # a rotation keeps all cosines
    nn.init.zeros_(encoder.weight)
    encoder.weight.data[0, 0] = 1  # one direction left: neighbours are nearly arbitrary
    later = monitor.evaluate(encoder).scalars
    assert later["neighbors/drift"] < 0.2
    assert later["neighbors/reference"] < 0.2


def test_labels_are_read_in_the_order_of_the_images() -> None:
    data, labels = images(40), torch.arange(40) % 2
    probe = DataLoader(TensorDataset(data, labels), batch_size=7)
    settings = {"insights": ["separation"], "shuffle_seed": 3}
    read = DensityMonitor(probe, labels=lambda batch: batch[1], **settings)
    index = [int((data == image).flatten(1).all(1).nonzero()) for image in read.images]
    assert read.labels is not None
    assert read.labels.tolist() == labels[index].tolist()
    assert index != sorted(index)


def test_nothing_of_it_unless_asked_for() -> None:
    scalars = DensityMonitor(images(40)).evaluate(mlp(192)).scalars
    assert not [tag for tag in scalars if tag.startswith(("tasks/", "separation/", "neighbors/"))]
    assert "jacobian/alignment" not in scalars


def test_collapsed_and_broken_encoders_log_no_nan() -> None:
    labels = torch.arange(40) % 4
    monitor = DensityMonitor(images(40), insights=ALL, labels=labels)
    encoder = mlp(192)
    for value in (0.0, float("nan")):
        nn.init.constant_(encoder[-1].weight, value)
        scalars = monitor.evaluate(encoder).scalars
        assert all(abs(number) < float("inf") for number in scalars.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"insights": "tasks"}, TypeError, "`insights` must be a collection of names, got 'tasks'"),
        ({"insights": ["cka"]}, ValueError, "`insights` must be among alignment, tasks"),
        (
            {"insights": ["tasks"], "labels": None},
            ValueError,
            "names 'tasks', which needs `labels`, got None",
        ),
        ({"insights": ["tasks"]}, ValueError, "names 'tasks', .* `probe` does not yield them"),
        ({"labels": "all"}, ValueError, "must be 'auto', a tensor, a function or None, got 'all'"),
        ({"labels": torch.arange(5)}, ValueError, "one for each of the 32 probe images"),
        ({"labels": torch.zeros(32)}, ValueError, "at least 2 classes"),
        ({"labels": torch.arange(32)}, ValueError, "each of at least 2 probe images"),
        ({"labels": torch.arange(32) / 2}, ValueError, "must be whole numbers"),
        ({"labels": 3}, TypeError, "must be 'auto', a tensor, a function or None, got int"),
    ],
)
def test_wrong_use_is_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DensityMonitor(images(), **arguments)


def test_drift_is_counted_from_the_first_evaluation_of_a_run_that_was_resumed(
    tmp_path: pathlib.Path,
) -> None:
    def fit(epochs: int, checkpoint: str | None = None) -> JepaScoreCallback:
        callback = JepaScoreCallback(
            insights=ALL, labels=lambda batch: batch[1] % 2, max_overhead=None
        )
        torch.manual_seed(0)
        run = trainer(tmp_path, [callback], max_epochs=epochs)
        run.fit(Validated(), loader(), loader(seed=2), ckpt_path=checkpoint)
        run.save_checkpoint(tmp_path / "run.ckpt")
        return callback

    first = fit(1)
    resumed = fit(2, str(tmp_path / "run.ckpt"))
    assert first.monitor is not None
    assert resumed.monitor is not None
    assert torch.equal(
        resumed.monitor.memory["first_embeddings"], first.monitor.memory["first_embeddings"]
    )
    assert first.history[0]["neighbors/drift"] == pytest.approx(1)
    assert resumed.history[-1]["neighbors/drift"] < 1
    assert {"separation/auroc", "tasks/mean", "jacobian/alignment"} <= set(resumed.history[-1])
