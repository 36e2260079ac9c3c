"""The contrast of images in a look: what is said of encoders that normalise, and where nothing is."""

from __future__ import annotations

import pytest
import torch
from helpers import images, mlp
from torch import Tensor, nn

from jepa_monitor import DensityMonitor, ScoreOptions
from jepa_monitor.functional import change_contrast


def of_many_contrasts(count: int, seed: int) -> Tensor:
    data = images(count, seed)
    factors = 4 ** torch.linspace(-1, 1, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.cat(
        [change_contrast(one[None], float(factors[i])) for one, i in zip(data, order, strict=True)]
    )


def normalising(width: int = 20) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.GroupNorm(3, 3, eps=1e-12), mlp(192, width)).eval()


@pytest.mark.parametrize("rows", [None, 16])
def test_an_encoder_that_normalises_is_found_out_and_its_score_set_free(rows: int | None) -> None:
    options = ScoreOptions("exact") if rows is None else ScoreOptions("sketch", rows=rows)
    encoder = normalising()
    report = DensityMonitor(
        of_many_contrasts(40, 3), reference=of_many_contrasts(160, 4), options=options
    ).evaluate(encoder)
    scalars = report.scalars
    assert scalars["contrast/kappa"] == pytest.approx(rows or 20, rel=1e-3)
    assert scalars["contrast/kappa_se"] < 0.05
    assert scalars["contrast/spearman"] < -0.9
    assert scalars["contrast/share_low"] > 0.8
    assert abs(scalars["contrast/spearman_free"]) < 0.5
    # The same as of the same images at their own contrast.
    own = DensityMonitor(images(40, 3), reference=images(160, 4), options=options).evaluate(encoder)
    for name in ("mean", "std", "p05", "p50", "p95"):
        found = scalars[f"contrast_free/{name}"]
        assert found == pytest.approx(own.scalars[f"contrast_free/{name}"], abs=0.05), name
    assert own.scalars["jepa_score/std"] < 0.5 * scalars["jepa_score/std"]
    assert scalars["contrast/outliers_low"] <= scalars["contrast/outliers"]
    assert "of the score's variance is the contrast of the images" in str(report.verdict)
    sheets = {tag for tag in report.figures() if tag.endswith("least_and_most_likely")}
    assert sheets == {"jepa_score/least_and_most_likely", "contrast_free/least_and_most_likely"}
    assert len(report.histograms["contrast_free/scores"]) == 40


def test_a_linear_encoder_does_not_follow_contrast() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 8)).double()
    report = DensityMonitor(of_many_contrasts(30, 3).double()).evaluate(encoder)
    assert report.scalars["contrast/kappa"] == pytest.approx(0, abs=1e-9)
    assert "contrast of the images" not in str(report.verdict)


@pytest.mark.parametrize(
    "probe", [torch.rand(30, 192), torch.ones(30, 3, 8, 8), torch.rand(30, 192, 1, 1)]
)
def test_of_what_has_no_contrast_nothing_is_said_and_nothing_fails(probe: Tensor) -> None:
    report = DensityMonitor(probe, reference=probe.clone(), max_probe_samples=15).evaluate(
        mlp(192, 4)
    )
    assert report.scalars["monitor/failed_insights"] == 0
    assert not [tag for tag in report.scalars if tag.startswith("contrast")]
    assert not [tag for tag in report.figures() if tag.startswith("contrast")]
    assert "contrast_free/scores" not in report.histograms


def test_a_few_images_without_contrast_are_left_out() -> None:
    probe = images(30)
    probe[::5] = 0.3  # four of the first eight
    scalars = DensityMonitor(probe).evaluate(normalising()).scalars
    whole = DensityMonitor(probe[torch.arange(30) % 5 > 0]).evaluate(normalising()).scalars
    assert scalars["monitor/failed_insights"] == 0
    for tag in ("contrast_free/std", "contrast/spearman"):
        assert scalars[tag] == pytest.approx(whole[tag], rel=0.05), tag
