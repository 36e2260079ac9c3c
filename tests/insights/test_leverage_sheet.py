"""The sheet of leverage maps: the right images, each beside the map of a float64 SVD, on one scale."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import float64_score, images, mlp
from torch import Tensor

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.insights.leverage import Leverage
from jepa_monitor.insights.registry import default_insights

TAG = "leverage/least_and_most_likely"


def relative_map(encoder: torch.nn.Module, image: Tensor) -> Tensor:
    """Leverage over its mean, (H, W), by PyTorch's Jacobian and LAPACK."""
    double = copy.deepcopy(encoder).double()
    found = torch.autograd.functional.jacobian(lambda x: double(x[None])[0], image.double())
    vectors = torch.linalg.svd(found.flatten(1), full_matrices=False).Vh
    each = vectors.square().sum(0).reshape(image.shape).sum(0)
    return each / each.mean()


def shown(axis: Any) -> Tensor:
    return torch.as_tensor(axis.get_images()[0].get_array())


def test_the_least_and_the_most_likely_images_stand_beside_their_maps() -> None:
    torch.manual_seed(0)
    encoder, data = mlp(192, 8), images(20)
    report = DensityMonitor(data, insights=["leverage"], polarity_samples=0).evaluate(encoder)
    figure = report.figures()[TAG]
    *axes, bar = figure.axes
    order = float64_score(encoder, data).argsort()
    expected = [*order[:4].tolist(), *order.flip(0)[:4].tolist()]
    scores = float64_score(encoder, data)
    stretched = (data - data.amin((0, 2, 3), keepdim=True)) / (
        data.amax((0, 2, 3), keepdim=True) - data.amin((0, 2, 3), keepdim=True)
    )
    assert len(axes) == 16
    for place, index in enumerate(expected):
        left, right = axes[2 * place], axes[2 * place + 1]
        assert left.get_title() == f"{scores[index]:.1f}"
        torch.testing.assert_close(shown(left), stretched[index].permute(1, 2, 0))
        torch.testing.assert_close(
            shown(right), relative_map(encoder, data[index]), rtol=1e-3, atol=1e-5
        )
    limits = {image.get_clim() for axis in axes[1::2] for image in axis.get_images()}
    assert len(limits) == 1  # one scale for all
    assert limits.pop()[0] == 0
    assert "leverage" in bar.get_ylabel()
    assert not [tag for tag in report.scalars if tag.startswith("leverage")]


def test_a_sketched_look_has_the_maps_of_its_sketch() -> None:
    torch.manual_seed(0)
    encoder, data = mlp(192, 40), images(60)
    monitor = DensityMonitor(
        data[:20],
        reference=data[20:],
        insights=[Leverage(2)],
        polarity_samples=0,
        options=ScoreOptions("sketch", rows=16),
    )
    look = monitor.evaluate(encoder).look
    (part,) = [part for part in look.parts if part in Leverage(2).needs]
    assert len(look[part].maps) == 4
    for found in look[part].maps.values():
        assert found.shape == (8, 8)
        assert found.sum().item() == pytest.approx(16)


def test_few_images_are_drawn_once_or_twice_and_computed_once() -> None:
    report = DensityMonitor(images(3), insights=["leverage"]).evaluate(mlp(192, 8))
    (part,) = Leverage().needs
    assert sorted(report.look[part].maps) == [0, 1, 2]
    assert len(report.figures()[TAG].axes) == 2 * 2 * 3 + 1


def test_a_map_of_nothing_is_drawn_dark() -> None:
    flat = DensityMonitor(images(4), insights=["leverage"]).evaluate(lambda x: 0 * x.flatten(1))
    assert shown(flat.figures()[TAG].axes[1]).eq(0).all()


def test_it_is_asked_for_by_name_and_says_what_it_lacks() -> None:
    assert "leverage" not in [insight.name for insight in default_insights(8)]
    assert TAG not in DensityMonitor(images(8)).evaluate(mlp(192, 8)).figures()
    monitor = DensityMonitor(torch.rand(8, 5), insights=["leverage"])
    with pytest.warns(UserWarning, match=r"it needs images \(B, C, H, W\) of 1 or 3 channels"):
        report = monitor.evaluate(torch.nn.Linear(5, 3))
    assert report.scalars["monitor/failed_insights"] == 1
    assert TAG not in report.figures()
